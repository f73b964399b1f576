"""One file a source; all give the same splits and the same batch."""

from __future__ import annotations

import importlib
import pkgutil

from sttabt.data.base import Splits
from sttabt.errors import UserError, nearest
from sttabt.settings import DatasetSettings, ModelSettings


def source_names() -> list[str]:
    """Every source there is, found by walking this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load_splits(settings: DatasetSettings) -> Splits:
    """Train, validation and test images of `dataset.source`; raises UserError naming what does not fit."""
    if settings.source not in source_names():
        raise UserError(f"dataset.source={settings.source} is unknown: {nearest(settings.source, source_names())}")
    splits = importlib.import_module(f"{__name__}.{settings.source}").load(settings)
    if len(splits.class_names) != settings.classes:
        raise UserError(
            f"dataset.classes={settings.classes} but the data has {len(splits.class_names)} classes:"
            f" set dataset.classes={len(splits.class_names)}"
        )
    found = tuple(splits.validation[0].inputs.shape)
    if found != (settings.channels, settings.image_size, settings.image_size):
        raise UserError(
            f"dataset.channels={settings.channels}, dataset.image_size={settings.image_size}: the images of"
            f" {settings.name} have shape {found}, set dataset.channels={found[0]}"
        )
    return splits


def load_corpus(corpus: str, dataset: DatasetSettings, model: ModelSettings) -> Splits:
    """Unlabelled data at `corpus` as the model of this data set reads them; train and validation alone are used."""
    source = importlib.import_module(f"{__name__}.{dataset.source}")
    if not hasattr(source, "load_corpus"):
        raise UserError(
            f"approx.corpus={corpus}: dataset.source={dataset.source} reads no unlabelled data, set"
            " approx.start=interpolated"
        )
    return source.load_corpus(corpus, dataset, model)
