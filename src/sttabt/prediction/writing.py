"""Lines of JSON, each whole or not there, on standard output or in a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from sttabt.errors import UserError
from sttabt.system.files import disk_errors
from sttabt.system.signals import held, tell_line


class Lines:
    """path: a file that is made; None for standard output. count: lines that were written."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.count = path, 0
        self._file: BinaryIO = sys.stdout.buffer if path is None else path.open("xb")
        tell_line(lambda: f"{self.count} lines were written" + (f" to {path}" if path else ""))

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """A signal that comes meanwhile waits."""
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
        with held(), disk_errors(self.path) if self.path else nullcontext():
            self._file.write(text.encode("utf-8", "surrogateescape"))
            self._file.flush()
            self.count += len(lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.path is not None:
            self._file.close()


def check_target(path: Path) -> None:
    """Raises UserError for a file that is there, or cannot be made."""
    if path.exists() or path.is_symlink():
        raise UserError(f"out={path} is there already: remove it, or give another name")
    if not path.parent.is_dir():
        raise UserError(f"out={path}: {path.parent} is no folder: make it, or give another name")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"out={path}: {path.parent} takes no files: change its permissions, or give another folder")
