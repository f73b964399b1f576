"""Where metrics go: a CSV file a stage, and one W&B run a job."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, WandbLogger

from sttabt.settings import Settings

log = logging.getLogger(__name__)


class JobLoggers:
    """The loggers of one job; use as a context, so that a W&B run ends with its job."""

    def __init__(self, settings: Settings, group: str, config: dict[str, Any]) -> None:
        self.kind, self.output = settings.logger.kind, Path(settings.paths.output)
        self.wandb: WandbLogger | None = None
        if self.kind.startswith("wandb"):
            import wandb

            self.output.mkdir(parents=True, exist_ok=True)
            self.wandb = WandbLogger(
                project=settings.logger.project,
                save_dir=self.output,
                offline=_offline(self.kind),
                group=group,
                job_type=settings.sparsity.method,
                tags=[settings.name, settings.model.name, settings.dataset.name],
                config=config,
                settings=wandb.Settings(silent=True),  # a banner and a summary a job would bury the suite's own lines
            )

    def __enter__(self) -> JobLoggers:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self.wandb is not None:
            import wandb

            wandb.finish(exit_code=0 if error is None else 1)

    def of_stage(self, stage: str) -> list[Any]:
        """Lightning loggers for a stage; [] switches logging off."""
        if self.kind == "none":
            return []
        loggers: list[Any] = [CSVLogger(self.output, name="metrics", version=stage)]
        return loggers if self.wandb is None else [*loggers, self.wandb]

    def summarise(self, values: dict[str, Any]) -> None:
        """The job's final numbers, where W&B shows a run's summary."""
        if self.wandb is not None:
            self.wandb.experiment.summary.update(values)


def _offline(kind: str) -> bool:
    if kind == "wandb_offline":
        return True
    if os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").exists():
        return False
    log.warning("logger=wandb_online needs an API key (run `wandb login`): logging offline instead, sync later")
    return True
