"""Sweeps whose jobs run beside each other: in processes that Ray queues, and as jobs of SLURM.

There is no SLURM here. Four scripts stand in for its commands: they run a job's own script on this machine.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import sttabt
from sttabt.cli.sweep import Progress
from sttabt.run import main
from sttabt.system.files import checksum

SOURCE = str(Path(sttabt.__file__).parents[1])
DEBUG = ("experiment=debug", "sparsity=dense", "logger=none", "stages=[base]")
ONE_FAILS = "hydra.sweeper.grids=[{approx.factor:[2,4]},{model.timm:no_such_model}]"
TRAINING = ("fast_dev_run=0", "model.training.epochs=5", "hardware.workers=1", "hardware.threads=1")
ON_CPU = (
    *(
        "hardware.accelerator=cpu",
        "hardware.precision=32-true",
        "hardware.batch_size=64",
        "hardware.accumulate_grad_batches=1",
    ),
    *("hydra.launcher.gpus_per_node=null", "hydra.launcher.partition=short"),
)
SLURM = {
    "sbatch": """
        cp "$1" slurm.sh
        export SLURM_JOB_ID=77 SLURM_NTASKS=1 SLURM_NTASKS_PER_NODE=1 SLURM_JOB_NUM_NODES=1 SLURM_NNODES=1
        export SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NAME=sttabt SLURM_JOB_NODELIST=here
        bash "$1" >> slurm.log 2>&1 &
        echo $! > slurm.batch
        echo Submitted batch job 77""",
    "srun": """
        while [[ $1 != *python* ]]; do shift; done
        echo $$ > slurm.pid
        exec "$@" """,
    "scontrol": """
        echo "$@" >> slurm.requeued
        (sleep 1; bash slurm.sh; echo $? > slurm.code) >> slurm.log 2>&1 &""",
    "sacct": "exit 0",
}

APP = """
import hydra, os, time
from sttabt.cli.composition import config_folder

def task(config):
    time.sleep(config.seed)
    with open("begun", "a") as file:
        file.write(f"{config.seed} ")
    time.sleep(1)
    if config.seed == 0:
        os.kill(os.getpid(), 9)
    time.sleep(100)

hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(task)()
"""


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in SLURM.items():
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")


PATIENCE = 400  # seconds, of a machine that is busy with more than this


def _start(*arguments: str, program: Sequence[str] = ("-m", "sttabt.run")) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env={**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(*arguments: str) -> tuple[int, str, str]:
    process = _start(*arguments)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def _wait_for(pattern: str, text: str) -> Path:
    for _ in range(900):
        for path in Path().glob(pattern):
            if text in path.read_text(errors="replace"):
                return path
        time.sleep(0.1)
    raise AssertionError(f"no {pattern} with '{text}'")


def _with_children(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *map(int, children)]


def _weights() -> dict[str, str]:
    return {path.parent.name: checksum(path) for path in Path("artifacts").glob("*/*/model.safetensors")}


def _check_last_failed(ended: tuple[int, str, str], total: int) -> None:
    code, out, err = ended
    assert code == 2, err
    assert re.search(f"^job {total}/{total} \\(.*\\) failed: model.timm=no_such_model is no model", err, re.MULTILINE)
    assert len(re.findall("^job ", err, re.MULTILINE)) == 1
    assert "Traceback" not in err
    assert re.search(rf"job {total}/{total} failed: \d of {total} ended in \d+ s", out)
    assert re.search(rf"job \d/{total} \w+: 1 of {total} ended in \d+ s, about \d+ (s|min) left\n", out)
    assert re.search(rf"job \d/{total} \w+: {total} of {total} ended in \d+ s\n", out)
    assert len(_weights()) == 1


def test_jobs_that_ray_queues_outlive_one_that_fails_and_share_a_base_model() -> None:
    pytest.importorskip("ray")
    _check_last_failed(_run("hardware=local_cpus", *DEBUG, ONE_FAILS), total=3)
    logs = [path.read_text() for path in Path("runs").glob("*/*/sttabt.log")]
    assert ["epoch 1/1" in log for log in logs].count(True) == 1, "the base model that two jobs need is trained once"


def test_a_job_that_is_killed_is_not_repeated_and_the_sweep_ends_when_told(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "app.py").write_text(APP)
    process = _start("experiment=debug", "hardware=local_cpus", "seed=0,1,2", program=[str(tmp_path / "app.py")])
    told = False
    for line in process.stdout or ():
        if "job 1/3 failed: 1 of 3 ended in" in line:
            process.terminate()
            told = True
    assert told
    assert process.wait(60) == 143
    begun = (tmp_path / "begun").read_text().split()
    assert {"0", "1"} <= set(begun) and len(begun) == len(set(begun)), "none begins twice"


def test_jobs_of_submitit_outlive_one_that_fails() -> None:
    pytest.importorskip("submitit")
    ended = _run("-m", "hydra/launcher=sttabt_submitit_local", *DEBUG, "model.timm=test_vit,no_such_model")
    _check_last_failed(ended, total=2)


def test_a_job_of_submitit_without_a_result_says_its_last_words(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit")
    from hydra_plugins.sttabt_submitit_launcher import _result

    def die() -> None:
        sys.stderr.write("the last words\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def fail() -> None:
        raise ValueError("no such shard")

    executor = submitit.AutoExecutor(tmp_path, cluster="local")
    for job, words in ((die, ": the last words ("), (fail, ": ValueError: no such shard (")):
        reason = _result(executor.submit(job))._return_value
        assert isinstance(reason, RuntimeError) and words in str(reason)


@pytest.mark.usefixtures("slurm")
def test_a_slurm_job_that_is_preempted_goes_on_to_the_same_weights(monkeypatch, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    process = _start("hardware=slurm", *DEBUG, *TRAINING, *ON_CPU)
    log = _wait_for("runs/*/0/sttabt.log", "epoch 2/5")
    # As SLURM does it: to all processes of the job, of which the others load data.
    for number in _with_children(int(Path("slurm.pid").read_text())):
        os.kill(number, signal.SIGUSR2)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "job 1/1 done: 1 of 1 ended in" in out
    assert Path("slurm.requeued").read_text() == "requeue 77\n", "once, by the main process alone"
    assert "stage base resumes from" in log.read_text()
    assert "SLURM auto-requeueing" not in log.read_text()
    (preempted,) = _weights().values()
    script = Path("slurm.sh").read_text()
    for line in ("partition=short", "time=1440", "signal=USR2@120", "requeue", "ntasks-per-node=1", "nodes=1"):
        assert f"#SBATCH --{line}\n" in script
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    monkeypatch.setattr(sys, "argv", ["sttabt", *DEBUG, *TRAINING])
    main()
    assert list(_weights().values()) == [preempted]


@pytest.mark.usefixtures("slurm")
def test_the_script_of_the_docs_is_requeued_and_goes_on_to_the_same_weights(monkeypatch, tmp_path: Path) -> None:
    docs = (Path(__file__).parents[1] / "docs" / "SCALE.md").read_text()
    script = next(block for block in re.findall("```sh\n(.*?)```", docs, re.DOTALL) if "B:USR1" in block)
    command = "python -m sttabt.run experiment=lvvit_concrete dataset.path=/data/imagenet"
    assert script.count(command) == 1
    ours = [sys.executable, "-m", "sttabt.run", *DEBUG, *TRAINING]
    Path("job.sh").write_text(script.replace(command, shlex.join(ours)))
    monkeypatch.setenv("PYTHONPATH", SOURCE)
    subprocess.run(["sbatch", "job.sh"], check=True, stdout=subprocess.DEVNULL)
    _wait_for("slurm.log", "epoch 2/5")
    os.kill(int(Path("slurm.batch").read_text()), signal.SIGUSR1)
    assert _wait_for("slurm.code", "\n").read_text() == "0\n", Path("slurm.log").read_text()
    log = Path("slurm.log").read_text()
    assert "stage base resumes from" in log
    assert Path("slurm.requeued").read_text() == "requeue 77\n", log
    assert len(re.findall("^ended by SIGUSR1: python -m sttabt.run .* goes on", log, re.MULTILINE)) == 1, log
    assert "Traceback" not in log and "SLURM auto-requeueing" not in log
    preempted = _weights()
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    monkeypatch.setattr(sys, "argv", ["sttabt", *DEBUG, *TRAINING])
    main()
    assert _weights() == preempted and preempted


def test_a_machine_that_cannot_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    def mistake(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sttabt", "experiment=debug", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = mistake("hardware=slurm")
    if importlib.util.find_spec("submitit"):
        assert slurm.startswith("hardware=slurm needs SLURM's command sbatch, which is not here: start the sweep on a")
    else:
        assert slurm == 'hardware=slurm needs the package hydra-submitit-launcher: pip install "sttabt[launchers]"\n'
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    wanted = 'hardware=local_gpus needs the package ray: pip install "sttabt[launchers]"\n'
    assert mistake("hardware=local_gpus") == wanted


def test_progress_of_jobs_beside_each_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    progress = Progress(3)
    progress.start -= 60
    progress.one_ended(2, True)
    progress.one_ended(0, False)
    progress.one_ended(1, True)
    assert caplog.messages == [
        "job 3/3 done: 1 of 3 ended in 60 s, about 2 min left",
        "job 1/3 failed: 2 of 3 ended in 60 s, about 30 s left",
        "job 2/3 done: 3 of 3 ended in 60 s",
    ]


def test_jobs_that_take_no_cpu_are_refused() -> None:
    pytest.importorskip("ray")
    code, _, err = _run("hardware=local_cpus", *DEBUG, "hardware.threads=0")
    assert code == 2
    assert err == (
        "hydra.launcher.num_cpus=0 would begin all jobs at once: set it, or hardware.threads, to 1 or more\n"
    )
