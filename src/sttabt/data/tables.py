"""Tables with texts and labels, from files: every cell that does not fit is named by file, line and column."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from sttabt.errors import UserError, nearest
from sttabt.settings import DatasetSettings

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
JSON_LINES = (".jsonl", ".json")
FORMATS = (*SEPARATORS, *JSON_LINES, ".parquet")

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
    return parse_table(read_table(path, settings.encoding, settings.header), path, settings)


def read_table(path: Path, encoding: str = "utf-8", header: bool = True) -> pd.DataFrame:
    """A CSV, TSV, JSON-lines or parquet file, indexed by line, or row for parquet; text formats also as .gz.

    Tab-separated files know no quotes: a quotation mark in them is one of the text.
    """
    kind = table_format(path)
    if not path.is_file():
        raise UserError(f"dataset.path={path} is no file: give one that is there")
    if not kind:
        raise UserError(f"dataset.path={path}: its format is unknown: name it {', '.join(FORMATS)}, as what it is")
    if kind == ".parquet":
        table = pd.read_parquet(path)
        return table.set_index(pd.RangeIndex(len(table), name="row"))
    text = decode(path, encoding)
    if not text.strip():
        raise UserError(f"dataset.path={path} is empty: give a file with texts and labels")
    table = _json_lines(path, text) if kind in JSON_LINES else _separated(path, text, SEPARATORS[kind], header)
    if table.empty:
        raise UserError(f"dataset.path={path} has names of columns and no rows: give a file with texts and labels")
    return table


def parse_table(table: pd.DataFrame, where: Path | str, settings: DatasetSettings) -> Rows:
    """The columns that the settings name, as texts and labels."""
    for key, names in (("columns", settings.columns), ("label_column", [settings.label_column])):
        for name in names:
            if name not in table.columns:
                hint = nearest(name, map(str, table.columns))
                raise UserError(f"dataset.{key}: {where} has no column '{name}': {hint}")
    blank_too = settings.source == "text_file"  # GLUE has some questions without a word
    for name in settings.columns:
        wrong = np.flatnonzero([not isinstance(cell, str) or (blank_too and not cell.strip()) for cell in table[name]])
        if len(wrong):
            raise UserError(f"{_cell(table, where, wrong[0], name)} holds no text: complete it, or take the line out")
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
        raise UserError(
            f"dataset.classes={settings.classes} but {rows.where} has {len(found)} classes, none is labelled"
            f" {absent[0]}: set dataset.classes={int(found.max()) + 1}, or number the classes from 0"
        )


def decode(path: Path, encoding: str, setting: str = "dataset.path") -> str:
    """A text file, plain or gzip. Raises UserError naming the line and the byte that are not in `encoding`."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"{setting}={path} cannot be read: {error}") from error
    try:
        return raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not {encoding}:"
            " save it as that, or set dataset.encoding (latin-1, cp1252, ...) where it is a data set"
        ) from error


def _separated(path: Path, text: str, separator: str, header: bool) -> pd.DataFrame:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
    try:
        table = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            header=0 if header else None,
            quoting=quoting,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            index_col=False,
        )
    except pd.errors.ParserError as error:
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"{path}: {reason}: quote texts with '{separator}' in them, or correct the line") from error
    table.columns = table.columns.map(str)
    breaks = np.zeros(len(table), dtype=np.int64)  # inside quoted cells
    if quoting == csv.QUOTE_MINIMAL and '"' in text:
        for name in table.columns:
            breaks += table[name].str.count("\n").fillna(0).to_numpy(np.int64)
    lines = 1 + int(header) + np.arange(len(table)) + np.concatenate([[0], np.cumsum(breaks)[:-1]])
    table.index = pd.Index(lines, name="line")
    blank = (table.isna() | (table == "")).all(axis=1)
    return table[~blank]


def _json_lines(path: Path, text: str) -> pd.DataFrame:
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number} is not JSON: {error.msg}: write one object a line") from error
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number} is no JSON object: write one a line, as {{"sentence": "...", ...}}')
        rows.append(row)
        lines.append(number)
    return pd.DataFrame(rows, index=pd.Index(lines, name="line"), dtype=object)


def _classes(table: pd.DataFrame, where: Path | str, settings: DatasetSettings) -> np.ndarray:
    names = {name: number for number, name in enumerate(settings.class_names)}
    column = table[settings.label_column].map(lambda cell: names.get(cell, cell) if isinstance(cell, str) else cell)
    numbers = _numbers(table.assign(**{settings.label_column: column}), where, settings, "a class")
    whole = (numbers >= 0) & (numbers == numbers.round())
    wrong = np.flatnonzero(~whole | (numbers >= settings.classes))
    if len(wrong):
        value, largest = numbers.iloc[wrong[0]], int(numbers.max())
        remedy = f"correct it, or set dataset.classes={largest + 1}" if whole.all() else "number the classes from 0"
        raise UserError(
            f"{_cell(table, where, wrong[0], settings.label_column)}: {value:g} is none of the classes 0 to"
            f" {settings.classes - 1} (dataset.classes={settings.classes}): {remedy}"
        )
    return numbers.to_numpy(np.int64)


def _signs(table: pd.DataFrame, where: Path | str, settings: DatasetSettings) -> tuple[pd.DataFrame, np.ndarray]:
    scores = _numbers(table, where, settings, "a score")
    decided = scores != settings.positive_above
    if left_out := int((~decided).sum()):
        log.info("%s: %d scores are exactly %g and are left out", where, left_out, settings.positive_above)
    return table[decided], (scores[decided] > settings.positive_above).to_numpy(np.int64)


def _numbers(table: pd.DataFrame, where: Path | str, settings: DatasetSettings, what: str) -> pd.Series:
    column = table[settings.label_column]
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        value = str(column.iloc[wrong[0]])
        hint = "give scores as numbers"
        if what == "a class" and settings.class_names:
            hint = nearest(value, settings.class_names)
        elif what == "a class":
            hint = "name the classes in dataset.class_names=[...], or give numbers from 0"
        raise UserError(f"{_cell(table, where, wrong[0], settings.label_column)}: '{value}' is not {what}: {hint}")
    return numbers


def _cell(table: pd.DataFrame, where: Path | str, position: int, column: str) -> str:
    return f"{where}, {table.index.name or 'row'} {table.index[position]}, column '{column}'"


def normalised(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Texts that differ in case and white space alone are the same to a model without case."""
    return tuple(re.sub(r"\s+", " ", text.strip()).casefold() for text in texts)
