"""Kills and signals at random moments: the same command goes on, to the same bits, and nothing is left lying about."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sttabt
from long.trials import trials
from sttabt.lit.launch import free_port
from sttabt.report.rows import Row
from sttabt.store.inventory import FINISHED, UNFINISHED, entries
from sttabt.system.files import checksum

PATIENCE = 600  # seconds, of a machine that is busy with more than this
KILLS, SIGNALS, NODES, WORKERS = (int(os.environ.get("TRIALS", most)) for most in (60, 20, 4, 4))
TEMPORARY = Path(tempfile.gettempdir()) / f"test-{os.getpid()}"  # for temporary files of what is started here
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(sttabt.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "TMPDIR": str(TEMPORARY),
}
DEBUG = ("experiment=debug", "fast_dev_run=0", "hardware.threads=1", "evaluation.timing_rounds=0")
SHORT = tuple(f"{node}.{name}" for node in ("model", "approx", "sparsity") for name in
              ("training.epochs=2", "training.warmup_epochs=0"))  # fmt: skip
SWEEP = ("-m", *DEBUG, *SHORT, "logger=wandb_offline", "sparsity=concrete", "sparsity.p_logit=-1,1")
RIGHT_STATES = (FINISHED, UNFINISHED)

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("own_folder", "hears_signals")]


@pytest.fixture(autouse=True)
def temporary() -> Iterator[None]:
    TEMPORARY.mkdir()
    yield
    shutil.rmtree(TEMPORARY)


@pytest.fixture
def store() -> Iterator[Path]:
    """On another file system than the folder of runs, where there is one."""
    other = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path.cwd()
    folder = other / f"test-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _start(*arguments: str, log: str = "log", **variables: str) -> subprocess.Popen[bytes]:
    with Path(log).open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "sttabt.run", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT | variables,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(PATIENCE)
    finally:
        _kill_session(process.pid)


def _session(leader: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(leader)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if line.split()[1][0] not in "ZX"]


def _kill_session(leader: int) -> None:
    for process in _session(leader):
        os.kill(process, signal.SIGKILL)


def _gone(leader: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _session(leader):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _weights(store: Path) -> dict[str, str]:
    return {str(path.relative_to(store).parent): checksum(path) for path in store.glob("*/*/model.safetensors")}


def _litter(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*.partial")]


def _damage(store: Path) -> list[str]:
    return (
        [each.state for each in entries(store, whole=True) if each.state not in RIGHT_STATES] if store.is_dir() else []
    )


def _whole(store: Path) -> tuple[dict[str, str], float]:
    """The weights of the sweep that nobody stops, and the seconds that it takes."""
    begun = time.monotonic()
    assert _end(_start(*SWEEP, f"paths.artifacts={store}")) == 0, Path("log").read_text()
    return _weights(store), time.monotonic() - begun


def test_kills_at_random_moments(store: Path) -> None:
    expected, seconds = _whole(store)
    draw = random.Random(0)
    with trials("SIGKILL of a sweep with its processes, at random moments") as found:
        while found.survived + len(found.lost) < KILLS:
            shutil.rmtree(store)
            kills = 0
            while True:  # until the same command comes to its end between two kills
                process = _start(*SWEEP, f"paths.artifacts={store}")
                try:
                    code = process.wait(draw.uniform(1, seconds))
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    kills += 1
                    lost = "; ".join(_damage(store))
                    orphans = "" if _gone(process.pid, 30) else "processes that go on"
                    _kill_session(process.pid)
                    found.trial(lost or orphans or None)
                    if found.survived + len(found.lost) >= KILLS:
                        code = _end(_start(*SWEEP, f"paths.artifacts={store}"))
                        break
                else:
                    break
            if code != 0 or _weights(store) != expected:
                found.trial(f"after {kills} kills: code {code}, other weights\n{Path('log').read_text()[-1000:]}")
            if left := [*_litter(store), *TEMPORARY.iterdir()]:
                found.trial(f"left lying: {left}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("launcher", ["basic", "ray", "submitit_local", "ddp"])
def test_signals_at_random_moments(launcher: str, number: signal.Signals, code: int, store: Path) -> None:
    chosen = {
        "basic": (*SWEEP, "hardware.workers=1"),
        "ray": (*SWEEP, "hardware=local_cpus"),
        "submitit_local": (*SWEEP, "hydra/launcher=sttabt_submitit_local"),
        "ddp": (*SWEEP, "hardware=ddp_cpu", "hardware.batch_size=16", "hardware.workers=1"),
    }[launcher]
    command = (*chosen, f"paths.artifacts={store}")
    begun = time.monotonic()
    assert _end(_start(*command)) == 0, Path("log").read_text()
    expected, seconds = _weights(store), time.monotonic() - begun
    draw = random.Random(1)
    with trials(f"{number.name} to a sweep, launcher {launcher}, at random moments") as found:
        for _ in range(SIGNALS):
            shutil.rmtree(store, ignore_errors=True)
            process = _start(*command)
            try:
                process.wait(draw.uniform(0.2, seconds))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, number)
            said = _end_within(process, 45)
            log = Path("log").read_text()
            if said not in (code, 0):
                found.trial(f"code {said}\n{log[-1500:]}")
            elif "Traceback" in log or (said and len(re.findall("^(interrupted|ended) by ", log, re.MULTILINE)) != 1):
                found.trial(f"more than a line:\n{log[-1500:]}")
            elif not _gone(process.pid, 20):
                found.trial(f"processes that go on: {_session(process.pid)}")
            else:
                found.trial("; ".join(_damage(store)) or None)
            _kill_session(process.pid)
        assert _end(_start(*command)) == 0, Path("log").read_text()
        if _weights(store) != expected:
            found.trial("other weights")


def _end_within(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def test_a_node_that_is_killed() -> None:
    common = (*DEBUG, "hardware.batch_size=16", "stages=[base]", "logger=none", "model.training.epochs=6",
              "model.training.warmup_epochs=0", "hardware.nodes=2")  # fmt: skip

    def start(store: str) -> list[subprocess.Popen[bytes]]:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [
            _start(*common, f"paths.artifacts={store}", log=f"node{number}", **where, NODE_RANK=str(number))
            for number in (0, 1)
        ]

    assert [_end(node) for node in start("whole")] == [0, 0], Path("node0").read_text()
    expected = _weights(Path("whole"))
    with trials("SIGKILL of one of two nodes that train together") as found:
        for trial in range(NODES):
            store, killed = f"store{trial}", trial % 2
            nodes = start(store)
            while f"epoch {1 + trial}/" not in Path("node0").read_text():
                assert nodes[0].poll() is None, Path("node0").read_text()
                time.sleep(0.05)
            _kill_session(nodes[killed].pid)
            code = _end_within(nodes[1 - killed], 120)
            log = Path(f"node{1 - killed}").read_text()
            for node in nodes:
                _kill_session(node.pid)
            if code != 2 or "Traceback" in log:
                found.trial(f"the other node: code {code}\n{log[-1500:]}")
                continue
            again = [_end(node) for node in start(store)]
            right = again == [0, 0] and _weights(Path(store)) == expected
            found.trial(None if right else f"codes {again}, or other weights\n{Path('node0').read_text()[-1500:]}")


def test_a_process_that_is_killed_in_a_sweep_of_ray(store: Path) -> None:
    pytest.importorskip("ray")
    expected, _ = _whole(store)
    command = (*SWEEP, "hardware=local_cpus", f"paths.artifacts={store}")
    draw = random.Random(2)
    with trials("SIGKILL of a job's process in a sweep that Ray queues") as found:
        for _ in range(WORKERS):
            shutil.rmtree(store, ignore_errors=True)
            shutil.rmtree("runs", ignore_errors=True)
            process = _start(*command)
            while not (logs := [*Path("runs").glob("*/0/sttabt.log")]):
                assert process.poll() is None, Path("log").read_text()
                time.sleep(0.1)
            time.sleep(draw.uniform(0, 15))
            victim = _job_of_ray(process.pid)
            if victim:
                os.kill(victim[0], signal.SIGKILL)
            code = _end_within(process, PATIENCE)
            log = Path("log").read_text()
            rows = [Row.read(path) for path in logs[0].parents[1].glob("*/row.json")]
            killed = log.count("its process was killed, by hand or for want of memory")
            if victim and (code != 1 or killed != 1 or len(rows) != 1):
                found.trial(f"code {code}, {killed} killed, {len(rows)} rows\n{log[-1500:]}")
            else:
                again = _end(_start(*command))
                found.trial(None if again == 0 and _weights(store) == expected else f"code {again}, or other weights")
            _kill_session(process.pid)


def test_jobs_that_want_the_same_stages(store: Path) -> None:
    """Four at once, of which the one that has the lock is killed; then two sweeps at once."""
    expected, _ = _whole(store)
    with trials("four jobs that want the same stages, one of them killed") as found:
        for trial in range(NODES):
            shutil.rmtree(store)
            jobs = [_start(*SWEEP, f"paths.artifacts={store}", log=f"job{number}") for number in range(4)]
            while not (made := list(store.glob("base/*/last.ckpt"))) or len(list(store.glob("base/*.lock"))) != len(
                made
            ):
                assert any(job.poll() is None for job in jobs), Path("job0").read_text()
                time.sleep(0.05)
            waits = ["waiting for another job" in Path(f"job{number}").read_text() for number in range(4)]
            victim = waits.index(False) if False in waits else trial
            _kill_session(jobs[victim].pid)
            codes = [_end(job) for number, job in enumerate(jobs) if number != victim]
            wrong = codes != [0, 0, 0] or _weights(store) != expected or _litter(store)
            found.trial(f"codes {codes}\n{Path('job0').read_text()[-1500:]}" if wrong else None)
    with trials("two sweeps at once") as found:
        for _ in range(NODES):
            shutil.rmtree(store)
            codes = [_end(job) for job in [_start(*SWEEP, f"paths.artifacts={store}", log=log) for log in ("a", "b")]]
            wrong = codes != [0, 0] or _weights(store) != expected or _litter(store)
            found.trial(f"codes {codes}\n{Path('a').read_text()[-1500:]}" if wrong else None)


def _job_of_ray(leader: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=,args=", "-s", str(leader)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "ray::_run" in line]
