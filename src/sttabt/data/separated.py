"""Text files with a separator between cells, as spreadsheets, databases and benchmarks write them. Imports no torch."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sttabt.errors import UserError

NAMED = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}  # characters that are awkward on a command line
QUOTED = re.compile(r'"(?:[^"]|"")*"')  # a cell as a writer quotes it: quotation marks inside are doubled
QUOTE = '"'


@dataclass(frozen=True)
class Cells:
    """names: of the columns; rows: their cells, None where a row ends early; lines: where each begins, from 1."""

    names: list[str]
    rows: list[list[str | None]]
    lines: list[int]


def read_separated(path: Path, text: str, separator: str, quoting: str, header: bool) -> Cells:
    """The cells of `text`, which `path` holds. Blank lines are left out.

    quoting: `double`, a cell may stand in quotation marks, those inside are doubled; `none`, they are part of the
    text; `auto`, tab-separated files are looked at, since they are written either way, and others are `double`.
    Raises UserError naming the line that does not fit, and the setting that may be wrong.
    """
    quoted = _has_quotes(path, text, separator) if quoting == "auto" else quoting == "double"
    names: list[str] = []
    rows: list[list[str | None]] = []
    lines = []
    try:
        for line, row in _records(text, separator, quoted):
            if not any(cell.strip() for cell in row):
                continue
            if not names:
                _check_separator(path, row, separator)
                names = row if header else list(map(str, range(len(row))))
                if header:
                    continue
            if len(row) > len(names):
                raise UserError(_too_many(path, line, row, names, separator, quoted))
            rows.append([*row, *[None] * (len(names) - len(row))])
            lines.append(line)
    except _QuotesError as error:
        raise UserError(
            f"{path}, line {error.line}: a cell begins with a quotation mark and does not end with one, or has some"
            " inside that are not doubled: correct it, or set dataset.quoting=none if they are part of the texts"
        ) from error
    return Cells(names, rows, lines)


class _QuotesError(Exception):
    """Quotation marks of the record that begins at `line` do not match."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


def _records(text: str, separator: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """The line at which each record begins, and its cells. Raises _QuotesError."""
    style: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    limit = csv.field_size_limit(sys.maxsize)  # of the whole process
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=style, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise _QuotesError(line) from error
            yield line, row
    finally:
        csv.field_size_limit(limit)


def _has_quotes(path: Path, text: str, separator: str) -> bool:
    """Whether quotation marks around cells are the writer's. Raises UserError where only some of them seem to be."""
    if separator != "\t":
        return True
    if QUOTE not in text:
        return False
    lines = text.splitlines()
    opened = [cell for line in lines for cell in line.split(separator) if cell.startswith(QUOTE)]
    written = any(QUOTED.fullmatch(cell) and QUOTE * 2 in cell[1:-1] for cell in opened)
    written |= all(QUOTED.fullmatch(cell) for cell in lines[0].split(separator))
    fits, misfit = _fits(text, separator, quoted=True)
    if written and not fits:
        raise UserError(
            f"{path}, line {misfit}: some cells stand in quotation marks as spreadsheets write them, but here they do"
            " not match: correct it, or set dataset.quoting=none (they are part of the texts)"
        )
    return fits and (written or not _fits(text, separator, quoted=False)[0])


def _fits(text: str, separator: str, quoted: bool) -> tuple[bool, int]:
    """Whether all records have as many cells as the first, and where not: the line."""
    width = 0
    try:
        for line, row in _records(text, separator, quoted):
            width = width or len(row)
            if any(cell.strip() for cell in row) and len(row) != width:
                return False, line
    except _QuotesError as error:
        return False, error.line
    return True, 0


def _check_separator(path: Path, first: list[str], separator: str) -> None:
    """Texts have a label: one column is too few."""
    others = [name for name, other in NAMED.items() if other != separator and other in first[0]]
    if len(first) == 1 and others:
        raise UserError(
            f"{path}: its first line has no {_name(separator)}, but a {others[0]}: set dataset.separator={others[0]}"
        )


def _too_many(path: Path, line: int, row: list[str], names: list[str], separator: str, quoted: bool) -> str:
    remedy = f"quote texts with a {_name(separator)} in them" if quoted else f"take a {_name(separator)} out"
    if len(names) == 1:
        remedy = "the first line must name the columns"
    return f"{path}, line {line} has {len(row)} cells, the first line {len(names)}: {remedy}, or set dataset.separator"


def _name(separator: str) -> str:
    return {character: name for name, character in NAMED.items()}.get(separator, f"'{separator}'")
