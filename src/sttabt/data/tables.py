"""Files of tables, as text in every cell or as the file has it. What does not fit is named by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from sttabt.data.separated import NAMED, read_separated
from sttabt.errors import UserError
from sttabt.system.paths import is_packed, not_a_file, read_bytes

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
FORMATS = (*SEPARATORS, *JSON_LINES, ".parquet")
# How files begin that are easily taken for text, and what to do with each.
OTHERS = {
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or save it as .csv",
    b"\x1f\x8b": "compressed by gzip: let its name end in .gz",
    b"BZh91AY": "compressed by bzip2: unpack it",
    b"\xfd7zXZ": "compressed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    b"PAR1\x15": "parquet: let its name end in .parquet",
    b"%PDF-": "a PDF document: save its text",
}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def table_format(path: Path) -> str:
    """The suffix that says how a file is read, without `.gz`; '' when it is none of FORMATS."""
    suffix = Path(path.name[:-3] if is_packed(path) else path.name).suffix.lower()
    return suffix if suffix in FORMATS else ""


def read_table(
    path: Path, encoding: str = "utf-8", header: bool = True, separator: str = "", quoting: str = "auto"
) -> pd.DataFrame:
    """A CSV, TSV, JSON-lines or parquet file, indexed by line, or row for parquet; text formats also as .gz.

    separator: a character or its name; empty: as the suffix says. quoting: as in `read_separated`. Raises UserError
    naming the file, and the line where it is one.
    """
    kind = table_format(path)
    if why := not_a_file(path):
        raise UserError(f"dataset.path={path} {why}: give one that is there")
    if not kind:
        raise UserError(f"dataset.path={path}: its format is unknown: name it {', '.join(FORMATS)}, as what it is")
    if kind == ".parquet":
        table = _parquet(path)
    else:
        text = decode(path, encoding)
        if not text.strip():
            raise UserError(f"dataset.path={path} is empty: give a file with texts and labels")
        table = (
            _json_lines(path, text)
            if kind in JSON_LINES
            else _separated(path, text, NAMED.get(separator, separator) or SEPARATORS[kind], quoting, header)
        )
    return table


def decode(path: Path, encoding: str, setting: str = "dataset.path") -> str:
    """A text file, plain or gzip. Raises UserError naming the line and the byte that are not in `encoding`."""
    try:
        raw = read_bytes(path)
    except OSError as error:
        raise UserError(f"{setting}={path} cannot be read, it may be damaged: {error.strerror or error}") from error
    if found := [hint for start, hint in OTHERS.items() if raw.startswith(start)]:
        raise UserError(f"{setting}={path} is no text, but {found[0]}")
    try:
        text = raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        fitting = "utf-16" if raw.startswith(UTF_16) else "latin-1, cp1252, ..."
        raise UserError(
            f"{path}, line {_line(raw, start)}: byte 0x{raw[start]:02x} is not {encoding}:"
            f" save it as that, or set dataset.encoding ({fitting}) where it is a data set"
        ) from error
    if (place := text.find("\0")) >= 0:
        raise UserError(
            f"{path}, line {_line(text, place)} holds zero bytes: it is damaged, or no text; or set dataset.encoding"
            " (utf-16, ...) where it is a data set"
        )
    return text


def _line(content: Any, place: int) -> int:
    """Of the byte or the character at `place`, from 1."""
    return content.count("\n" if isinstance(content, str) else b"\n", 0, place) + 1


def _separated(path: Path, text: str, separator: str, quoting: str, header: bool) -> pd.DataFrame:
    cells = read_separated(path, text, separator, quoting, header)
    return pd.DataFrame(cells.rows, pd.Index(cells.lines, name="line"), columns=cells.names, dtype=object)


def _json_lines(path: Path, text: str) -> pd.DataFrame:
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            reason = getattr(error, "msg", str(error).partition(";")[0])
            raise UserError(f"{path}, line {number} is not JSON: {reason}: write one object a line") from error
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number} is no JSON object: write one a line, as {{"sentence": "...", ...}}')
        rows.append(row)
        lines.append(number)
    return pd.DataFrame(rows, index=pd.Index(lines, name="line"), dtype=object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands in it twice")
    return found


def _parquet(path: Path) -> pd.DataFrame:
    """Every column of the file, also one that pandas wrote as an index."""
    from pyarrow.lib import ArrowException
    from pyarrow.parquet import ParquetFile

    if is_packed(path):
        raise UserError(f"dataset.path={path}: parquet is compressed inside: unpack it")
    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            found = file.read()
        found.validate(full=True)
        table = found.to_pandas(ignore_metadata=True)
    except (OSError, ValueError, KeyError, ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"dataset.path={path} cannot be read, it may be damaged: {reason}") from error
    return table.set_index(pd.RangeIndex(len(table), name="row"))
