"""One file a source; all give the same splits and the same kind of batch."""

from __future__ import annotations

import importlib

from sttabt.data.base import Splits
from sttabt.errors import UserError, nearest
from sttabt.settings import SOURCES, DatasetSettings, ModelSettings


def load_splits(settings: DatasetSettings, model: ModelSettings | None = None) -> Splits:
    """Train, validation and test data of `dataset.source`; text is tokenised for `model`, images need none.

    Raises UserError naming what does not fit.
    """
    if settings.source not in SOURCES:
        raise UserError(f"dataset.source={settings.source} is unknown: {nearest(settings.source, SOURCES)}")
    splits = importlib.import_module(f"{__name__}.{settings.source}").load(settings, model or ModelSettings())
    if SOURCES[settings.source] == "text":
        return splits
    if len(splits.class_names) != settings.classes:
        raise UserError(
            f"dataset.classes={settings.classes} but the data has {len(splits.class_names)} classes:"
            f" set dataset.classes={len(splits.class_names)}"
        )
    found = tuple(splits.test[0].inputs.shape)
    if found != (settings.channels, settings.image_size, settings.image_size):
        raise UserError(
            f"dataset.channels={settings.channels}, dataset.image_size={settings.image_size}: the images of"
            f" {settings.name} have shape {found}, set dataset.channels={found[0]}"
        )
    return splits
