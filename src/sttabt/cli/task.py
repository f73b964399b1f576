"""What Hydra runs: one job. A module of its own, so that launchers find it by name in other processes."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from sttabt.cli.checks.effects import without_effect
from sttabt.cli.composition import read_job, read_settings
from sttabt.cli.job import current_job
from sttabt.cli.messages import MISTAKES, explain
from sttabt.errors import TERMINATED, UserError
from sttabt.system.faults import system_fault
from sttabt.system.signals import Stopped, check, tell_results

log = logging.getLogger(__name__)


class CheckBeforeRun(Callback):
    """Checks a single run before Hydra makes its folder; a sweep checks all its jobs itself."""

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        """Raises SystemExit from the mistake: of an Exception in a callback Hydra makes a warning."""
        try:
            read_job(config, config.hydra.run.dir)
        except MISTAKES as mistake:
            raise SystemExit(2) from mistake
        tell_results(Path(config.hydra.run.dir))


def run_task(config: DictConfig) -> None:
    """Check the settings, then go through the stages.

    Raises SystemExit from a mistake in a single run, where Hydra would add lines of its own to any Exception.
    """
    hydra = HydraConfig.get()
    sweeping = hydra.mode == RunMode.MULTIRUN
    try:
        settings = read_settings(config)
        if not sweeping:  # a sweep has said so of all its jobs
            for line in without_effect(settings, hydra.overrides.task):
                log.warning(line)
        # Imported after the checks: torch, lightning and timm take seconds to load.
        from sttabt.pipeline.stages import run_stages

        run_stages(settings, current_job())
    except Stopped:
        raise
    except SystemExit as stop:
        # Lightning ends with exit code 0 when a signal stops it.
        raise SystemExit(stop.code or TERMINATED) from stop
    except Exception as error:
        check()  # else what a signal broke would be a failure
        mistake = _mistake(error)
        if mistake is None:
            if sweeping:
                log.exception("the job failed")
            raise
        if not sweeping:
            raise SystemExit(2) from mistake
        log.error(explain(mistake))
        if mistake is error:
            raise
        raise mistake from error
    finally:
        if sweeping:
            gc.collect()  # a trainer and its module know each other: both would stay for many jobs of this process


def _mistake(error: Exception) -> Exception | None:
    """What the user can mend: of a fault of the system a UserError, as another process may have to tell it."""
    if isinstance(error, MISTAKES):
        return error
    if (fault := system_fault(error)) is None:
        return None
    mistake = UserError(fault)
    mistake.__cause__ = error
    return mistake
