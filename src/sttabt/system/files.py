"""Files that are whole or not there: a killed process leaves the old one or the new one, never half of it.

What is being written stands beside its target as `.NAME.HOST-PID-RANDOM.partial`; the next who writes there takes away
what processes that died have left.
"""

from __future__ import annotations

import hashlib
import os
import re
import reprlib
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sttabt.errors import UserError
from sttabt.system.faults import told
from sttabt.system.paths import not_a_file

LONGEST_REASON = 300  # letters
SHORT = reprlib.Repr()  # for what stands in a file, which may be long or deep
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60
PARTIAL = re.compile(r"\..+\.(?P<host>[^.]*)-(?P<process>\d+)-[0-9a-f]{8}\.partial")


def write_atomically(path: Path, content: bytes) -> None:
    """`content` as the file `path`, in a folder that is made where it is missing.

    Raises UserError when the disk does not take it; what was there before is there still.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` at the end, when it is on the disk; the folder is made.

    Raises UserError when the disk does not take it; what was there before is there still.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
    # A name of its own, so that two jobs that write the same file never share a half-written one.
    own = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    partial = path.with_name(f".{path.name}.{own}.partial")
    try:
        with disk_errors(path):
            yield partial
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Around what writes `path`: raises UserError that names it and says why the disk does not take it."""
    try:
        yield
    except OSError as error:
        raise UserError(told(error, path)) from error


def sweep(folder: Path, name: str = "*", owned: bool = False) -> None:
    """Takes away the half-written files of that target in `folder` whose process is gone.

    owned: of every process, since the caller alone may write there.
    """
    for path in folder.glob(f".{name}.*.partial"):
        found = PARTIAL.fullmatch(path.name)
        if found and (owned or (found["host"] == _host() and not lives(int(found["process"])))):
            path.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_regular(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes.

    Raises:
        ValueError: it is no regular file, or larger; the text says which.
        OSError: it is not there or cannot be read.
    """
    path.stat()
    if why := not_a_file(path):
        raise ValueError(f"it {why}")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than the {most:,} bytes that such a file may have")
    return content


def reason(error: Exception) -> str:
    """Why a file could not be read, in one line of moderate length."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."


def lives(process: int) -> bool:
    """Whether there is a process of that number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _sync(path: Path) -> None:
    """To the disk, so that a power cut leaves no name without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _host() -> str:
    return socket.gethostname().replace(".", "_")
