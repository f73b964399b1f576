"""Rows from the table.csv of a report, so that recorded results can be drawn again."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from sttabt.report.rows import Row

DERIVED = ("label", "macs_total", "macs_share")  # columns that a row computes

log = logging.getLogger(__name__)


def read_table(path: Path) -> tuple[list[Row], int]:
    """The rows of a table.csv in their order, and how many lines could not be read.

    A line that is cut off or makes no row is named in a warning and skipped.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    rows: list[Row] = []
    broken = 0
    head = next(csv.reader(lines[:1]), [])
    for number, line in enumerate(lines[1:], 2):
        try:
            if number == len(lines) and not text.endswith("\n"):
                raise ValueError("it is cut off: it ends without a line break")  # its last number may lack digits
            # Each by itself: a quotation mark that a cut line lacks would swallow the next ones.
            (cells,) = csv.reader([line], strict=True)
            if len(cells) != len(head):
                raise ValueError(f"it has {len(cells)} cells, and the first line {len(head)}")
            rows.append(Row.from_dict(_unflatten(dict(zip(head, cells, strict=True))), path.parent))
        except (ValueError, csv.Error) as error:
            log.warning("skipped %s, line %d: %s", path, number, error)
            broken += 1
    return rows, broken


def _unflatten(cells: Mapping[str, str]) -> dict[str, Any]:
    """What `table.to_frame` made flat, by the types of a row's fields; an empty cell has no value."""
    hints = {name: hint for name, hint in get_type_hints(Row).items() if name != "folder"}
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        nested = {key.partition(".")[2]: text for key, text in cells.items() if key.startswith(f"{name}.") and text}
        kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        origins = [get_origin(kind) for kind in kinds]
        if list in origins:
            values[name] = [float(nested[key]) for key in sorted(nested, key=int)]
        elif dict in origins:
            read = _literal if name == "settings" else float
            values[name] = {key: read(text) for key, text in nested.items()} or (None if type(None) in kinds else {})
        elif cells.get(name):
            values[name] = _scalar(cells[name], kinds)
        elif type(None) in kinds:
            values[name] = None
        elif str in kinds and name in cells:
            values[name] = ""
    known = (*hints, *DERIVED)
    unknown = [key for key in cells if key.partition(".")[0] not in known]
    return values | {key: cells[key] for key in unknown}  # which a row refuses by name


def _scalar(text: str, kinds: tuple[Any, ...]) -> object:
    """A cell by the type of its field; a column that has gaps holds whole numbers as 4.0."""
    if str in kinds:
        return text
    number = float(text)
    return int(number) if int in kinds and number.is_integer() else number


def _literal(text: str) -> float | int | bool | str:
    """A setting, whose type is that of its method."""
    if text in ("True", "False"):
        return text == "True"
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number
