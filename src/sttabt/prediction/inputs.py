"""From arguments of a command line to inputs: files of images, and texts line by line. Imports no torch."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sttabt.data.labelled import image_suffixes
from sttabt.data.rows import HALF
from sttabt.data.tables import SEPARATORS, decode, read_table, table_format
from sttabt.errors import UserError, nearest
from sttabt.system.paths import not_a_file, not_a_folder

STDIN = "-"
LINES = (".txt", ".text")  # files that hold a text a line
MOST_COLUMNS = 2  # that tokenizers take
SHOWN = 5  # columns in a message


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One input. content: the path of an image, or the columns of a text; file, line: where a text stands, from 1."""

    content: tuple[str, ...]
    file: str = ""
    line: int = 0

    @property
    def named(self) -> dict[str, Any]:
        """As lines of the result name it."""
        content: Any = self.content[0] if len(self.content) == 1 else list(self.content)
        return {"input": content} | ({"file": self.file, "line": self.line} if self.line else {})

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.line}" if self.line else self.content[0]


@dataclass(frozen=True)
class Reading:
    """How files of texts are read: see sttabt.data.tables. columns: of tables, () where none is named."""

    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"
    separator: str = ""


def check_given(given: Sequence[str]) -> None:
    """Raises UserError for what is not there, before a model is loaded."""
    if not given:
        raise UserError("no input is given: name files, folders of images, or - for standard input")
    for name in given:
        if name != STDIN and not_a_file(name) and not_a_folder(name):
            raise UserError(f"{name} {not_a_file(name)}: give files, folders of images, or - for standard input")


def find_images(given: Sequence[str]) -> list[Item]:
    """The images of files, and below folders, in a fixed order; of standard input paths, one a line.

    Raises UserError for a file of text, and for a folder without an image.
    """
    found: list[Item] = []
    for name in given:
        if name == STDIN:
            found += [Item((line,)) for line in _stdin("utf-8").splitlines() if line.strip()]
        elif Path(name).is_dir():
            paths = list(_below(name))
            inside = [Item((path,)) for path in paths if Path(path).suffix.lower() in image_suffixes()]
            if not inside:
                raise UserError(f"{name} holds no image: give a folder with some, or files")
            if others := len(paths) - len(inside):
                log.warning("%s: passed over %d that by name are no images", name, others)
            found += inside
        elif _is_text(Path(name)):
            raise UserError(f"{name} holds text, but the model reads images: give images, or a model of texts")
        else:
            found.append(Item((name,)))
    return found


def find_texts(given: Sequence[str], reading: Reading, usual: Sequence[str]) -> tuple[list[Item], list[str]]:
    """The texts of files, line by line, of tables row by row, and a line for each file that cannot be read.

    usual: columns that the model was trained on, which are read where no others are named. Raises UserError for images,
    folders, and columns that are not there.
    """
    found: list[Item] = []
    left_out: list[str] = []
    if reading.columns and len(reading.columns) != (len(usual) or min(len(reading.columns), MOST_COLUMNS)):
        wanted = len(usual) or "one or two"
        raise UserError(f"column={','.join(reading.columns)}: the model reads {wanted} columns")
    for name in given:
        path = Path(name)
        if len(usual) > 1 and (name == STDIN or path.suffix.lower() in LINES):
            raise UserError(f"{name} has a text a line, but the model reads pairs: give a table and column=A,B")
        if name == STDIN:
            found += _lines(_stdin(reading.encoding), STDIN)
        elif path.is_dir():
            raise UserError(f"{name} is a folder, but the model reads texts: give files of texts")
        elif path.suffix.lower() in image_suffixes():
            raise UserError(f"{name} is an image, but the model reads texts: give texts, or a model of images")
        elif table_format(path) and path.suffix.lower() not in LINES:
            found += _rows(path, reading, usual)
        else:
            try:
                found += _lines(decode(path, reading.encoding), name)
            except UserError as error:
                left_out.append(_plain(error))
    return found, left_out


def _lines(text: str, file: str) -> list[Item]:
    """Blank lines are no texts."""
    return [Item((line,), file, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _rows(path: Path, reading: Reading, usual: Sequence[str]) -> Iterator[Item]:
    try:
        table = read_table(path, reading.encoding, separator=reading.separator)
    except UserError as error:
        raise UserError(_plain(error)) from error
    names = [str(name) for name in table.columns]
    columns = reading.columns or (tuple(usual) if set(usual) <= set(names) else ())
    if not columns and len(names) == 1 and len(usual) < MOST_COLUMNS:
        columns = (names[0],)
    if not columns:
        shown = ", ".join(names[:SHOWN])
        raise UserError(f"{path} has the columns {shown}: say which holds the texts, column=NAME")
    for name in columns:
        if names.count(name) != 1:
            why = f"has no column '{name}': {nearest(name, names)}" if name not in names else "has it twice"
            raise UserError(f"column={name}: {path} {why}")
    what = "row" if path.suffix.lower() not in SEPARATORS else "line"
    for line, cells in zip(table.index, zip(*(table[name] for name in columns), strict=True), strict=True):
        if not all(isinstance(cell, str) and cell.strip() for cell in cells):
            raise UserError(f"{path}, {what} {line}: column {', '.join(columns)} holds no text: complete it")
        if any(HALF.search(cell) for cell in cells):
            raise UserError(f"{path}, {what} {line} holds half of a character (a surrogate): write the text anew")
        yield Item(tuple(cells), str(path), int(line))


def _stdin(encoding: str) -> str:
    try:
        return sys.stdin.buffer.read().decode(encoding)
    except UnicodeError as error:
        raise UserError(f"standard input is not {encoding} ({error.reason}): give encoding=NAME") from error  # type: ignore[attr-defined]


def _below(folder: str) -> Iterator[str]:
    """The visible files of a folder and of those inside."""
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (f"{place}{os.sep}{name}" for name in sorted(names) if not name.startswith("."))


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}): allow it, or take it out") from error


def _is_text(path: Path) -> bool:
    return bool(table_format(path)) or path.suffix.lower() in LINES


def _plain(error: UserError) -> str:
    """Without the names that the settings of a run have."""
    return str(error).replace("dataset.path=", "").replace("dataset.", "").replace(" where it is a data set", "")
