"""torch.export's own file, .pt2: any program that has torch runs it, without this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from sttabt.errors import UserError
from sttabt.runtimes.runtime import METADATA, Runtime, Session, one_line


class TorchProgram(Runtime):
    format, suffix = "torch", ".pt2"

    def write(self, program: ExportedProgram, path: Path, names: Sequence[str], options: Mapping[str, Any]) -> None:
        torch.export.save(program, path)

    def note(self, path: Path, metadata: str) -> None:
        torch.export.save(torch.export.load(path), path, extra_files={METADATA: metadata})

    def open(self, path: Path, threads: int | None) -> tuple[str | None, Session]:
        extra = {METADATA: ""}
        try:
            module = torch.export.load(path, extra_files=extra).module()
        except Exception as error:  # whatever unpacking it meets
            raise UserError(f"{path} cannot be read as a program of torch: {one_line(error)}") from error

        @torch.no_grad()
        def run(given: Sequence[np.ndarray]) -> np.ndarray:
            return module(*map(torch.from_numpy, given)).numpy()

        return extra[METADATA] or None, run
