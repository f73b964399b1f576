"""An exported file in Python: what it says of itself, and what it computes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sttabt.errors import UserError
from sttabt.runtimes.formats import runtime_of
from sttabt.runtimes.graph import Input
from sttabt.runtimes.runtime import Session, one_line


class ExportedModel:
    """Called with one tensor or array a name of `inputs`, in their order or by keyword (`exported(**encoding)`), of any
    batch size; gives logits (B, classes), or embeddings (B, D), as a tensor.

    metadata: what `sttabt.export` put into the file; its `output` says which of the two.
    Raises UserError for inputs of another number, kind or size than were exported.
    """

    def __init__(self, path: Path, metadata: dict[str, Any], session: Session) -> None:
        self.path, self.metadata, self.session = path, metadata, session
        self.inputs = [Input(each["name"], tuple(each["shape"]), each["dtype"]) for each in metadata["inputs"]]

    def __call__(self, *given: Tensor | np.ndarray, **named: Tensor | np.ndarray) -> Tensor:
        ordered = self._ordered(given, named)
        arrays = [each.numpy() if isinstance(each, Tensor) else np.asarray(each) for each in ordered]
        self._check(arrays)
        try:
            return torch.from_numpy(np.array(self.session(arrays)))
        except Exception as error:  # each runtime has errors of its own
            raise UserError(f"{self.path} does not run: {one_line(error)}") from error

    def _ordered(self, given: Sequence[Any], named: Mapping[str, Any]) -> Sequence[Any]:
        if not named:
            return given
        names = [each.name for each in self.inputs]
        if given or sorted(named) != sorted(names):
            also = f" and {len(given)} without a name" if given else ""
            raise UserError(f"{self.path} takes {', '.join(names)}: {', '.join(named)}{also} were given")
        return [named[name] for name in names]

    def _check(self, arrays: Sequence[np.ndarray]) -> None:
        names = ", ".join(each.name for each in self.inputs)
        if len(arrays) != len(self.inputs):
            raise UserError(f"{self.path} takes {names}: {len(arrays)} arrays were given")
        for wanted, array in zip(self.inputs, arrays, strict=True):
            if array.shape[1:] != wanted.shape or array.ndim != len(wanted.shape) + 1:
                raise UserError(
                    f"{wanted.name} has the shape {array.shape}, but {self.path} was exported for"
                    f" (B, {', '.join(map(str, wanted.shape))}): prepare inputs as its metadata says, or export again"
                )
            if array.dtype != wanted.dtype:
                raise UserError(f"{wanted.name} is {array.dtype}, but {self.path} reads {wanted.dtype}: convert it")
            if len(array) != len(arrays[0]):
                raise UserError(f"{wanted.name} holds {len(array)} samples, {self.inputs[0].name} {len(arrays[0])}")


def open_exported(path: str | Path, threads: int | None = None) -> ExportedModel:
    """A file that `sttabt.export` wrote, run on the CPU by its own runtime on so many threads; None: as it likes.

    Raises UserError for another file, and where the runtime is not installed.
    """
    path = Path(path)
    runtime = runtime_of(path)
    runtime.check()
    if not path.is_file():
        raise UserError(f"{path} is not there")
    metadata, session = runtime.open(path, threads)
    if metadata is None:
        raise UserError(f"{path} holds no entry of sttabt: give a file that sttabt.export wrote")
    return ExportedModel(path, json.loads(metadata), session)
