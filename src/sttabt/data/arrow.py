"""Data sets of Hugging Face's `datasets`, opened so that what is wrong with one is said in a line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sttabt.errors import UserError, nearest
from sttabt.system.paths import not_a_file, not_a_folder


def failures() -> tuple[type[Exception], ...]:
    """What `datasets` raises for a data set that is not there, or damaged, or holds code: RuntimeError."""
    from datasets.exceptions import DatasetsError
    from pyarrow.lib import ArrowException

    return OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, DatasetsError, ArrowException


def reason(error: BaseException) -> str:
    """The first line of the deepest cause: `datasets` wraps what it met."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__


def check_files(folder: Path) -> None:
    """Raises UserError for what is in the folder and no file, since `datasets` would wait for a pipe."""
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(place) / name
            if path.exists() and (why := not_a_file(path)):
                raise UserError(f"dataset.path={folder}: {path} {why}: take it out")


def open_saved(folder: Path, split: str, otherwise: str = "") -> Any:
    """The split of a folder that save_to_disk wrote, a `datasets.Dataset`; None where it did not write the folder.

    Raises UserError for one that has no such split, and says what to do `otherwise`; no splits at all, or is damaged.
    """
    from datasets import Dataset

    if not_a_folder(folder):  # `datasets` says so, or finds it on the hub
        return None
    check_files(folder)
    if (folder / split / "state.json").is_file():
        try:
            saved = Dataset.load_from_disk(str(folder / split))
            saved.data.table.validate(full=True)  # what points out of its buffers would end the process
            return saved
        except failures() as error:
            raise UserError(f"{folder / split} is damaged ({reason(error)}): save it again") from error
    if (folder / "state.json").is_file():
        raise UserError(
            f"dataset.path={folder} is a data set that was saved without splits: save a DatasetDict, for example"
            " dataset.train_test_split(0.2).save_to_disk(FOLDER)"
        )
    if (folder / "dataset_dict.json").is_file():
        saved = [path.parent.name for path in folder.glob("*/state.json")]
        raise UserError(f"dataset.path={folder} has no split {split}: {nearest(split, saved)}{otherwise}")
    return None
