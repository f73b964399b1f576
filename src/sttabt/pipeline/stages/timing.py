"""The times of a result, which are kept apart from its scores: a quieter hour asks for them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.descriptions import TIMING
from sttabt.pipeline.evaluation import computing_in
from sttabt.pipeline.result import measure_time
from sttabt.pipeline.stage import Artifact, Made, Stage
from sttabt.report.rows import Row, with_times


class TimingStage(Stage):
    """result: the stage of the result whose times these are."""

    name = "timing"
    asked_by = "evaluate"
    computation = 1

    def __init__(self, result: Stage, model: PrunedModel) -> None:
        super().__init__(result.context, result.made_of)
        self.result, self.model = result, model

    def description(self) -> dict[str, Any]:
        """Also of the code: what computes the same may take another time."""
        timing = {name: getattr(self.settings.evaluation, name) for name in TIMING}
        return {
            **self.result.description(),
            "timing": timing | {"computation": self.computation, "commit": self.context.job.commit},
        }

    def make(self, folder: Path, loggers: list[Any]) -> Made:
        evaluation, context = self.settings.evaluation, self.context
        sizes = evaluation.timing_batch, evaluation.timing_rounds
        with computing_in(evaluation.precision, context.device):
            tested = getattr(context.splits, evaluation.split)
            times, baseline = measure_time(self.model.to(context.device), tested, *sizes)
        return Made(notes={"time": times, "baseline": baseline})

    def read(self, artifact: Artifact, row: Row) -> Row:
        """`row` with these times. Raises ValueError for a record that does not hold what a row says of time."""
        return with_times(row, artifact.notes)
