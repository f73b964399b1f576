"""Rows from the folders of runs and from the tables of reports."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sttabt.errors import UserError
from sttabt.report.csv_rows import read_table
from sttabt.report.rows import ROW_FILE, Row
from sttabt.system.files import reason

log = logging.getLogger(__name__)


def read_rows(places: Sequence[str | Path]) -> list[Row]:
    """The rows of `read_records`; what is left out is only warned of."""
    return read_records(places)[0]


def read_records(places: Sequence[str | Path]) -> tuple[list[Row], list[str]]:
    """All rows below the folders and of the tables (a report's table.csv) named, each once, in their order.

    Links to folders are not followed. A row that is in a folder and in a table too counts once, with the files beside
    it. What cannot be read stays where it is and is named in a warning; the second value has a line for each,
    `FILE: what is wrong`.

    Raises:
        UserError: a folder or a table is missing or has no row, or no row at all can be read.
    """
    found: dict[str, list[Row]] = {}
    left_out: list[str] = []
    for place in map(Path, places):
        paths = []
        for path, why in _candidates(place):
            key = os.path.realpath(path)
            paths.append(key)
            if key not in found:
                found[key], broken = ([], [f"{path}: {why}"]) if why else _read(path)
                left_out += broken
        if not paths:
            why = "run a job that ends with the stage 'evaluate'"
            if _has_links(place):
                why += "; links to folders are not followed: give the folders that they lead to"
            raise UserError(f"no {ROW_FILE} below {place}: {why}")
    rows = _once([row for own in found.values() for row in own])
    if rows or len(left_out) > 1:  # the error names a single one
        for line in left_out:
            log.warning("left out %s", line)
    if not rows:
        raise UserError(_nothing(places, left_out))
    return rows, left_out


def count_left_out(left_out: Sequence[str]) -> str:
    """One line that ends a report from which records are missing."""
    count = len(left_out)
    return f"left out {count} record{'s' if count > 1 else ''} that cannot be read, which stay where they are"


def _candidates(place: Path) -> Iterator[tuple[Path, str]]:
    """Every file that should hold rows, or a folder that cannot be looked into with the reason why."""
    if place.suffix == ".csv":
        if not os.path.lexists(place):
            raise UserError(f"there is no table {place}: give the table.csv of a report, or a folder of rows")
        yield place, ""
        return
    if not place.is_dir():
        raise UserError(f"there is no folder {place}: give the output folder of a run or a sweep")
    denied: list[OSError] = []
    paths = [
        Path(folder) / ROW_FILE
        for folder, folders, names in os.walk(place, onerror=denied.append)
        if ROW_FILE in names or ROW_FILE in folders
    ]
    yield from ((path, "") for path in sorted(paths))
    yield from ((Path(error.filename), reason(error)) for error in denied)


def _has_links(place: Path) -> bool:
    if not place.is_dir():
        return False
    with os.scandir(place) as entries:
        return any(entry.is_symlink() and entry.is_dir() for entry in entries)


def _read(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a file, and a line for each that cannot be read."""
    try:
        if path.suffix == ".csv":
            rows, broken = read_table(path)
            return rows, [f"{path}, {line}" for line in broken]
        return [Row.read(path)], []
    except (ValueError, OSError) as error:
        return [], [f"{path}: {reason(error)}"]


def _once(rows: Sequence[Row]) -> list[Row]:
    """Rows that are the same in every field are one: a run's, and that of its report's table."""
    first: dict[str, Row] = {}
    for row in rows:
        key = json.dumps(row.to_dict(), sort_keys=True)
        before = first.get(key)
        # Galleries and predictions lie beside a row.json, not beside a table.
        if before is None or (_beside(row) and not _beside(before)):
            first[key] = row
    return list(first.values())


def _beside(row: Row) -> bool:
    return row.folder is not None and (row.folder / ROW_FILE).exists()


def _nothing(places: Sequence[str | Path], left_out: Sequence[str]) -> str:
    named = ", ".join(map(str, places))
    more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
    why = f" ({left_out[0]}{more})" if left_out else ": give the table.csv of a report, or a folder of rows"
    return f"no row that can be read in {named}{why}"
