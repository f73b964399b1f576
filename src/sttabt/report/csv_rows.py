"""table.csv: rows as one table, a column a value, so that recorded results can be drawn again. Owns that format.

A column `macs.stem` or `occupancy_by_boundary.0` is a value of a field that has several. Numbers are as in JSON; text
stays as it is, in JSON's quotes only where it would be read as something else, and so do names of columns. An empty
cell says that the row has no such value.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from sttabt.report.older import FIELDS as SETTINGS_ONCE
from sttabt.report.older import UNTYPED
from sttabt.report.rows import Row, Setting
from sttabt.system.files import SHORT, read_regular, reason, write_atomically

DERIVED = ("macs_total", "macs_share")  # columns that a row computes
MOST_BYTES = 1 << 28  # of a table: some hundred thousand rows


def flat_row(row: Row) -> dict[str, Any]:
    """The columns of a row, those it computes first, with their values. None has a column, but for nested fields."""
    flat: dict[str, Any] = {name: getattr(row, name) for name in DERIVED}
    hints = _hints()
    for name, value in row.to_dict().items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": each for key, each in value.items()}
        elif isinstance(value, list):
            flat |= {f"{name}.{index}": each for index, each in enumerate(value)}
        elif not _nested(hints[name]):
            flat[name] = value
    return flat


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows in their order; a killed process leaves no half-written file."""
    lines = [flat_row(row) for row in rows]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column if column.isprintable() else json.dumps(column) for column in columns])
    writer.writerows([_cell(name, line[name]) if name in line else "" for name in columns] for line in lines)
    write_atomically(path, text.getvalue().encode())


def read_table(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a table.csv in their order, and what is wrong with the other lines: `line 3: it has 2 cells, ...`.

    Raises:
        ValueError: the file is no table of rows; the text says why.
        OSError: it is not there or cannot be read.
    """
    lines = [line.removesuffix(b"\r") for line in read_regular(path, MOST_BYTES).split(b"\n")]
    head = _head(lines[0].removeprefix(codecs.BOM_UTF8))
    rows: list[Row] = []
    broken: list[str] = []
    complete = lines[-1] == b""
    lines = lines[:-1] if complete else lines
    for number, line in enumerate(lines[1:], 2):
        try:
            if number == len(lines) and not complete:
                raise ValueError("it is cut off: it ends without a line break")  # its last number may lack digits
            cells = _cells(line)
            if len(cells) != len(head):
                raise ValueError(f"it has {len(cells)} cells, and the first line {len(head)}")
            rows.append(Row.from_dict(_unflatten(dict(zip(head, cells, strict=True))), path.parent))
        except (ValueError, csv.Error, RecursionError) as error:
            broken.append(f"line {number}: {reason(error)}")
    if not rows and not broken:
        broken.append("line 2: it is missing: the table holds no row")
    return rows, broken


def _head(line: bytes) -> list[str]:
    """The names of the columns. Raises ValueError where they are not those of rows."""
    try:
        head = [json.loads(name) if name.startswith('"') else name for name in _cells(line)]
    except (csv.Error, RecursionError) as error:
        raise ValueError(f"its first line cannot be read: {error}") from error
    if "schema" not in head:
        raise ValueError("its first line has no column schema: it is not the table.csv of a report")
    if twice := sorted({name for name in head if head.count(name) > 1}):
        raise ValueError(f"columns come twice: {', '.join(twice)}")
    return head


def _cells(line: bytes) -> list[str]:
    """Each line by itself: a quotation mark that a cut line lacks would swallow the next ones."""
    (cells,) = csv.reader([line.decode("utf-8")], strict=True)
    return cells


@cache
def _hints() -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(Row).items() if name != "folder"}


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is UnionType else (hint,)


def _nested(hint: Any) -> bool:
    return any(get_origin(kind) in (list, dict) for kind in _kinds(hint))


def _cell(column: str, value: object) -> str:
    """How a value is written; None is `null` where an empty cell would mean that the row lacks the setting."""
    name, dot, _ = column.partition(".")
    if value is None:
        return "null" if dot else ""
    if not isinstance(value, str):
        return json.dumps(value)
    hint = _hints().get(name)
    plain = value.isprintable() and not value.startswith('"')
    if name == "settings":
        plain = plain and value != "" and _literal(value) == value
    elif dot or NoneType in _kinds(hint):
        plain = plain and value != ""
    return value if plain else json.dumps(value)


def _unflatten(cells: Mapping[str, str]) -> dict[str, Any]:
    """What `flat_row` made flat, by the types of a row's fields; of older tables the fields of their rows."""
    older = cells.get("schema") in {str(schema) for schema in UNTYPED}
    read = _older_literal if older else _literal
    hints = _hints()
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        prefix = f"{name}."
        nested = {key.removeprefix(prefix): text for key, text in cells.items() if key.startswith(prefix) and text}
        kinds = _kinds(hint)
        origins = [get_origin(kind) for kind in kinds]
        if list in origins:
            own = get_args(kinds[origins.index(list)])
            places = [str(place) for place in range(len(nested))]
            if set(places) != set(nested):
                raise ValueError(f"{name} has values at {', '.join(sorted(nested))}, not at 0, 1, ...")
            values[name] = [_scalar(nested[place], own) for place in places]
        elif dict in origins:
            found = {key: read(text) if name == "settings" else _number(text) for key, text in nested.items()}
            values[name] = found or (None if NoneType in kinds else {})
        elif cells.get(name):
            values[name] = _scalar(cells[name], kinds)
        elif name in cells and NoneType in kinds:
            values[name] = None
        elif name in cells and str in kinds:
            values[name] = ""
    known = {*hints, *DERIVED}
    for key, text in cells.items():
        if older and key in SETTINGS_ONCE:
            values[key] = read(text) if text else None
        elif key.partition(".")[0] not in known:
            values[key] = text  # which a row refuses by name
    return values


def _scalar(text: str, kinds: tuple[Any, ...]) -> object:
    """A cell by the type of its field; older tables have whole numbers as 4.0 in columns with gaps."""
    if str in kinds:
        return json.loads(text) if text.startswith('"') else text
    number = _number(text)
    return int(number) if int in kinds and float not in kinds and number == number // 1 else number


def _number(text: str) -> float:
    value = _literal(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{SHORT.repr(text)} is no number")
    return value


def _literal(text: str) -> Setting:
    """A setting, whose type is that of its method."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, (list, dict)) else value


def _older_literal(text: str) -> Setting:
    """A setting of older tables, which had 4.0 for 4, True for true, and no empty texts."""
    if text in ("True", "False"):
        return text == "True"
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number
