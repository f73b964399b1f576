"""Texts and labels out of a table: every cell that does not fit is named by file, line and column."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sttabt.data.tables import SEPARATORS, read_table, table_format
from sttabt.errors import UserError, nearest
from sttabt.settings import DatasetSettings

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


def read_rows(path: Path, settings: DatasetSettings) -> Rows:
    """Texts and labels of a file. Raises UserError naming the file, and the line and the column if it is one cell."""
    return parse_table(_read(path, settings), path, settings)


def count_classes(path: Path, settings: DatasetSettings) -> DatasetSettings:
    """The settings with the classes of the file's labels, and their names unless they are 0, 1, ...

    Words and numbers are classes in their order. Raises UserError where labels can hardly be classes.
    """
    table = _read(path, settings)
    _check_names(table, path, settings)
    column = table[settings.label_column]
    labels = [cell for cell in column if _shown(cell)]  # a row without a label is named when it is read
    named = [isinstance(label, bool | np.bool_) or not math.isfinite(_number(label)) for label in labels]
    numbers = sorted({_number(label) for label, word in zip(labels, named, strict=True) if not word})
    words = sorted({str(label).strip() for label, word in zip(labels, named, strict=True) if word})
    if numbers and words:
        strange = next(place for place, cell in enumerate(column) if _shown(cell) and str(cell).strip() == words[0])
        raise UserError(
            f"{_cell(table, path, strange, settings.label_column)}: '{_shown(words[0])}' stands among numbers: correct"
            " it, or name all classes in dataset.class_names=[...]"
        )
    if fractions := [number for number in numbers if number != round(number)]:
        raise UserError(
            f"{path}, column '{settings.label_column}' holds {fractions[0]:g}, which is a score and no class: set"
            " dataset.task=regression and dataset.metric=pearson, or name the column of classes in dataset.label_column"
        )
    names = words or [f"{number:.0f}" for number in numbers]
    if len(names) < 2:
        raise UserError(
            f"{path}, column '{settings.label_column}' has one class alone, {', '.join(names) or 'none'}: give texts of"
            " two classes at least"
        )
    if 2 * len(names) > len(labels) and len(names) > NAMEABLE:
        raise UserError(
            f"{path}, column '{settings.label_column}' has {len(names)} different labels in {len(labels)} rows, so that"
            " they are hardly classes: name another column in dataset.label_column, or set"
            f" dataset.classes={len(names)}"
        )
    if names == list(map(str, range(len(names)))):
        return replace(settings, classes=len(names))
    return replace(settings, classes=len(names), class_names=names)


def parse_table(table: pd.DataFrame, where: Path | str, settings: DatasetSettings, empty_texts: bool = False) -> Rows:
    """The columns that the settings name, as texts and labels. Raises UserError naming the cell that does not fit."""
    _check_names(table, where, settings)
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
    found = np.unique(rows.labels).tolist()
    if len(found) == settings.classes:
        return
    if len(found) == 1:
        remedy = "give texts of two classes at least"
    elif settings.class_names:
        names = [settings.class_names[label] for label in found]
        remedy = f"give texts of it, or set dataset.classes={len(found)} and {_class_names(names)}"
    elif found == list(range(len(found))):
        remedy = f"set dataset.classes={len(found)}"
    elif len(found) <= NAMEABLE:
        remedy = (
            f"set dataset.classes={len(found)}, and number the labels from 0 or name them all: {_class_names(found)}"
        )
    else:
        remedy = f"set dataset.classes={len(found)}, and number the labels from 0 without gaps"
    absent = min(set(range(settings.classes)) - set(found))
    called = settings.class_names[absent] if settings.class_names else absent
    raise UserError(
        f"dataset.classes={settings.classes} but {rows.where} has labels of {len(found)} classes, none is {called}:"
        f" {remedy}"
    )


def normalised(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Texts that differ in case and white space alone are the same to a model without case."""
    return tuple(re.sub(r"\s+", " ", text.strip()).casefold() for text in texts)


def _read(path: Path, settings: DatasetSettings) -> pd.DataFrame:
    return read_table(path, settings.encoding, settings.header, settings.separator, settings.quoting)


def _check_names(table: pd.DataFrame, where: Path | str, settings: DatasetSettings) -> None:
    """The table has rows, and each of the columns that the settings name, once."""
    if not len(table):
        raise UserError(f"{where} has no rows: give a file with texts and labels")
    for key, names in (("columns", settings.columns), ("label_column", [settings.label_column])):
        for name in names:
            if name not in table.columns:
                raise UserError(f"dataset.{key}: {where} has no column '{name}': {_columns(table, where, name)}")
            if (count := list(table.columns).count(name)) > 1:
                raise UserError(f"dataset.{key}: {where} has {count} columns '{name}': give each a name of its own")


def _classes(table: pd.DataFrame, where: Path | str, settings: DatasetSettings) -> np.ndarray:
    """Labels are names of `class_names`, whatever their type; or, where no name is a number, numbers from 0."""
    find = _class_finder(settings.class_names)
    given = table[settings.label_column].tolist()
    named = [find(cell) for cell in given]
    if any(math.isfinite(_number(name)) for name in settings.class_names):
        wrong = [place for place, found in enumerate(named) if found is None]
        if wrong:
            raise UserError(_no_class(table, where, wrong[0], settings))
        return np.array(named, dtype=np.int64)
    column = [cell if found is None else found for cell, found in zip(given, named, strict=True)]
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
    """The place of a label among the names: of 1, 1.0 and '1.0' that of '1', of true that of 'True' or 'true'.

    White space around a label says nothing, unless a name has it.
    """
    places = {name: place for place, name in enumerate(names)}
    numbers = {number: place for name, place in places.items() if math.isfinite(number := _number(name))}
    flags = {name.lower(): place for name, place in places.items() if name.lower() in ("true", "false")}

    def find(cell: object) -> int | None:
        if isinstance(cell, bool | np.bool_) and flags:
            return flags.get(str(cell).lower())
        if isinstance(cell, str):
            for name in (cell, cell.strip()):
                if name in places:
                    return places[name]
        return numbers.get(_number(cell))

    return find


def _renumber(numbers: pd.Series, settings: DatasetSettings) -> str:
    """What to do about whole or broken numbers that are no classes."""
    found = sorted(set(numbers))
    if found == [-1]:
        return "labels that are secret cannot be scored, give a split with labels"
    if any(number != round(number) for number in found):
        return "number the classes from 0"
    if found == list(range(len(found))):
        return f"correct it, or set dataset.classes={len(found)}"
    begin = "labels begin at 1 here: " if found == list(range(1, len(found) + 1)) else "correct it, "
    if len(found) > NAMEABLE:
        return f"{begin}number the {len(found)} different labels from 0 without gaps"
    also = "" if len(found) == settings.classes else f"dataset.classes={len(found)} and "
    return f"{begin}number the classes from 0, or name them all: {also}{_class_names(found)}"


def _class_names(labels: Iterable[Any]) -> str:
    """The setting, as one writes it, for labels that are words or numbers."""
    names = [f"{label:g}" if isinstance(label, float) else str(label) for label in labels]
    return f"dataset.class_names=[{','.join(names)}]"


def _signs(table: pd.DataFrame, where: Path | str, settings: DatasetSettings) -> tuple[pd.DataFrame, np.ndarray]:
    scores = _numbers(table, where, settings, "a score")
    decided = scores != settings.positive_above
    if left_out := int((~decided).sum()):
        log.info("%s: %d scores are exactly %g and are left out", where, left_out, settings.positive_above)
    if not decided.any():
        raise UserError(f"{where} has no other score than {settings.positive_above:g}: set dataset.positive_above=null")
    return table[decided], (scores[decided] > settings.positive_above).to_numpy(np.int64)


def _numbers(table: pd.DataFrame, where: Path | str, settings: DatasetSettings, what: str) -> pd.Series:
    """Labels as float64, finite in 32 bits, too."""
    column = table[settings.label_column]
    numbers = column.map(_number).astype(np.float64)
    wrong = np.flatnonzero(~(numbers.abs() <= np.finfo(np.float32).max))
    if len(wrong):
        if what == "a class":
            raise UserError(_no_class(table, where, wrong[0], settings))
        place = _cell(table, where, wrong[0], settings.label_column)
        raise UserError(f"{place}: '{_shown(column.iloc[wrong[0]])}' is not {what}: give scores as numbers")
    return numbers


def _number(cell: object) -> float:
    """NaN for what is no number."""
    if isinstance(cell, str | Number) and "_" not in str(cell):  # which Python reads as 1_000
        try:
            return float(cell)  # type: ignore[arg-type]
        except (ValueError, TypeError, OverflowError):
            pass
    return math.nan


def _no_class(table: pd.DataFrame, where: Path | str, position: int, settings: DatasetSettings) -> str:
    column = table[settings.label_column]
    cell = column.iloc[position]
    hint = "name the classes in dataset.class_names=[...], or give numbers from 0"
    if settings.class_names:
        hint = nearest(str(cell).strip()[:SHOWN], settings.class_names)
    elif column.map(lambda label: isinstance(label, str) and math.isnan(_number(label)) and bool(label.strip())).all():
        words = sorted({label.strip() for label in column})
        if 1 < len(words) <= NAMEABLE:
            also = "" if len(words) == settings.classes else f"dataset.classes={len(words)} and "
            hint = f"name the classes: {also}{_class_names(map(_shown, words))}, or give numbers from 0"
    return f"{_cell(table, where, position, settings.label_column)}: '{_shown(cell)}' is not a class: {hint}"


def _columns(table: pd.DataFrame, where: Path | str, name: str) -> str:
    """Which columns there are; where the first line names none, its cells are taken for names."""
    hint = nearest(name, [str(column)[:SHOWN] for column in table.columns])
    taken = isinstance(where, Path) and table_format(where) in SEPARATORS and not name.isdecimal()
    return (
        f"{hint} (dataset.header=false if the first line names none)" if taken and hint.startswith("choose") else hint
    )


def _shown(cell: object) -> str:
    """One line of it, empty for what is missing."""
    missing = cell is None or cell is pd.NA or cell != cell
    text = " ".join(("" if missing else str(cell)).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _cell(table: pd.DataFrame, where: Path | str, position: int, column: str) -> str:
    return f"{where}, {table.index.name or 'row'} {table.index[position]}, column '{column}'"
