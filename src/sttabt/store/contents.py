"""What files hold, as one hash: equal files elsewhere, or of another date, are the same data.

A file is read once; after that its number on the disk, its size and its times say that it is the same, in a table that
the store keeps. One that was changed a moment before it was read is read again, as times are coarse.
"""

from __future__ import annotations

import hashlib
import logging
import stat
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock
from rich.progress import track

from sttabt.system.files import checksum, write_atomically

CACHE = "contents"  # the folder of a store with the tables
READERS = 8  # threads that read files
MANY = 1_000  # files that are worth a line and a bar
SETTLED = 2_000_000_000  # nanoseconds after which another change shows in a file's times
UNREADABLE = "unreadable"  # in the place of a checksum; what reads the data decides whether that matters

log = logging.getLogger(__name__)


def digest(files: Mapping[str, Path], store: Path) -> str:
    """A hash of the files' contents and of the names that they are given here, not of their places.

    store: the root of the store, which keeps a table of files that were read before.
    """
    places = "\0".join(sorted(str(path.absolute()) for path in files.values()))
    table = store / CACHE / f"{_hash(places)[:16]}.tsv"
    table.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(table.with_suffix(".lock")):  # jobs that start together read the files once
        known = _read(table)
        states = {name: _state(path) for name, path in files.items()}
        hashes = {name: known[state] for name, state in states.items() if state in known}
        if new := [name for name in files if name not in hashes]:
            if len(new) > MANY:
                log.info("%d files are read once, to know their contents", len(new))
            begun = time.time_ns()
            with ThreadPoolExecutor(READERS) as pool:
                found = pool.map(_checksum, (files[name] for name in new))
                shown = track(found, "reading data", len(new), transient=True, disable=len(new) < MANY)
                hashes |= dict(zip(new, shown, strict=True))
            settled = [name for name, state in states.items() if state and _changed(state) + SETTLED < begun]
            write_atomically(table, "".join(f"{hashes[name]}\t{states[name]}\n" for name in settled).encode())
    return _hash("".join(f"{name}\0{hashes[name]}\n" for name in sorted(files)))


def _state(path: Path) -> str:
    """What changes when the file does: its number on the disk, its size, its times. '' for what is no file."""
    try:
        found = path.stat()
    except OSError:
        return ""
    if not stat.S_ISREG(found.st_mode):
        return ""
    return f"{found.st_dev}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def _changed(state: str) -> int:
    """When it was last changed, in nanoseconds."""
    return max(map(int, state.rsplit("-", 2)[1:]))


def _checksum(path: Path) -> str:
    try:
        return checksum(path) if path.is_file() else UNREADABLE  # opening a pipe would wait for ever
    except OSError:
        return UNREADABLE


def _read(table: Path) -> dict[str, str]:
    """Checksums by state. A line that is broken is no knowledge: its file is read again."""
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    parts = (line.split("\t") for line in lines)
    return {part[1]: part[0] for part in parts if len(part) == 2 and len(part[0]) == 64 and part[1]}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
