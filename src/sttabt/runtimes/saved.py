"""A saved model as a file: what its run's settings and data say goes into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sttabt.api import load
from sttabt.core.text import Text
from sttabt.data import load_splits
from sttabt.data.base import Sequences, Splits
from sttabt.errors import UserError
from sttabt.pretrained.description import preparation_of
from sttabt.runtimes.exporting import Export, export
from sttabt.runtimes.formats import find_runtime
from sttabt.settings.noted import noted_dataset, noted_model
from sttabt.sharing.folder import STAGE as SAVED
from sttabt.store.artifacts import RECORD, read_record

BATCH = 32  # samples that are calibrated at once


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
    data: Path | None,
) -> Export:
    """The model of an artifact as a file (`sttabt.export`), calibrated on `samples` of its run's validation split.

    out: None: named after the artifact, in the current folder. data: as in `splits_of`. Raises UserError as
    `sttabt.load` and `sttabt.export` do, and where the run's data are not there but needed.
    """
    runtime = find_runtime(format)
    runtime.check()
    runtime.check_opset(opset)
    pruned = load(folder)
    record = read_record(folder.absolute() / RECORD)
    uncounted = counts is None and pruned.method.takes_counts and pruned.method.counts is None
    needed = int8 or budget is not None or uncounted
    if data is not None and not needed:
        raise UserError(f"data={data} has no effect: nothing is calibrated here")
    splits = splits_of(record, data) if needed else None
    prepared, reads_text = pruned.preparation or preparation_of(pruned.base), pruned.base.may_pad
    out = out or Path(f"{record['stage']}-{folder.name}{runtime.suffix}")
    return export(
        pruned,
        out,
        format=format,
        counts=counts,
        budget=budget,
        calibration=batches_of(splits.validation, samples) if splits else None,
        tokens=tokens or (prepared.inputs["tokens"] if reads_text else None),
        int8=int8,
        opset=opset,
        class_names=prepared.class_names or None,
        preprocessing=None if reads_text else prepared.inputs,
    )


def splits_of(record: Mapping[str, Any], data: Path | None) -> Splits:
    """The data that an artifact's run had. data: where they are now, None: where they were.

    Raises UserError where they are not there.
    """
    if record["stage"] == SAVED:
        raise UserError("a saved model has no data beside it for calibration: give counts=[...], or sttabt.export")
    settings = record["notes"]["settings"]
    dataset = noted_dataset(settings)
    if data is not None:
        if not dataset.path:
            raise UserError(f"data={data} has no effect: {dataset.name} is read from no path of one's own")
        dataset = replace(dataset, path=str(data.absolute()))
    try:
        return load_splits(dataset, noted_model(settings))
    except UserError as error:
        hint = "; data=PATH says where they are now" if dataset.path and data is None else ""
        raise UserError(f"the data that the model was made with are needed: {error}{hint}") from error


def batches_of(dataset: Dataset, samples: int) -> Iterator[Tensor | Text]:
    """Inputs of the first so many items, or of all where there are fewer."""
    data: Any = dataset
    some = range(min(samples, len(data)))
    for start in range(0, len(some), BATCH):
        items = [data[index] for index in some[start : start + BATCH]]
        if isinstance(data, Sequences):
            yield data.collate(items).inputs
        else:
            yield torch.stack([item.inputs for item in items])
