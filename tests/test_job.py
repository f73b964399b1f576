"""What a row says of its job: a command that repeats it, and the commit of this package's own code."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig

import sttabt.pipeline.stages
from sttabt.cli.composition import config_folder
from sttabt.run import main
from sttabt.store import job
from sttabt.store.job import Job, source_commit

pytestmark = pytest.mark.usefixtures("own_folder")

REPOSITORY = Path(__file__).parents[1]
MINE = "# @package _global_\ndefaults: [debug]\nname: mine\nseed: 3\n"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command line up to its stages: what each job is given, and Hydra's settings of it."""
    begun: list[tuple[dict[str, Any], Job, Any]] = []

    def begin(settings: Any, own: Job) -> None:
        values = asdict(settings)
        del values["paths"]["output"]  # each job has its own
        hydra = HydraConfig.get()
        begun.append((values, own, (hydra.job.env_set, hydra.job.chdir, hydra.job.config_name)))

    monkeypatch.setattr(sttabt.pipeline.stages, "run_stages", begin)

    def go(*arguments: str) -> list[tuple[dict[str, Any], Job, Any]]:
        begun.clear()
        monkeypatch.setattr(sys, "argv", ["sttabt", *arguments])
        main()
        return list(begun)

    return go


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        (["experiment=debug"], 1),
        (["experiment=debug", 'name="a b"', "hydra.run.dir=here"], 1),
        (["experiment=debug", r"name='it\'s $HOME; #1 \"x\"'", "model.checkpoint=''"], 1),
        (["experiment=debug", "name=${oc.env:MY_NAME}"], 1),
        (["experiment=debug", "stages=[base,evaluate]", "+trainer.deterministic=true", "~trainer.deterministic"], 1),
        (["experiment=debug", "+hydra.job.env_set.MY_OTHER=2", "hydra.job.chdir=false", "hydra.verbose=false"], 1),
        (["-m", "experiment=debug", "seed=1,2", "name='a b','c=\"d\"'"], 4),
        (["-m", "experiment=debug", "seed=1,2", "hydra.sweep.dir=there", "+hydra.job.env_set.MY_OTHER=2"], 2),
        (["experiment=quickstart", "sparsity=random"], 4),
        (["experiment=quickstart", "sparsity=dense", "hydra.mode=RUN"], 1),
        (["--config-dir", "my files", "experiment=mine"], 1),
        (["-cd", "my files", "-m", "experiment=mine", "seed=1,2"], 2),
        (["--config-dir=my files", "experiment=mine", "seed=4"], 1),
        (["experiment=mine", "hydra.searchpath=[file://my files]"], 1),
        (["--config-path", "{copy}", "experiment=debug"], 1),
        (["-cp", "{copy}", "-cn", "other", "experiment=debug"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_the_command_of_a_job_repeats_it(arguments, jobs, run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MY_NAME", "from outside")
    (tmp_path / "my files" / "experiment").mkdir(parents=True)
    (tmp_path / "my files" / "experiment" / "mine.yaml").write_text(MINE)
    if any("{copy}" in argument for argument in arguments):
        copy = shutil.copytree(config_folder(), tmp_path / "copy of conf")
        (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("seed: 0", "seed: 5"))
        shutil.copy(copy / "config.yaml", copy / "other.yaml")
    first = run(*[argument.replace("{copy}", str(tmp_path / "copy of conf")) for argument in arguments])
    assert len(first) == jobs
    assert len({own.command for _, own, _ in first}) == jobs
    values, own, hydra = first[-1]
    program, *given = shlex.split(own.command)
    assert (program, given[:2]) == ("python", ["-m", "sttabt.run"])
    ((again, repeated, hydra_again),) = run(*given[2:])
    assert again == values and hydra_again == hydra
    assert repeated.command == own.command and not repeated.multirun
    assert "here" not in own.command and "there" not in own.command, "it would write over the first job"


def test_a_command_names_no_folder_of_its_own(run) -> None:
    ((_, own, _),) = run("experiment=debug")
    assert own.command == "python -m sttabt.run experiment=debug hydra.mode=RUN"


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def commit_all(folder: Path) -> str:
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all")
    return git(folder, "rev-parse", "--short=12", "HEAD").strip()


def put(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package stood there."""
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(job, "__file__", str(module))


def test_the_commit_is_the_checkouts(tmp_path, monkeypatch) -> None:
    put(tmp_path / "src" / "sttabt" / "store" / "job.py", monkeypatch)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "sttabt"\n')
    commit = commit_all(tmp_path)
    assert source_commit() == commit
    monkeypatch.setenv("GIT_DIR", str(REPOSITORY / ".git"))
    assert source_commit() == commit, "what git's own hooks say is of another repository"
    monkeypatch.delenv("GIT_DIR")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "sttabt"\nversion = "2"\n')
    assert source_commit() == f"{commit}+"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (".venv/lib/python3.11/site-packages/sttabt", "sttabt"),  # a wheel in a checkout of this very project
        (".venv/lib/python3.11/site-packages/sttabt", "theirs"),
        ("venv/lib/python3.11/site-packages/sttabt", "theirs"),
        ("src/sttabt", "theirs"),  # a copy
        ("vendor/sttabt/src/sttabt", "theirs"),
        ("sttabt", "theirs"),
    ],
)
def test_another_repository_is_not_the_packages(place, name, tmp_path, monkeypatch) -> None:
    put(tmp_path / place / "store" / "job.py", monkeypatch)
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    if place.startswith("vendor"):
        (tmp_path / "vendor" / "sttabt" / "pyproject.toml").write_text('[project]\nname = "sttabt"\n')
    commit_all(tmp_path)
    assert source_commit() == ""


def test_outside_of_any_repository_there_is_no_commit(tmp_path, monkeypatch) -> None:
    put(tmp_path / "src" / "sttabt" / "store" / "job.py", monkeypatch)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "sttabt"\n')
    assert source_commit() == ""
    monkeypatch.setenv("PATH", "")
    assert source_commit() == "", "no git"
