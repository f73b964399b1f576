"""Files that are whole or not there: a killed process leaves the old one or the new one, never half of it.

What is being written stands beside its target as `.NAME.HOST-PID-RANDOM.partial`; the next who writes there takes away
what processes that died have left.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sttabt.errors import UserError

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
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): what was there before is unchanged; free space, or"
            " choose a folder that can be written, then repeat the command"
        ) from error


def sweep(folder: Path, name: str = "*", owned: bool = False) -> None:
    """Takes away the half-written files of that target in `folder` whose process is gone.

    owned: of every process, since the caller alone may write there.
    """
    for path in folder.glob(f".{name}.*.partial"):
        found = PARTIAL.fullmatch(path.name)
        if found and (owned or (found["host"] == _host() and not _lives(int(found["process"])))):
            path.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """To the disk, so that a power cut leaves no name without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _host() -> str:
    return socket.gethostname().replace(".", "_")


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
