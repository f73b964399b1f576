"""Folders for a while, outside the folders of a run: one pattern, so that what a killed process left is found."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sttabt.system.files import lives

PREFIX = "sttabt-"  # then the process that owns it


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder in the system's folder for temporary files, gone at the end; with it those of dead processes."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):  # another user's, or gone in the meantime
            if owner.isdigit() and folder.stat().st_uid == os.getuid() and not lives(int(owner)):
                shutil.rmtree(folder, ignore_errors=True)
