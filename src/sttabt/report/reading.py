"""Rows from the folders of runs and from the tables of reports."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sttabt.errors import UserError
from sttabt.report.csv_rows import read_table
from sttabt.report.rows import ROW_FILE, Row

log = logging.getLogger(__name__)


def read_rows(places: Sequence[str | Path]) -> list[Row]:
    """All rows below the folders and of the tables (a report's table.csv) named, each file once, in their order.

    A file or a line that cannot be read is named in a warning, skipped and counted.

    Raises:
        UserError: a folder or a table is missing or has no readable row.
    """
    rows: dict[Path, list[Row]] = {}
    skipped = 0
    for place in map(Path, places):
        if place.suffix == ".csv":
            paths = [place]
            if not place.is_file():
                raise UserError(f"there is no table {place}: give the table.csv of a report, or a folder of rows")
        elif place.is_dir():
            paths = sorted(place.rglob(ROW_FILE))
        else:
            raise UserError(f"there is no folder {place}: give the output folder of a run or a sweep")
        for path in paths:
            if path.resolve() not in rows:
                rows[path.resolve()], broken = _read(path)
                skipped += broken
        if not any(rows[path.resolve()] for path in paths):
            raise UserError(_nothing(place, len(paths)))
    found = [row for own in rows.values() for row in own]
    if skipped:
        log.warning("skipped %d of %d rows, which cannot be read", skipped, skipped + len(found))
    return found


def _read(path: Path) -> tuple[list[Row], int]:
    """The rows of a file, and how many cannot be read."""
    if path.suffix == ".csv":
        return read_table(path)
    try:
        return [Row.read(path)], 0
    except (ValueError, OSError) as error:
        log.warning("skipped %s: %s", path, error)
        return [], 1


def _nothing(place: Path, files: int) -> str:
    if place.suffix == ".csv":
        return f"no row that can be read in {place}: give the table.csv of a report"
    unreadable = f" that can be read ({files} cannot)" if files else ""
    return f"no {ROW_FILE}{unreadable} below {place}: run a job that ends with the stage 'evaluate'"
