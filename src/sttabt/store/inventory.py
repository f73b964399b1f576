"""What a store holds, what is wrong with it, and how something is taken out of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sttabt.errors import UserError, nearest
from sttabt.store.artifacts import DAMAGED, RECORD, STAGES, DamagedError, parents, read_record, verify

FINISHED, UNFINISHED = "finished", "unfinished"


@dataclass(frozen=True)
class Entry:
    """A folder of a store. state: FINISHED, UNFINISHED, or what is damaged; record: {} where there is none to read.

    made: seconds since 1970; bytes: of all its files.
    """

    folder: Path
    state: str
    record: Mapping[str, Any]
    made: float
    bytes: int

    @property
    def stage(self) -> str:
        return self.folder.parent.name

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def made_of(self) -> dict[str, str]:
        """Fingerprints by stage."""
        return parents(self.record["description"]) if self.record else {}


def entries(root: Path, whole: bool = False) -> list[Entry]:
    """Everything in a store, by stage and time. whole: files are compared with their checksums, too.

    Raises UserError where there is no store.
    """
    if not root.is_dir():
        raise UserError(f"artifacts={root} is no folder: give the one that paths.artifacts names")
    folders = [path for stage in (*STAGES, DAMAGED) for path in (root / stage).glob("*") if path.is_dir()]
    found = [_entry(folder, whole) for folder in folders]
    order = [*STAGES, DAMAGED]
    return sorted(found, key=lambda entry: (order.index(entry.stage), entry.made, entry.key))


def dependents(entry: Entry, among: Iterable[Entry]) -> list[Entry]:
    """What is made of it, and what of that."""
    direct = [other for other in among if other.made_of.get(entry.stage) == entry.key]
    more = [each for other in direct for each in dependents(other, among)]
    return list({each.folder: each for each in (*direct, *more)}.values())


def chosen(keys: Sequence[str], among: Sequence[Entry]) -> list[Entry]:
    """The entries that these words name: beginnings of keys, `unfinished`, or `damaged`.

    Raises UserError for a word that names none, or several.
    """
    groups = {
        UNFINISHED: [each for each in among if each.state == UNFINISHED],
        DAMAGED: [each for each in among if each.state not in (UNFINISHED, FINISHED) or each.stage == DAMAGED],
    }
    found: list[Entry] = []
    for key in keys:
        if key in groups:
            found += groups[key]
            continue
        named = [each for each in among if each.key.startswith(key)]
        if not named:
            hint = nearest(key, [each.key for each in among]) if among else "the store is empty"
            raise UserError(f"{key} is no artifact there: {hint}")
        if len({each.key for each in named}) > 1:
            raise UserError(f"{key} is the beginning of several: {', '.join(each.key for each in named)}")
        found += named
    return list({each.folder: each for each in found}.values())


def remove(entry: Entry) -> None:
    """Deletes its folder. Raises UserError when a job works on it."""
    lock = FileLock(entry.folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{entry.folder} is being made by another job: wait for it, or end that job") from error
    try:
        (entry.folder / RECORD).unlink(missing_ok=True)  # first, so that half of it does not count as an artifact
        shutil.rmtree(entry.folder)
    finally:
        lock.release()


def _entry(folder: Path, whole: bool) -> Entry:
    files = [path for path in folder.rglob("*") if path.is_file()]
    record: dict[str, Any] = {}
    state = UNFINISHED
    if (folder / RECORD).exists():
        try:
            record = read_record(folder / RECORD)
            if whole:
                verify(folder, record)
            state = FINISHED
        except DamagedError as error:
            state = error.what
    at = folder / RECORD if state == FINISHED else folder
    return Entry(folder, state, record, at.stat().st_mtime, sum(path.stat().st_size for path in files))
