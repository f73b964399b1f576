"""Folders for a while, outside the folders of a run: one pattern, so that what a killed process left is found."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sttabt.system.files import lives

PREFIX = "sttabt-"  # then the process that owns it
LONGEST = 40  # characters of the system's folder: a socket's path below a folder in it may have 107 in all


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder in the system's folder for temporary files, gone at the end; with it those of dead processes."""
    folder = _new()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep_temporary_files() -> None:
    """From now on temporary files of libraries, and of processes that this one starts, lie in a folder as `scratch`'s.

    W&B and multiprocessing leave theirs behind when a process is killed.
    """
    root = _system_folder()
    if len(str(root)) > LONGEST:
        return
    # What torch compiled is worth keeping.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / f"torchinductor_{os.getuid()}"))
    folder = _new()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    atexit.register(_remove, folder, os.getpid())  # the last to run: W&B's own end still needs its files


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _new() -> Path:
    _sweep()
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_system_folder()))


def _system_folder() -> Path:
    """Also where the folder for temporary files is one of a process that started this one."""
    folder = Path(tempfile.gettempdir())
    return folder.parent if folder.name.startswith(PREFIX) else folder


def _sweep() -> None:
    for folder in _system_folder().glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):  # another user's, or gone in the meantime
            if owner.isdigit() and folder.stat().st_uid == os.getuid() and not lives(int(owner)):
                shutil.rmtree(folder, ignore_errors=True)
