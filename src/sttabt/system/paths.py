"""What a path leads to, told before it is opened: to read a pipe would wait for ever, and a device never ends.

Imports no torch; any room may use it.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from pathlib import Path

KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
MOST_TIMES, MOST_BYTES = 200, 2**28  # a .gz may unpack to so many times its size, or to so many bytes in any case


def not_a_file(path: Path | str) -> str:
    """Why `path` cannot be read as a file: `is no file, but a pipe`; empty where it can."""
    return _not(stat.S_IFREG, path, os.R_OK)


def not_a_folder(path: Path | str) -> str:
    """Why `path` cannot be read as a folder, as `not_a_file`."""
    return _not(stat.S_IFDIR, path, os.R_OK | os.X_OK)


def read_bytes(path: Path) -> bytes:
    """All of a file, unpacked where its name ends in .gz. Raises OSError with what is wrong, also of a damaged one."""
    if why := not_a_file(path):
        raise OSError(f"it {why}")
    if not is_packed(path):
        return path.read_bytes()
    limit = max(MOST_TIMES * path.stat().st_size, MOST_BYTES)
    try:
        with gzip.open(path) as file:
            content = file.read(limit + 1)
    except (EOFError, zlib.error) as error:
        raise OSError(str(error)) from error
    if len(content) > limit:
        raise OSError(f"it unpacks to more than {MOST_TIMES} times its size")
    return content


def is_packed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _not(kind: int, path: Path | str, access: int) -> str:
    wanted = f"is no {KINDS[kind].removeprefix('a ')}"
    try:
        found = stat.S_IFMT(Path(path).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return f"{wanted}, but a link to nothing" if Path(path).is_symlink() else wanted
    except OSError as error:  # a folder on the way that may not be read, a loop of links, a name that is too long
        return f"{wanted} that can be read ({error.strerror})"
    if found != kind:
        return f"{wanted}, but {KINDS.get(found, 'something else')}"
    may = os.access(path, access, effective_ids=os.access in os.supports_effective_ids)
    return "" if may else f"{wanted} that can be read (Permission denied)"
