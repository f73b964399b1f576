"""Any file of texts with labels or scores, or a folder with a file a split. Formats: sttabt.data.tables."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sttabt.data.checks import check_columns
from sttabt.data.separated import NAMED
from sttabt.data.source import TEXT, Source
from sttabt.errors import UserError
from sttabt.settings import DatasetSettings, ModelSettings
from sttabt.system.paths import not_a_file, not_a_folder

if TYPE_CHECKING:
    from sttabt.data.base import Splits
    from sttabt.data.rows import Rows

log = logging.getLogger(__name__)

NO_SEPARATORS = ('"', "\r", "\n")  # quotation marks and line ends mean something else


class TextFileSource(Source):
    """A file, of which test and validation are held out; or a folder with train.*, test.* and maybe validation.*.

    The test split of a file depends on nothing but the file and `dataset.test_share`.
    """

    holds = "text"
    reads = (*TEXT, "path", "header", "encoding", "separator", "quoting", "test_share")

    def check(self, dataset: DatasetSettings) -> None:
        check_columns(dataset)
        for name in (*dataset.columns, dataset.label_column):
            if not dataset.header and not name.isdecimal():
                raise UserError(
                    f"dataset.columns, dataset.label_column: '{name}' is no number, but dataset.header=false:"
                    " name columns 0, 1, ..."
                )
        try:
            "a".encode(dataset.encoding)
        except (LookupError, UnicodeError) as error:  # UnicodeError: of the encoding `undefined`
            raise UserError(
                f"dataset.encoding={dataset.encoding} is unknown: set utf-8, latin-1, cp1252, ..."
            ) from error
        if dataset.separator not in NAMED and (len(dataset.separator) > 1 or dataset.separator in NO_SEPARATORS):
            what = "more than one character" if len(dataset.separator) > 1 else "no separator"
            raise UserError(f"dataset.separator={dataset.separator} is {what}: give one, or {', '.join(NAMED)}")
        if not dataset.path:
            raise UserError("dataset.path is missing: give dataset.path=FILE, or a folder with train and test files")
        if (why := not_a_file(dataset.path)) and not_a_folder(dataset.path):
            how = " (`make movie-reviews` fetches it)" if dataset.name.startswith("movie_review") else ""
            raise UserError(f"dataset.path={dataset.path} {why}: give a file, or a folder with a file a split{how}")

    def load(self, dataset: DatasetSettings, model: ModelSettings) -> Splits:
        from sttabt.data.rows import read_rows
        from sttabt.data.tables import FORMATS
        from sttabt.data.text import text_splits

        path = Path(dataset.path)
        if not path.is_dir():
            return text_splits(dataset, model, read_rows(path, dataset), None, None)
        parts = {part: _read_part(path, part, dataset) for part in ("train", "validation", "test")}
        for part in ("train", "test"):
            if parts[part] is None:
                raise UserError(
                    f"dataset.path={path} has no {part} file: name it {part}.csv (or {', '.join(FORMATS[1:])}),"
                    " or give a single file to split"
                )
        others = [file.name for file in _tables(path) if file.name.partition(".")[0] not in parts]
        if others:
            log.warning(
                "%s: files of other names than train, validation and test are left out: %s", path, ", ".join(others)
            )
        assert parts["train"] is not None
        return text_splits(dataset, model, parts["train"], parts["validation"], parts["test"])

    def unused(self, dataset: DatasetSettings) -> dict[str, str]:
        return {} if not_a_folder(dataset.path) else {"test_share": "the folder has a test split"}


def _read_part(folder: Path, part: str, settings: DatasetSettings) -> Rows | None:
    from sttabt.data.rows import read_rows

    files = [file for file in _tables(folder) if file.name.partition(".")[0] == part]
    if len(files) > 1:
        raise UserError(f"dataset.path={folder} has {files[0].name} and {files[1].name}: leave one {part} file there")
    return read_rows(files[0], settings) if files else None


def _tables(folder: Path) -> list[Path]:
    from sttabt.data.tables import table_format

    return [file for file in sorted(folder.glob("[!.]*")) if table_format(file)]
