"""Which job Hydra is running, and the command line that repeats it."""

from __future__ import annotations

import shlex
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from sttabt.cli.composition import config_folder
from sttabt.store.job import Job, source_commit

CONFIG_NAME = "config"
# Hydra's own settings that say where a job is written and what starts it, not what it does.
OF_THE_START = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra.sweeper", "hydra/sweeper", "hydra.launcher",
                "hydra/launcher", "hydra.output_subdir", "hydra.verbose")  # fmt: skip


def current_job() -> Job:
    """The job that Hydra is running."""
    config = HydraConfig.get()
    multirun = config.mode == RunMode.MULTIRUN
    folder = Path(config.sweep.dir if multirun else config.run.dir)
    given = [override for override in config.overrides.hydra if not _of_the_start(override)]
    # RUN: an experiment may be a sweep by itself.
    own = [*_options(config), *config.overrides.task, *given, "hydra.mode=RUN"]
    return Job(shlex.join(["python", "-m", "sttabt.run", *own]), folder.name, multirun, source_commit())


def _options(config: HydraConf) -> list[str]:
    """The options that say where the yaml files are, unless they are this package's own."""
    found = {source.provider: source.path for source in config.runtime.config_sources}
    options = []
    if (folder := found.get("command-line")) is not None:
        options += ["--config-dir", folder]
    if (folder := found["main"]) != str(config_folder()):
        options += ["--config-path", folder]
    if config.job.config_name != CONFIG_NAME:
        options += ["--config-name", str(config.job.config_name)]
    return options


def _of_the_start(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return any(key == name or key.startswith((f"{name}.", f"{name}@")) for name in OF_THE_START)
