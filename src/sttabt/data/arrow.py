"""Data sets of Hugging Face's `datasets`, opened so that what is wrong with one is said in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sttabt.errors import UserError, nearest


def failures() -> tuple[type[Exception], ...]:
    """What `datasets` raises for a data set that is not there or damaged; ConnectionError is an OSError."""
    from datasets.exceptions import DatasetsError
    from pyarrow.lib import ArrowException

    return OSError, ValueError, KeyError, TypeError, DatasetsError, ArrowException


def reason(error: BaseException) -> str:
    """The first line of the deepest cause: `datasets` wraps what it met."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__


def open_saved(folder: Path, split: str) -> Any:
    """The split of a folder that save_to_disk wrote, a `datasets.Dataset`; None where it did not write the folder.

    Raises UserError for one that has no such split, no splits at all, or is damaged.
    """
    from datasets import Dataset

    if (folder / split / "state.json").is_file():
        try:
            return Dataset.load_from_disk(str(folder / split))
        except failures() as error:
            raise UserError(f"{folder / split} is damaged ({reason(error)}): save it again") from error
    if (folder / "state.json").is_file():
        raise UserError(
            f"dataset.path={folder} is a data set that was saved without splits: save a DatasetDict, for example"
            " dataset.train_test_split(0.2).save_to_disk(FOLDER)"
        )
    if (folder / "dataset_dict.json").is_file():
        saved = [path.parent.name for path in folder.glob("*/state.json")]
        raise UserError(f"dataset.path={folder} has no split {split}: {nearest(split, saved)}")
    return None
