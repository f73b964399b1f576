"""A runtime: which packages it needs, how it writes a graph into a file, and how it runs that file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.export import ExportedProgram

from sttabt.errors import UserError

Session = Callable[[Sequence[np.ndarray]], np.ndarray]  # from a file's inputs, in order, to what it gives (B, classes)
METADATA = "sttabt"  # the name of the entry that says, as JSON, what a file holds
EXTRA = "sttabt[export]"


class Runtime(ABC):
    """format: as the user calls it; suffix: of its file; packages: modules that it needs, by the package of each."""

    format: ClassVar[str]
    suffix: ClassVar[str]
    packages: ClassVar[Mapping[str, str]] = {}
    in_extra: ClassVar[bool] = True  # whether EXTRA brings them
    opset: ClassVar[int | None] = None  # that it writes unless another is asked for
    quantises: ClassVar[bool] = False  # whether it can write int8
    any_batch: ClassVar[bool] = True  # whether a file takes any batch size; otherwise one sample at a time

    def check(self) -> None:
        """Raises UserError, with what to install, where a package is missing."""
        missing = [package for package, module in self.packages.items() if find_spec(module) is None]
        if missing:
            extra = f", or '{EXTRA}'" if self.in_extra else ""
            raise UserError(f"format={self.format} needs {', '.join(missing)}: pip install {' '.join(missing)}{extra}")

    def check_opset(self, opset: int | None) -> None:
        """Raises UserError for an opset that it cannot write; None: its own."""
        if opset is not None:
            raise UserError(f"opset={opset} has no effect on format={self.format}: leave it out")

    def beside(self, path: Path) -> list[Path]:
        """The files that belong to `path`, which is written last."""
        return []

    @abstractmethod
    def write(self, program: ExportedProgram, path: Path, names: Sequence[str], options: Mapping[str, Any]) -> None:
        """The program, whose inputs have these names, as a file. options: opset, int8, metadata, output (the name of
        what it gives). Raises UserError.
        """

    @abstractmethod
    def note(self, path: Path, metadata: str) -> None:
        """Puts metadata into a file that was written, what the comparison gave among it."""

    @abstractmethod
    def open(self, path: Path, threads: int | None) -> tuple[str | None, Session]:
        """Metadata, None where there is none, and what runs the file. Raises UserError for one that it cannot read."""


def one_line(error: Exception) -> str:
    """What a library said, without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
