"""The data set: its task, and what images need of other settings. A source checks its own."""

from __future__ import annotations

import math

from sttabt.cli.checks.training import mixing, trainings
from sttabt.data.sources import find_source
from sttabt.errors import UserError
from sttabt.settings import METRICS, DatasetSettings, Settings


def check_task(dataset: DatasetSettings) -> None:
    if dataset.task == "regression" and find_source(dataset.source).holds == "images":
        raise UserError("dataset.task=regression is for text: set dataset.task=classification for images")
    if dataset.metric not in METRICS[dataset.task]:
        fitting = " or ".join(METRICS[dataset.task])
        raise UserError(f"dataset.metric={dataset.metric} is not for dataset.task={dataset.task}: set it to {fitting}")
    if dataset.task == "regression" and dataset.classes != 1:
        raise UserError(f"dataset.classes={dataset.classes}: a score is one number, set dataset.classes=1")
    if dataset.task == "classification" and dataset.classes < 2:
        raise UserError(f"dataset.classes={dataset.classes} is out of range: it must be at least 2")
    if dataset.metric == "top5" and dataset.classes <= 5:
        raise UserError(f"dataset.metric=top5 says nothing of dataset.classes={dataset.classes}: set accuracy")
    if dataset.metric == "f1" and dataset.classes != 2:
        raise UserError(f"dataset.metric=f1 is for two classes, not dataset.classes={dataset.classes}: set accuracy")


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
