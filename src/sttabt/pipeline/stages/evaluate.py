"""The result row of a model on the split that is asked for, its predictions, and the images or texts of its gallery."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sttabt.data.sources import find_source
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.descriptions import TIMING, data_of, hash_of_tested, method_of, without
from sttabt.pipeline.evaluation import computing_in, gallery
from sttabt.pipeline.result import device_name, make_row
from sttabt.pipeline.stage import Artifact, Context, Made, Stage
from sttabt.report.gallery import GALLERY_FILE, Gallery, read_gallery
from sttabt.report.predictions import PREDICTIONS_FILE, read_predictions
from sttabt.report.rows import ROW_FILE, Row
from sttabt.settings import Settings
from sttabt.settings.run import PRECISIONS, SPLITS
from sttabt.store.artifacts import fingerprint


class EvaluateStage(Stage):
    """averaged: the same model with averaged weights, which are measured beside the last ones."""

    name = "evaluate"
    computation = 1

    def __init__(
        self, context: Context, made_of: Mapping[str, Artifact], model: PrunedModel, averaged: PrunedModel | None
    ) -> None:
        super().__init__(context, made_of)
        self.model, self.averaged = model, averaged

    def description(self) -> dict[str, Any]:
        """Also of what measures, and of what a row calls things."""
        settings, evaluation = self.settings, asdict(self.settings.evaluation)
        as_ever = {"precision": PRECISIONS[0], "split": SPLITS[0]}  # results that do not say it are older
        unsaid = [name for name, value in as_ever.items() if evaluation[name] == value]
        named = {"name": settings.dataset.name, "metric": settings.dataset.metric}
        return {
            **self.keys,
            "model": settings.model.name,
            "dataset": data_of(settings, self.context.contents, tested=True) | named,
            "sparsity": method_of(settings),
            "evaluation": without(evaluation, *TIMING, *unsaid),
            "experiment": settings.name,
            "hardware": {"device": device_name(self.context.device), "threads": torch.get_num_threads()},
            "computation": {"stage": self.computation, "method": settings.sparsity.computation},
            "seed": settings.seed,
            "fast_dev_run": settings.fast_dev_run,
        }

    def make(self, folder: Path, loggers: list[Any]) -> Made:
        context, settings = self.context, self.settings
        for model in filter(None, (self.model, self.averaged)):
            model.to(context.device)
        notes = {stage: artifact.notes for stage, artifact in self.made_of.items()}
        key, size = fingerprint(self.description()), settings.evaluation.gallery
        with computing_in(settings.evaluation.precision, context.device):
            row, predictions = make_row(self.model, self.averaged, context.splits, settings, context.job, key, notes)
            shown = (context.splits, context.task, size, _words(settings), settings.evaluation.split)
            kept = gallery(self.model, *shown) if size else None
        predictions.write(folder / PREDICTIONS_FILE)
        if kept is not None:
            kept.write(folder / GALLERY_FILE)
        replace(row, data=hash_of_tested(settings, context.contents)).write(folder / ROW_FILE)
        return Made()

    def read(self, artifact: Artifact) -> tuple[Row, Gallery | None]:
        """The row, without times, and the images or texts where there are any.

        Raises:
            ValueError: one of its files is damaged.
            OSError: one is missing or cannot be read.
        """
        folder = artifact.folder
        if os.path.lexists(folder / PREDICTIONS_FILE):  # older results have none
            read_predictions(folder)
        tokens = folder / GALLERY_FILE
        return Row.read(folder / ROW_FILE), read_gallery(tokens) if os.path.lexists(tokens) else None


def _words(settings: Settings) -> Callable[[Tensor], list[str]] | None:
    """What turns a text's vocabulary places into words; None for images."""
    if find_source(settings.dataset.source).holds != "text":
        return None
    from sttabt.data.text import load_tokenizer  # transformers takes seconds to import

    tokenizer = load_tokenizer(settings.model, settings.dataset.max_tokens)
    return lambda ids: tokenizer.convert_ids_to_tokens(ids.tolist())
