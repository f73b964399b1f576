"""Data sets: one file a source in `sources`; all give the same splits and the same kind of batch.

Imports no torch, so that settings can be checked before it is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    splits = source.load(settings, model or ModelSettings())
    if source.holds == "text":
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
