"""The model under its method, brought to a budget: the value of the method's dial, found on validation data.

Of a method that trains the untrained model is asked first: what it keeps at the budget is what training aims at. The
trained model is asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import Subset

from sttabt.core.budget import Calibration
from sttabt.data.base import evaluation_loader
from sttabt.models.budget import calibrate
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.descriptions import method_of, without
from sttabt.pipeline.result import device_name
from sttabt.pipeline.samples import BATCHES_RANKED, dealt, even_sample, ranked_by_sureness
from sttabt.pipeline.stage import Artifact, Context, Made, Stage
from sttabt.settings import MethodSettings

OF_TIME = ("batch", "rounds", "baseline")  # settings that decide nothing but how time is measured


class BudgetStage(Stage):
    """model: under its method, as it is; `read` turns its dial. aimed: settings that were found for its training."""

    name = "budget"
    asked_by = "prune"
    computation = 1

    def __init__(
        self,
        context: Context,
        made_of: Mapping[str, Artifact],
        model: PrunedModel,
        aimed: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(context, made_of)
        self.model, self.aimed = model, dict(aimed or {})

    def description(self) -> dict[str, Any]:
        """Of time also the machine, and the code: what computes the same may take another time."""
        settings, context = self.settings, self.context
        budget, sparsity = asdict(settings.budget), settings.sparsity
        described: dict[str, Any] = {
            **self.keys,
            "sparsity": without(method_of(settings), "training", "schedules", sparsity.dial_name() or ""),
            "dataset": self.data,
            "batch_size": settings.evaluation.batch_size,
            "fast_dev_run": settings.fast_dev_run,
            "computation": {"stage": self.computation, "method": sparsity.computation},
        }
        if settings.budget.macs:
            return described | {"asked": {"macs": budget["macs"], "samples": budget["samples"]}}
        machine = {"device": device_name(context.device), "threads": torch.get_num_threads()}
        asked = {name: budget[name] for name in ("time", *OF_TIME)}
        return described | {"asked": asked | machine | {"commit": context.job.commit}}

    def make(self, folder: Path, loggers: list[Any]) -> Made:
        if not self.context.nodes.first:
            return Made()
        model = self.model.to(self.context.device)
        found = calibrate(model, self._batches(model), self.settings.budget, self._more)
        settings = self.settings.sparsity.at_budget | self.aimed | {found.dial: found.value}
        return Made(notes={"calibration": asdict(found), "found": settings})

    def read(self, artifact: Artifact) -> MethodSettings:
        """The settings of the method at the budget; the model has them from then on."""
        found = Calibration(**artifact.notes["calibration"])
        self.model.method.settings = replace(self.settings.sparsity, **artifact.notes["found"])
        self.model.calibration = found
        return self.model.method.settings

    @property
    def _more(self) -> str:
        """What a user can do where the samples say little of others."""
        budget, there = self.settings.budget, len(self.context.splits.validation)  # type: ignore[arg-type]
        if budget.time or self.settings.fast_dev_run:
            return ""  # of a cascade as many go on as of all; a trial run says nothing anyway
        return "budget.samples=0 counts all of validation" if 0 < budget.samples < there else "validation has no more"

    def _batches(self, model: PrunedModel) -> list[Any]:
        """Inputs of validation samples: a batch as it is timed, or batches as they are evaluated."""
        settings, validation = self.settings, self.context.splits.validation
        budget, size = settings.budget, settings.evaluation.batch_size
        samples = budget.samples or len(validation)  # type: ignore[arg-type]
        if settings.fast_dev_run:
            samples = min(samples, settings.fast_dev_run * size)
        chosen: list[Subset]
        if budget.macs:
            chosen = [even_sample(validation, samples)]
        elif ranked := ranked_by_sureness(model, validation, size):
            size = budget.batch
            chosen = dealt(validation, ranked, size, BATCHES_RANKED)
        else:
            size = budget.batch
            chosen = [even_sample(validation, size)]
        loaders = (evaluation_loader(part, size, settings.hardware.workers) for part in chosen)
        return [move_data_to_device(batch.inputs, self.context.device) for loader in loaders for batch in loader]


def aimed_settings(stage: BudgetStage, artifact: Artifact) -> tuple[Any, dict[str, Any]]:
    """The settings to train with for the budget that the untrained model was asked for, and those of them that are new.

    Of artifacts that `stage` made of the untrained model.
    """
    before, found = stage.settings.sparsity, Calibration(**artifact.notes["calibration"])
    aimed = before.aimed(found.value, found.kept)
    new = {each.name: getattr(aimed, each.name) for each in fields(before)}
    return aimed, {name: value for name, value in new.items() if value != getattr(before, name)}
