"""Faults of the system, of disks above all, said in one line that names the file."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from sttabt.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: on a disk, of a quota, of a file system
DISK = (*FULL, errno.EROFS, errno.EIO, errno.ESTALE)  # of a disk, and never of the code
OF_NO_FILE = (  # kinds that tell of processes and networks
    *(ConnectionError, TimeoutError, ChildProcessError, ProcessLookupError, InterruptedError, BlockingIOError),
)
A_FILE = "a file"  # where nothing says which
SAFE = "what is finished is kept, and the same command goes on from there"


def tell(error: Exception, start: str = "") -> int:
    """Writes a UserError, or the line of a fault of the system, to stderr; returns 2. Raises what is neither."""
    line = str(error) if isinstance(error, UserError) else system_fault(error)
    if line is None:
        raise error
    sys.stderr.write(f"{start}{line}\n")
    return 2


def system_fault(error: BaseException) -> str | None:
    """One line about a file that cannot be read or written, what to do, and what is safe; None for any other error.

    That is an OSError that the system gave a number, and what a library made of one that only a disk can have.
    """
    if isinstance(error, UserError):
        return None  # it says more
    fault = next((each for each in _chain(error) if _of_system(each, error)), None)
    if fault is not None:
        return told(fault, _file(fault) or _file(error) or A_FILE)
    return told(error, _file(error) or A_FILE) if _number(error) in DISK else None


def told(fault: BaseException, file: Path | str) -> str:
    """What a fault of the system means for that file, what to do, and what is safe."""
    number = _number(fault)
    reason = getattr(fault, "strerror", None) or (os.strerror(number) if number else str(fault))
    return _line(number, reason, str(file))


def _number(fault: BaseException) -> int:
    """The system's number of a fault; 0 where nothing says it."""
    written = re.search(r"\(os error (\d+)\)", str(fault))  # as safetensors says it
    return getattr(fault, "errno", None) or (int(written[1]) if written else 0)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _of_system(error: BaseException, outer: BaseException) -> bool:
    if not isinstance(error, OSError) or error.errno is None:
        return False
    return error.errno in DISK or (error is outer and not isinstance(error, OF_NO_FILE))


def _line(number: int, reason: str, file: str) -> str:
    if number in FULL:
        return f"{file}: there is no room for it ({reason}): make room; {SAFE}"
    if number in (errno.EIO, errno.ESTALE):
        return f"{file}: its disk does not answer as it should ({reason}): see to it; {SAFE}"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{file}: the system does not allow it ({reason}): give another folder, or set permissions; {SAFE}"
    if number in (errno.EEXIST, errno.ENOTDIR):
        above = next((str(path) for path in [Path(file), *Path(file).parents] if path.is_file()), file)
        return f"{above} is a file where a folder is wanted: give another name, or move it away"
    if number == errno.EISDIR:
        return f"{file} is a folder where a file is wanted: give another name"
    if number == errno.ENOENT:
        return f"{file} is not there ({reason})"
    if number in (errno.EMFILE, errno.ENFILE):
        return f"{file}: too many files are open ({reason}): raise `ulimit -n`, or set fewer hardware.workers; {SAFE}"
    return f"{file}: {reason}; {SAFE}"


def _file(error: BaseException) -> str | None:
    """The file that it names, else the one at hand where it was raised: writing and syncing name none."""
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if named is not None and not isinstance(named, int):
        return os.fsdecode(named)
    return next(_at_hand(error.__traceback__), None)


def _at_hand(trace: TracebackType | None) -> Iterator[str]:
    for frame, _ in reversed(list(traceback.walk_tb(trace))):
        for value in frame.f_locals.values():
            if isinstance(value, Path):
                yield str(value)
            elif isinstance(value, io.IOBase) and isinstance(name := getattr(value, "name", None), str):
                yield name
