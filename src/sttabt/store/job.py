"""Who this job is: its command line, its sweep, and the code that runs it."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


@dataclass(frozen=True)
class Job:
    """command: a command line that repeats the job; sweep: the same for all jobs of a multirun."""

    command: str
    sweep: str
    multirun: bool
    commit: str


def current_job() -> Job:
    """The job that Hydra is running."""
    config = HydraConfig.get()
    multirun = config.mode == RunMode.MULTIRUN
    folder = Path(config.sweep.dir if multirun else config.run.dir)
    overrides = shlex.join(config.overrides.task)
    mode = " hydra.mode=RUN" if multirun else ""  # an experiment may be a multirun by itself
    return Job(f"python -m sttabt.run {overrides}{mode}", folder.name, multirun, source_commit())


def source_commit() -> str:
    """The git commit of the checkout that this package runs from, with '+' when it has changes; '' outside one."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""  # installed from a wheel, or no git
    return found.stdout.strip()
