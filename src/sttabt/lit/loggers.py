"""Where metrics go: a CSV file a stage always, W&B or TensorBoard beside it.

One naming scheme everywhere: `<stage>/<name>` while a stage trains, `result/<field>` for the job's row (flat:
`result/macs/attention`), `tokens/<what>` for the tokens that were kept.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from sttabt.lit.logged import result_values, strips
from sttabt.report.gallery import Gallery, ImageGallery
from sttabt.report.rows import Row
from sttabt.settings import Settings
from sttabt.store.artifacts import MODEL_STAGES

if TYPE_CHECKING:
    from sttabt.lit.wandb_runs import WandbRuns
    from sttabt.store.job import Job

METRICS, TENSORBOARD = "metrics", "tensorboard"  # folders of a job


class ContinuedCSVLogger(CSVLogger):
    """A stage's metrics.csv, which a resumed training continues where it lies in the same folder."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.before: list[dict[str, Any]] = []
        file = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE  # which Lightning deletes when it first logs
        if file.is_file():
            with file.open(newline="", encoding="utf-8", errors="replace") as rows:
                self.before = [row for row in csv.DictReader(rows) if str(row.get("step")).isdecimal()]

    @rank_zero_only
    def continue_from(self, step: int) -> None:
        """Keeps what was logged before that step; what came after it comes again."""
        kept = [{name: value for name, value in row.items() if value} for row in self.before]
        self.experiment.metrics[:0] = [row for row in kept if int(row["step"]) < step]


class JobLoggers:
    """The loggers of one job; use as a context, so that what it began ends with it."""

    def __init__(self, settings: Settings, job: Job) -> None:
        self.kind, self.output = settings.logger.kind, Path(settings.paths.output)
        self.config = {**asdict(settings), "job": asdict(job)}
        self.wandb: WandbRuns | None = None
        if self.kind.startswith("wandb"):
            from sttabt.lit.wandb_runs import WandbRuns

            self.wandb = WandbRuns(settings, job, self.config)

    def __enter__(self) -> JobLoggers:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self.wandb is not None:
            self.wandb.finish(failed=error is not None)

    @contextmanager
    def making(self, stage: str, folder: Path) -> Iterator[list[Any]]:
        """While this job makes the artifact in `folder`: Lightning's loggers for it, [] where nothing is logged.

        In W&B it is a run of its own, with what the artifact is made from and the artifact that it gives.
        """
        if self.kind == "none" or stage not in MODEL_STAGES:
            yield []
            return
        loggers: list[Any] = [ContinuedCSVLogger(self.output, name=METRICS, version=stage)]
        if self.kind == "tensorboard":
            loggers.append(TensorBoardLogger(self.output, name=TENSORBOARD, version=stage, default_hp_metric=False))
        if self.wandb is None:
            yield loggers
        else:
            with self.wandb.making(stage, folder) as logger:
                yield [*loggers, logger]

    def result(self, row: Row, gallery: Gallery | None, artifacts: Mapping[str, Path]) -> None:
        """The job's row, the tokens it kept, and the artifacts, by stage, that its model is made of."""
        if self.wandb is not None:
            self.wandb.result(row, gallery, artifacts)
        elif self.kind == "tensorboard":
            board = TensorBoardLogger(self.output, name=TENSORBOARD, version="result", default_hp_metric=False)
            numbers = {name: value for name, value in result_values(row).items() if isinstance(value, int | float)}
            board.log_hyperparams(self.config, numbers)
            if isinstance(gallery, ImageGallery):
                for index, (strip, caption) in enumerate(strips(gallery)):
                    board.experiment.add_image(f"tokens/{index}: {caption}", strip, dataformats="HWC")
            board.finalize("success")
