"""A saved model as a file: what its run's settings and data say goes into it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sttabt.api import load
from sttabt.core.text import Text
from sttabt.data import load_splits
from sttabt.data.base import Sequences, Splits
from sttabt.data.images import normalisation
from sttabt.errors import UserError
from sttabt.runtimes.exporting import Export, export
from sttabt.runtimes.formats import find_runtime
from sttabt.settings import AugmentationSettings, DatasetSettings, ModelSettings, TrainingSettings
from sttabt.store.artifacts import RECORD, read_record

BATCH = 32  # samples that are calibrated at once

log = logging.getLogger(__name__)


def export_saved(
    folder: Path,
    out: Path | None,
    format: str,
    counts: Sequence[int] | None,
    budget: float | None,
    samples: int,
    tokens: int | None,
    int8: bool,
    opset: int | None,
) -> Export:
    """The model of an artifact as a file (`sttabt.export`), calibrated on `samples` of its run's validation split.

    out: None: named after the artifact, in the current folder. Raises UserError as `sttabt.load` and `sttabt.export`
    do, and where the run's data are not there but needed.
    """
    runtime = find_runtime(format)
    runtime.check()
    pruned = load(folder)
    record = read_record(folder.absolute() / RECORD)
    dataset, model = _settings(record["notes"]["settings"])
    needed = (
        int8 or budget is not None or (counts is None and pruned.method.takes_counts and pruned.method.counts is None)
    )
    splits = _splits(dataset, model, needed)
    base = pruned.base
    if not base.may_pad:
        size = dataset.image_size
        mean, std = (splits.mean, splits.std) if splits else normalisation(dataset, model)
        preprocessing: dict[str, Any] = {
            **{"height": size, "width": size, "pixels": "0 to 1"},
            **{"mean": list(mean), "std": list(std)},
            **{"crop": model.crop, "interpolation": "bicubic"},
        }
    names = dataset.class_names or (splits.class_names if splits else ())
    out = out or Path(f"{record['stage']}-{folder.name}{runtime.suffix}")
    return export(
        pruned,
        out,
        format=format,
        counts=counts,
        budget=budget,
        calibration=_batches(splits, samples) if splits and needed else None,
        tokens=tokens or (dataset.max_tokens if base.may_pad else None),
        int8=int8,
        opset=opset,
        class_names=names or None,
        preprocessing=None if base.may_pad else preprocessing,
    )


def _settings(settings: Mapping[str, Any]) -> tuple[DatasetSettings, ModelSettings]:
    data, model = settings["dataset"], settings["model"]
    dataset = DatasetSettings(**{**data, "augmentation": AugmentationSettings(**data["augmentation"])})
    return dataset, ModelSettings(**{**model, "training": TrainingSettings(**model["training"])})


def _splits(dataset: DatasetSettings, model: ModelSettings, needed: bool) -> Splits | None:
    """None where they are not there, and only the names of the classes are wanted."""
    try:
        return load_splits(dataset, model)
    except UserError as error:
        if needed:
            raise UserError(f"the data that the model was made with are needed for calibration: {error}") from error
        log.warning("classes get their numbers for names: %s", error)
        return None


def _batches(splits: Splits, samples: int) -> Iterator[Tensor | Text]:
    data: Any = splits.validation
    some = range(min(samples, len(data)))
    for start in range(0, len(some), BATCH):
        items = [data[index] for index in some[start : start + BATCH]]
        if isinstance(data, Sequences):
            yield data.collate(items).inputs
        else:
            yield torch.stack([item.inputs for item in items])
