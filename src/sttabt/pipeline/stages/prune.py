"""The base model, trained under a method that has weights of its own or changes the base's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.lit.modules import Pruning
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.descriptions import method_of, training_of_stage
from sttabt.pipeline.stage import Artifact, Context, Made, Stage
from sttabt.store.artifacts import AVERAGED


class PruneStage(Stage):
    """model: under its method, untrained; `make` trains it. teacher: the base model, of which a copy stays as it is."""

    name = "prune"
    computation = 1

    def __init__(
        self, context: Context, made_of: Mapping[str, Artifact], model: PrunedModel, teacher: Backbone
    ) -> None:
        super().__init__(context, made_of)
        self.model, self.teacher = model, teacher

    def description(self) -> dict[str, Any]:
        context = training_of_stage(self.settings, self.name)
        own = method_of(self.settings) | {"training": context.pop("training")}
        computation = {"stage": self.computation, "method": self.settings.sparsity.computation}
        return {**self.keys, "sparsity": own, "dataset": self.data, "computation": computation, **context}

    def make(self, folder: Path, loggers: list[Any]) -> Made:
        module = Pruning(self.model, self.teacher, self.settings.sparsity, self.context.task)
        notes = self.train(module, self.context.splits, folder, loggers)
        averaged = {} if module.averaged is None else module.averaged.module.state_dict()
        notes["class_names"] = list(self.context.splits.class_names)
        return Made(self.model.state_dict() | {AVERAGED + name: value for name, value in averaged.items()}, notes)

    def read(self, artifact: Artifact) -> tuple[PrunedModel, PrunedModel | None]:
        """The trained model in evaluation mode, and the same with averaged weights where `sparsity.ema` kept some."""
        last: dict[str, Tensor] = {}
        averages: dict[str, Tensor] = {}
        for name, value in artifact.tensors.items():
            (averages if name.startswith(AVERAGED) else last)[name.removeprefix(AVERAGED)] = value
        self.model.load_state_dict(last, strict=True)
        if not self.settings.sparsity.ema:
            return self.model.eval(), None
        averaged = copy.deepcopy(self.model).eval()
        averaged.load_state_dict(averages, strict=True)
        return self.model.eval(), averaged
