"""Data sets: one file a source in `sources`; all give the same splits and the same kind of batch.

Imports no torch, so that settings can be checked before it is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sttabt.data.checks import check_classes
from sttabt.data.sources import find_source
from sttabt.errors import UserError
from sttabt.settings import DatasetSettings, ModelSettings

if TYPE_CHECKING:
    from sttabt.data.base import Splits


def load_splits(settings: DatasetSettings, model: ModelSettings | None = None) -> Splits:
    """Train, validation and test data of `dataset.source`; text is tokenised for `model`, images need none.

    Raises UserError naming what does not fit.
    """
    source = find_source(settings.source)
    if not settings.classes:
        settings = replace(settings, classes=_said(settings))
    splits = source.load(settings, model or ModelSettings())
    if len(splits.class_names) == 1:
        raise UserError(
            f"{settings.name} has one class alone, {splits.class_names[0]}: give two at least, of images a folder or a"
            " label each"
        )
    if not settings.classes:
        check_classes(counted(settings, splits))
    if source.holds == "text":
        return splits
    if settings.classes and len(splits.class_names) != settings.classes:
        raise UserError(
            f"dataset.classes={settings.classes} but the data has {len(splits.class_names)} classes:"
            f" set dataset.classes={len(splits.class_names)}, or leave it out"
        )
    found = tuple(splits.test[0].inputs.shape)
    if found != (settings.channels, settings.image_size, settings.image_size):
        raise UserError(
            f"dataset.channels={settings.channels}, dataset.image_size={settings.image_size}: the images of"
            f" {settings.name} have shape {found}, set dataset.channels={found[0]}"
        )
    return splits


def counted(settings: DatasetSettings, splits: Splits) -> DatasetSettings:
    """The settings with as many `classes` as the splits have; 1 for scores, which have no names."""
    return replace(settings, classes=len(splits.class_names) or settings.classes or 1)


def _said(settings: DatasetSettings) -> int:
    """How many classes other settings say that there are; 0: none of them does."""
    if settings.task == "regression":
        return 1
    return 2 if settings.positive_above is not None else len(settings.class_names)
