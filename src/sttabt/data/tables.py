"""Tables with texts and labels, from files: every cell that does not fit is named by file, line and column."""

from __future__ import annotations

import gzip
import json
import logging
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path

import numpy as np
import pandas as pd

from sttabt.data.separated import NAMED, read_separated
from sttabt.errors import UserError, nearest
from sttabt.settings import DatasetSettings

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
JSON_LINES = (".jsonl", ".json")
FORMATS = (*SEPARATORS, *JSON_LINES, ".parquet")

NAMEABLE = 20  # classes whose names fit into a message
HALF = re.compile("[\ud800-\udfff]")  # of a character in UTF-16, which JSON can name and no encoding can write
SHOWN = 200  # characters of what stands in a message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """texts: of one column or two; labels: (rows,) classes int64 or scores float32; where: what they were read from."""

    texts: list[tuple[str, ...]]
    labels: np.ndarray
    where: str

    def take(self, indices: np.ndarray) -> Rows:
        return Rows([self.texts[index] for index in indices], self.labels[indices], self.where)


def table_format(path: Path) -> str:
    """The suffix that says how a file is read, without `.gz`; '' when it is none of FORMATS."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    return suffix if suffix in FORMATS else ""


def read_rows(path: Path, settings: DatasetSettings) -> Rows:
    """Texts and labels of a file. Raises UserError naming the file, and the line and the column if it is one cell."""
    return parse_table(
        read_table(path, settings.encoding, settings.header, settings.separator, settings.quoting), path, settings
    )


def read_table(
    path: Path, encoding: str = "utf-8", header: bool = True, separator: str = "", quoting: str = "auto"
) -> pd.DataFrame:
    """A CSV, TSV, JSON-lines or parquet file, indexed by line, or row for parquet; text formats also as .gz.

    separator: a character or its name; empty: as the suffix says. quoting: as in `read_separated`.
    """
    kind = table_format(path)
    if not path.is_file():
        raise UserError(f"dataset.path={path} is no file: give one that is there")
    if not kind:
        raise UserError(f"dataset.path={path}: its format is unknown: name it {', '.join(FORMATS)}, as what it is")
    if kind == ".parquet":
        table = _parquet(path)
        return table.set_index(pd.RangeIndex(len(table), name="row"))
    text = decode(path, encoding)
    if not text.strip():
        raise UserError(f"dataset.path={path} is empty: give a file with texts and labels")
    table = (
        _json_lines(path, text)
        if kind in JSON_LINES
        else _separated(path, text, NAMED.get(separator, separator) or SEPARATORS[kind], quoting, header)
    )
    if table.empty:
        raise UserError(f"dataset.path={path} has names of columns and no rows: give a file with texts and labels")
    return table


def parse_table(table: pd.DataFrame, where: Path | str, settings: DatasetSettings, empty_texts: bool = False) -> Rows:
    """The columns that the settings name, as texts and labels. Raises UserError naming the cell that does not fit."""
    for key, names in (("columns", settings.columns), ("label_column", [settings.label_column])):
        for name in names:
            if name not in table.columns:
                hint = nearest(name, map(str, table.columns))
                raise UserError(f"dataset.{key}: {where} has no column '{name}': {hint}")
            if (count := list(table.columns).count(name)) > 1:
                raise UserError(f"dataset.{key}: {where} has {count} columns '{name}': give each a name of its own")
    for name in settings.columns:
        wrong = np.flatnonzero([not isinstance(cell, str) or not (empty_texts or cell.strip()) for cell in table[name]])
        if len(wrong):
            raise UserError(f"{_cell(table, where, wrong[0], name)} holds no text: complete it, or take the line out")
        if len(halves := np.flatnonzero([HALF.search(cell) is not None for cell in table[name]])):
            raise UserError(
                f"{_cell(table, where, halves[0], name)} holds half of a character (a surrogate): write the text anew"
            )
    if settings.positive_above is not None:
        table, labels = _signs(table, where, settings)
    elif settings.task == "regression":
        labels = _numbers(table, where, settings, "a score").to_numpy(np.float32)
    else:
        labels = _classes(table, where, settings)
    texts = list(zip(*(table[name].tolist() for name in settings.columns), strict=True))
    return Rows(texts, labels, str(where))


def check_class_count(rows: Rows, settings: DatasetSettings) -> None:
    """Raises UserError when the training data lacks a class: then `dataset.classes` or the data is wrong."""
    if settings.task == "regression":
        return
    found = np.unique(rows.labels)
    if len(found) < settings.classes:
        absent = sorted(set(range(settings.classes)) - set(found.tolist()))
        remedy = f"set dataset.classes={len(found)}, and number the classes from 0 without gaps"
        raise UserError(
            f"dataset.classes={settings.classes} but {rows.where} has {len(found)} classes, none is labelled"
            f" {absent[0]}: {remedy}"
        )


def decode(path: Path, encoding: str, setting: str = "dataset.path") -> str:
    """A text file, plain or gzip. Raises UserError naming the line and the byte that are not in `encoding`."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{setting}={path} cannot be read, it may be damaged: {error}") from error
    try:
        return raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not {encoding}:"
            " save it as that, or set dataset.encoding (latin-1, cp1252, ...) where it is a data set"
        ) from error


def _separated(path: Path, text: str, separator: str, quoting: str, header: bool) -> pd.DataFrame:
    cells = read_separated(path, text, separator, quoting, header)
    return pd.DataFrame(cells.rows, pd.Index(cells.lines, name="line"), columns=cells.names, dtype=object)


def _json_lines(path: Path, text: str) -> pd.DataFrame:
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            reason = getattr(error, "msg", str(error).partition(";")[0])
            raise UserError(f"{path}, line {number} is not JSON: {reason}: write one object a line") from error
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number} is no JSON object: write one a line, as {{"sentence": "...", ...}}')
        rows.append(row)
        lines.append(number)
    return pd.DataFrame(rows, index=pd.Index(lines, name="line"), dtype=object)


def _classes(table: pd.DataFrame, where: Path | str, settings: DatasetSettings) -> np.ndarray:
    """Labels are names of `class_names`, whatever their type; or, where no name is a number, numbers from 0."""
    find = _class_finder(settings.class_names)
    named = [find(cell) for cell in table[settings.label_column]]
    if any(math.isfinite(_number(name)) for name in settings.class_names):
        wrong = [place for place, found in enumerate(named) if found is None]
        if wrong:
            cell = table[settings.label_column].iloc[wrong[0]]
            raise UserError(_no_class(table, where, wrong[0], settings, cell))
        return np.array(named, dtype=np.int64)
    column = [cell if found is None else found for cell, found in zip(table[settings.label_column], named, strict=True)]
    numbers = _numbers(table.assign(**{settings.label_column: column}), where, settings, "a class")
    whole = (numbers >= 0) & (numbers == numbers.round())
    wrong = np.flatnonzero(~whole | (numbers >= settings.classes)).tolist()
    if wrong:
        raise UserError(
            f"{_cell(table, where, wrong[0], settings.label_column)}: {numbers.iloc[wrong[0]]:g} is none of the classes"
            f" 0 to {settings.classes - 1} (dataset.classes={settings.classes}): {_renumber(numbers, settings)}"
        )
    return numbers.to_numpy(np.int64)


def _class_finder(names: Sequence[str]) -> Callable[[object], int | None]:
    """The place of a label among the names: of 1, 1.0 and '1.0' that of '1', of true that of 'True' or 'true'."""
    places = {name: place for place, name in enumerate(names)}
    numbers = {number: place for name, place in places.items() if math.isfinite(number := _number(name))}
    flags = {name.lower(): place for name, place in places.items() if name.lower() in ("true", "false")}

    def find(cell: object) -> int | None:
        if isinstance(cell, bool | np.bool_) and flags:
            return flags.get(str(cell).lower())
        if isinstance(cell, str) and cell in places:
            return places[cell]
        return numbers.get(_number(cell))

    return find


def _renumber(numbers: pd.Series, settings: DatasetSettings) -> str:
    """What to do about whole or broken numbers that are no classes."""
    found = sorted(set(numbers))
    if any(number != round(number) for number in found):
        return "number the classes from 0"
    if found == list(range(len(found))):
        return f"correct it, or set dataset.classes={len(found)}"
    if len(found) > NAMEABLE:
        return f"there are {len(found)} different labels: number them from 0 without gaps"
    names = ",".join(f"{number:g}" for number in found)
    also = "" if len(found) == settings.classes else f"dataset.classes={len(found)} and "
    return f"correct it, number the classes from 0, or name them all: {also}dataset.class_names=[{names}]"


def _signs(table: pd.DataFrame, where: Path | str, settings: DatasetSettings) -> tuple[pd.DataFrame, np.ndarray]:
    scores = _numbers(table, where, settings, "a score")
    decided = scores != settings.positive_above
    if left_out := int((~decided).sum()):
        log.info("%s: %d scores are exactly %g and are left out", where, left_out, settings.positive_above)
    return table[decided], (scores[decided] > settings.positive_above).to_numpy(np.int64)


def _numbers(table: pd.DataFrame, where: Path | str, settings: DatasetSettings, what: str) -> pd.Series:
    column = table[settings.label_column]
    numbers = column.map(_number).astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        cell = column.iloc[wrong[0]]
        if what == "a class":
            raise UserError(_no_class(table, where, wrong[0], settings, cell))
        place = _cell(table, where, wrong[0], settings.label_column)
        raise UserError(f"{place}: '{_shown(cell)}' is not {what}: give scores as numbers")
    return numbers


def _number(cell: object) -> float:
    """NaN for what is no number."""
    if isinstance(cell, str | Number) and "_" not in str(cell):  # which Python reads as 1_000
        try:
            return float(cell)  # type: ignore[arg-type]
        except (ValueError, TypeError, OverflowError):
            pass
    return math.nan


def _no_class(table: pd.DataFrame, where: Path | str, position: int, settings: DatasetSettings, cell: object) -> str:
    hint = "name the classes in dataset.class_names=[...], or give numbers from 0"
    if settings.class_names:
        hint = nearest(str(cell), settings.class_names)
    return f"{_cell(table, where, position, settings.label_column)}: '{_shown(cell)}' is not a class: {hint}"


def _shown(cell: object) -> str:
    """One line of it, empty for what is missing."""
    missing = cell is None or cell is pd.NA or cell != cell
    text = " ".join(("" if missing else str(cell)).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _parquet(path: Path) -> pd.DataFrame:
    from pyarrow.lib import ArrowException

    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError, KeyError, ArrowException) as error:
        raise UserError(f"dataset.path={path} cannot be read, it may be damaged: {_shown(error)}") from error


def _cell(table: pd.DataFrame, where: Path | str, position: int, column: str) -> str:
    return f"{where}, {table.index.name or 'row'} {table.index[position]}, column '{column}'"


def normalised(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Texts that differ in case and white space alone are the same to a model without case."""
    return tuple(re.sub(r"\s+", " ", text.strip()).casefold() for text in texts)
