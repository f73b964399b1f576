"""Disks that are full, may not be written to, or hold a file where a folder is wanted: one line, and nothing lost."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sttabt
from sttabt import artifacts, convert
from sttabt.errors import UserError
from sttabt.report.__main__ import main as report
from sttabt.run import main
from sttabt.system.faults import system_fault, tell
from sttabt.system.logfile import LogFile
from sttabt.system.scratch import scratch

pytestmark = pytest.mark.usefixtures("own_folder")
DEBUG = ("experiment=debug", "fast_dev_run=1", "sparsity=dense", "logger=none", "evaluation.timing_rounds=0")
SAFE = "what is finished is kept, and the same command goes on from there"
FULL = Path("/dev/full")  # takes nothing: every write fails as on a full disk


def _raised(work: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        work()
    return caught.value


def _write(path: Path) -> None:
    path.write_text("x" * 100_000)


def _save_weights(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"weight": torch.zeros(100_000)}, file)


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("write", [_write, _save_weights], ids=["text", "torch"])
def test_a_full_disk_is_named_whoever_writes(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.symlink_to(FULL)
    line = system_fault(_raised(lambda: write(path)))
    assert line == f"{path}: there is no room for it ({os.strerror(errno.ENOSPC)}): make room; {SAFE}"


def test_what_safetensors_says_of_a_disk() -> None:
    error = type("SafetensorError", (Exception,), {})("I/O error: No space left on device (os error 28)")
    assert system_fault(error) == f"a file: there is no room for it (No space left on device): make room; {SAFE}"
    assert system_fault(type("SafetensorError", (Exception,), {})("header (os error 2)")) is None


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EDQUOT, "there is no room for it"),
        (errno.EFBIG, "there is no room for it"),
        (errno.EROFS, "the system does not allow it"),
        (errno.EACCES, "the system does not allow it"),
        (errno.EPERM, "the system does not allow it"),
        (errno.EIO, "its disk does not answer as it should"),
        (errno.ESTALE, "its disk does not answer as it should"),
        (errno.EMFILE, "too many files are open"),
        (errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)),
    ],
)
def test_faults_of_the_system(number: int, told: str) -> None:
    line = system_fault(OSError(number, os.strerror(number), "/data/x"))
    assert line is not None and line.startswith(f"/data/x: {told}") and line.endswith(SAFE)


def test_errors_of_the_code_are_none() -> None:
    broken = ValueError("x")
    broken.__context__ = FileNotFoundError(errno.ENOENT, "no", "optional.txt")  # was handled
    for error in (broken, KeyError("x"), OSError("no number"), ConnectionRefusedError(errno.ECONNREFUSED, "no")):
        assert system_fault(error) is None
    with pytest.raises(KeyError):
        tell(KeyError("x"))
    assert system_fault(UserError("says more")) is None


def _command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sttabt", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(str(stop.value.code))


@pytest.mark.parametrize("setting", ["paths.artifacts", "paths.output", "hydra.run.dir"])
@pytest.mark.parametrize("below", ["", "/x"], ids=["itself", "below"])
def test_a_file_where_a_folder_is_wanted(
    setting: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert _command(monkeypatch, *DEBUG, f"{setting}={file}{below}") == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert str(file) in err
    assert file.read_text() == "mine"


def test_a_job_of_a_sweep_whose_store_is_a_file_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    sweep = ("-m", *DEBUG, f"paths.artifacts={tmp_path}/file,{tmp_path}/store", "hydra.sweep.dir=sweep")
    assert _command(monkeypatch, *sweep) == 2
    out, err = capfd.readouterr()
    assert err.count("\n") == 1 and err.startswith("job 1/2 (") and f"{tmp_path}/file" in err
    assert "Traceback" not in out
    assert Path("sweep/1/row.json").exists() and Path("sweep/report/index.html").exists()


def test_other_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    table = Path(__file__).parents[1] / "experiments/001_quickstart/table.csv"
    assert report([str(table), f"out={file}"]) == 2
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert convert.main([f"in={tmp_path}/a.safetensors", f"out={file}/b.safetensors"]) == 2
    assert artifacts.main(["list", f"artifacts={file}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(str(tmp_path) in line for line in lines)


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")
def test_a_log_file_on_a_full_disk_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.log").symlink_to(FULL)
    handler = LogFile(tmp_path / "job.log")
    for number in range(3):
        handler.emit(logging.LogRecord("x", logging.INFO, "x", 1, "line %d", (number,), None))
    assert (
        capsys.readouterr().err == f"{tmp_path}/job.log lacks lines, which show here alone: No space left on device\n"
    )
    handler.stream = io.StringIO()  # what it could not write is still in its buffer
    handler.emit(logging.LogRecord("x", logging.INFO, "x", 1, "%d", ("no number",), None))
    assert "Traceback" in capsys.readouterr().err or "TypeError" in capsys.readouterr().err


def test_folders_for_a_while_are_swept_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = os.fork()
    if not ended:
        os._exit(0)
    os.waitpid(ended, 0)
    left, living, other = (tmp_path / f"sttabt-{name}" for name in (f"{ended}-x", f"{os.getppid()}-x", "mine"))
    for folder in (left, living, other):
        folder.mkdir()
    with scratch() as own:
        assert own.is_dir() and own.name.startswith(f"sttabt-{os.getpid()}-")
        assert not left.exists() and living.exists() and other.exists()
    assert not own.exists()


KEEPS = """
import os, sys, tempfile, time
from sttabt.system.scratch import keep_temporary_files, scratch
keep_temporary_files()
import wandb
from multiprocessing.managers import SyncManager
"""
RUNS = """
run = wandb.init(mode="offline", dir=sys.argv[1], settings=wandb.Settings(silent=True))
run.log({"table": wandb.Table(columns=["a"], data=[[1]])})
manager = SyncManager()
manager.start()
with scratch() as folder:
    assert str(folder.parent) == os.environ["SYSTEM"], folder
    print("ready", flush=True)
    time.sleep(60 * (sys.argv[2] == "waits"))
manager.shutdown()
run.finish()
"""


def test_what_libraries_leave_in_the_folder_for_temporary_files_is_swept(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as system:
        environment = {
            **os.environ,
            "TMPDIR": system,
            "SYSTEM": system,
            "PYTHONPATH": str(Path(sttabt.__file__).parents[1]),
        }

        def start(how: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", KEEPS + RUNS, str(tmp_path), how]
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)

        killed = start("waits")
        assert killed.stdout is not None and killed.stdout.readline() == "ready\n"
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        left = sorted(path.name for path in Path(system).iterdir())
        assert len(left) == 2 and all(name.startswith(f"sttabt-{killed.pid}-") for name in left), left
        assert any(path.name.endswith("wandb-media") for path in Path(system).glob("*/*")), "else this tests nothing"
        ends = start("ends")
        assert ends.wait(120) == 0
        assert not list(Path(system).iterdir())
