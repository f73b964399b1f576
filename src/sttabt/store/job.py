"""Who this job is: its command line, its sweep, and the code that runs it."""

from __future__ import annotations

import os
import shlex
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

CONFIG_NAME = "config"
PACKAGE = "sttabt"
# Hydra's own settings that say where a job is written and what starts it, not what it does.
OF_THE_START = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra.sweeper", "hydra/sweeper", "hydra.launcher",
                "hydra/launcher", "hydra.output_subdir", "hydra.verbose")  # fmt: skip


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
    given = [override for override in config.overrides.hydra if not _of_the_start(override)]
    # RUN: an experiment may be a sweep by itself.
    own = [*_options(config), *config.overrides.task, *given, "hydra.mode=RUN"]
    return Job(shlex.join(["python", "-m", "sttabt.run", *own]), folder.name, multirun, source_commit())


def source_commit() -> str:
    """The git commit of the checkout that this package runs from, with '+' when it has changes; '' outside one.

    Another repository, in whose folder the package is installed or copied, is not that checkout.
    """
    root = Path(__file__).resolve().parents[3]
    if not _is_source(root):
        return ""
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return ""
        return _git(root, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return ""  # no repository, or no git


def _options(config: HydraConf) -> list[str]:
    """The options that say where the yaml files are, unless they are this package's own."""
    found = {source.provider: source.path for source in config.runtime.config_sources}
    options = []
    if (folder := found.get("command-line")) is not None:
        options += ["--config-dir", folder]
    if (folder := found["main"]) != _own_config_folder():
        options += ["--config-path", folder]
    if config.job.config_name != CONFIG_NAME:
        options += ["--config-name", str(config.job.config_name)]
    return options


def _own_config_folder() -> str:
    from sttabt.cli.composition import config_folder

    return str(config_folder())


def _of_the_start(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return any(key == name or key.startswith((f"{name}.", f"{name}@")) for name in OF_THE_START)


def _is_source(root: Path) -> bool:
    """Whether the folder is this package's source tree."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return False
    return project.get("name") == PACKAGE


def _git(folder: Path, *arguments: str) -> str:
    # GIT_DIR and the like, as a hook has them, speak of another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    found = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return found.stdout.strip()
