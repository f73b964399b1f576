"""The dense base model: trained here, from its start or from given weights, or given weights as they are."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from sttabt.backbones.base import Backbone
from sttabt.errors import UserError
from sttabt.lit.modules import BaseTraining
from sttabt.pipeline.descriptions import training_of_stage, weights_of
from sttabt.pipeline.stage import Artifact, Made, Stage
from sttabt.pipeline.start import load_given, new_base
from sttabt.pretrained.built import Built
from sttabt.pretrained.classes import ClassNames, class_order, names_beside, order_head


class BaseStage(Stage):
    name = "base"
    computation = 1

    @cached_property
    def _built(self) -> Built:
        return new_base(self.context, self.settings.dataset.classes)

    @cached_property
    def class_order(self) -> list[int] | None:
        """Which row of the given head is that of each of the data's classes; None: they are in order, or not known.

        Raises UserError where the given weights are for other classes.
        """
        model, splits = self.settings.model, self.context.splits
        if not (model.pretrained or model.checkpoint) or self._built.new_head:
            return None
        theirs = self._built.classes if model.pretrained else names_beside(Path(model.checkpoint))
        if model.class_names:
            theirs = ClassNames(tuple(model.class_names), f"model.class_names={model.class_names}")
        return class_order(theirs, splits.class_names, model.fine_tune)

    @cached_property
    def model(self) -> Backbone:
        """As it starts; `make` trains it. Raises UserError when its head would guess."""
        classes = self.settings.dataset.classes
        base, new_head = self._built.base, self._built.new_head
        if new_head and not self.settings.model.fine_tune:
            raise UserError(
                f"model.pretrained=true gives no head for dataset.classes={classes}, so that it would guess:"
                " set model.fine_tune=true"
            )
        return base

    @property
    def trains(self) -> bool:
        model = self.settings.model
        return model.fine_tune or not (model.checkpoint or model.pretrained)

    def description(self) -> dict[str, Any]:
        described = weights_of(self.settings) | {"classes": self.settings.dataset.classes}
        described["computation"] = self.computation
        if self.class_order:
            described["class_order"] = self.class_order
        if self.trains:
            described |= {**training_of_stage(self.settings, self.name), "dataset": self.data}
        return described

    def make(self, folder: Path, loggers: list[Any]) -> Made:
        kept = load_given(self.model, self.settings, new_head=self.settings.model.fine_tune)
        if self.class_order and not kept:
            order_head(self.model, self.class_order)
        notes: dict[str, Any] = {}
        if self.trains:
            module = BaseTraining(self.model, self.settings.model.training, self.context.task)
            notes = self.train(module, self.context.splits, folder, loggers)
        return Made(self.model.state_dict(), notes | {"class_names": list(self.context.splits.class_names)})

    def read(self, artifact: Artifact) -> Backbone:
        """The base model in evaluation mode."""
        self.model.load_state_dict(artifact.tensors, strict=True)
        return self.model.eval()
