"""Any file of texts with labels or scores, or a folder with a file a split. Formats: sttabt.data.tables."""

from __future__ import annotations

from pathlib import Path

from sttabt.data.base import Splits
from sttabt.data.tables import FORMATS, Rows, read_rows, table_format
from sttabt.data.text import text_splits
from sttabt.errors import UserError
from sttabt.settings import DatasetSettings, ModelSettings


def load(settings: DatasetSettings, model: ModelSettings) -> Splits:
    """A file, of which test and validation are held out; or a folder with train.*, test.* and maybe validation.*.

    The test split of a file depends on nothing but the file and `dataset.test_share`.
    """
    path = Path(settings.path)
    if not path.is_dir():
        return text_splits(settings, model, read_rows(path, settings), None, None)
    parts = {part: _read_part(path, part, settings) for part in ("train", "validation", "test")}
    for part in ("train", "test"):
        if parts[part] is None:
            raise UserError(
                f"dataset.path={path} has no {part} file: name it {part}.csv (or {', '.join(FORMATS[1:])}),"
                " or give a single file to split"
            )
    assert parts["train"] is not None
    return text_splits(settings, model, parts["train"], parts["validation"], parts["test"])


def _read_part(folder: Path, part: str, settings: DatasetSettings) -> Rows | None:
    files = [file for file in sorted(folder.glob(f"{part}.*")) if table_format(file)]
    if len(files) > 1:
        raise UserError(f"dataset.path={folder} has {files[0].name} and {files[1].name}: leave one {part} file there")
    return read_rows(files[0], settings) if files else None
