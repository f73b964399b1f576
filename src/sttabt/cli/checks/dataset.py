"""The data set: its task, and what texts and images need."""

from __future__ import annotations

import codecs
import math

from sttabt.cli.checks.training import mixing, trainings
from sttabt.errors import UserError
from sttabt.settings import METRICS, SOURCES, DatasetSettings, Settings


def check_task(dataset: DatasetSettings) -> None:
    if dataset.task == "regression" and SOURCES[dataset.source] == "images":
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


def check_text(dataset: DatasetSettings) -> None:
    if len(dataset.columns) not in (1, 2):
        raise UserError(f"dataset.columns={dataset.columns}: name one column of text, or two that are read together")
    if not dataset.label_column:
        raise UserError("dataset.label_column is missing: give dataset.label_column=NAME, the column of labels")
    named = [*dataset.columns, dataset.label_column]
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"dataset.columns, dataset.label_column: '{name}' is named twice: name each column once")
        if not dataset.header and not name.isdecimal():
            raise UserError(
                f"dataset.columns, dataset.label_column: '{name}' is no number, but dataset.header=false:"
                " name columns 0, 1, ..."
            )
    if dataset.max_tokens < 1:
        raise UserError(f"dataset.max_tokens={dataset.max_tokens} is out of range: it must be at least 1 for text")
    if dataset.class_names and len(dataset.class_names) != dataset.classes:
        raise UserError(
            f"dataset.class_names={dataset.class_names} are {len(dataset.class_names)} names for"
            f" dataset.classes={dataset.classes}: give as many"
        )
    if dataset.positive_above is not None and (dataset.task, dataset.classes) != ("classification", 2):
        raise UserError(
            f"dataset.positive_above={dataset.positive_above} makes two classes: set dataset.task=classification and"
            " dataset.classes=2, or dataset.positive_above=null"
        )
    try:
        codecs.lookup(dataset.encoding)
    except LookupError as error:
        raise UserError(f"dataset.encoding={dataset.encoding} is unknown: set utf-8, latin-1, cp1252, ...") from error


def check_images(settings: Settings) -> None:
    """Settings of images fit the channels; text has none of them."""
    dataset, model = settings.dataset, settings.model
    text = SOURCES[dataset.source] == "text"
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
    if dataset.source == "digits":
        return
    for name in ("mean", "std"):
        key = f"model.{name}" if getattr(model, name) else f"dataset.{name}"
        values = getattr(model, name) or getattr(dataset, name)
        if len(values) != dataset.channels:
            raise UserError(
                f"{key}={values} has {len(values)} numbers: give one for each of {dataset.channels} channels"
            )
        if not all(math.isfinite(value) and (name == "mean" or value > 0) for value in values):
            raise UserError(f"{key}={values} is out of range: give finite numbers, deviations above 0")
