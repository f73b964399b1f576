"""The data set: its task, and what images need of other settings. A source checks its own."""

from __future__ import annotations

import math

from sttabt.cli.checks.training import mixing, trainings
from sttabt.data.checks import check_classes
from sttabt.data.sources import find_source
from sttabt.errors import UserError
from sttabt.settings import DatasetSettings, Settings


def check_task(dataset: DatasetSettings) -> None:
    if dataset.task == "regression" and find_source(dataset.source).holds == "images":
        raise UserError("dataset.task=regression is for text: set dataset.task=classification for images")
    check_classes(dataset)


def check_images(settings: Settings) -> None:
    """Settings of images fit the channels; text has none of them."""
    dataset, model = settings.dataset, settings.model
    source = find_source(dataset.source)
    text = source.holds == "text"
    for node, mixed in mixing(settings):
        if mixed and text:
            training = next(training for name, training in trainings(settings) if name == node)
            setting = "mixup" if training.mixup else "cutmix"
            raise UserError(
                f"{node}.{setting}={getattr(training, setting)} blends images, which texts cannot be:"
                f" set {node}.{setting}=0"
            )
    if text:
        return
    if dataset.channels not in (1, 3):
        raise UserError(f"dataset.channels={dataset.channels} is out of range: images are grey (1) or coloured (3)")
    if "mean" not in source.reads:
        return
    for name in ("mean", "std"):
        key = f"model.{name}" if getattr(model, name) else f"dataset.{name}"
        values = getattr(model, name) or getattr(dataset, name)
        if len(values) != dataset.channels:
            raise UserError(
                f"{key}={values} has {len(values)} numbers: give one for each of {dataset.channels} channels"
            )
        if not all(math.isfinite(value) and (name == "mean" or value > 0) for value in values):
            raise UserError(f"{key}={values} is out of range: give finite numbers, standard deviations above 0")
