"""The nine tasks of GLUE (Wang et al., 2019), from the hub or a local copy in any of its formats."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttabt.data.arrow import failures, open_saved, reason
from sttabt.data.checks import check_columns, check_folder
from sttabt.data.source import TEXT, Source
from sttabt.errors import UserError, nearest
from sttabt.pretrained.hub import use_hub
from sttabt.settings import DatasetSettings, ModelSettings

if TYPE_CHECKING:
    import pandas as pd

    from sttabt.data.base import Splits
    from sttabt.data.rows import Rows

HUB_ID = "nyu-mll/glue"
GLUE_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
TEST_SPLITS = {"mnli": "validation_matched", "mrpc": "test"}  # the other tasks: validation; see METHOD section 3


class GlueSource(Source):
    """Choices are made on a share of train, as the labels of most official test splits are secret."""

    holds = "text"
    reads = (*TEXT, "path", "task_name")

    def check(self, dataset: DatasetSettings) -> None:
        check_columns(dataset)
        if dataset.task_name not in GLUE_TASKS:
            raise UserError(
                f"dataset.task_name={dataset.task_name} is unknown: {nearest(dataset.task_name, GLUE_TASKS)}"
            )
        if dataset.path:
            check_folder(dataset, "give a local copy of GLUE, or none for the hub")

    def load(self, dataset: DatasetSettings, model: ModelSettings) -> Splits:
        """Raises UserError when neither the hub nor `dataset.path` has the task."""
        from sttabt.data.text import text_splits

        test = TEST_SPLITS.get(dataset.task_name, "validation")
        return text_splits(dataset, model, _read_split(dataset, "train"), None, _read_split(dataset, test))


def _read_split(settings: DatasetSettings, split: str) -> Rows:
    from sttabt.data.rows import parse_table

    if not settings.path:
        where = f"{HUB_ID} {settings.task_name} {split}"
        return parse_table(_from_hub(settings.task_name, split), where, settings, empty_texts=True)
    folder = Path(settings.path)
    if (folder / settings.task_name).is_dir():
        folder = folder / settings.task_name
    table = _from_folder(folder, split)
    if table is None:
        raise UserError(
            f"dataset.path={settings.path} has no split {split} of {settings.task_name}: give a folder saved by"
            f" save_to_disk, or one with {split}.parquet, .jsonl or .csv"
        )
    return parse_table(table, f"{folder} {split}", settings, empty_texts=True)  # some questions have no word


def _from_folder(folder: Path, split: str) -> pd.DataFrame | None:
    """None when the folder does not have the split."""
    import pandas as pd

    from sttabt.data.tables import read_table, table_format

    if (saved := open_saved(folder, split)) is not None:
        return _rows(saved)
    name = re.compile(re.escape(split) + r"(?:-(\d+)-of-(\d+))?\.\w+(?:\.gz)?")
    files = [file for file in sorted(folder.glob("*")) if name.fullmatch(file.name) and table_format(file)]
    _check_parts(folder, [match for file in files if (match := name.fullmatch(file.name))])
    # GLUE's own .tsv files know no quotes.
    tables = [read_table(file, quoting="none" if table_format(file) != ".csv" else "double") for file in files]
    return pd.concat(tables) if tables else None


def _check_parts(folder: Path, files: list[re.Match[str]]) -> None:
    """A split is one file, or all of the parts into which the hub cuts it: 00000-of-00002 and 00001-of-00002."""
    parts = [(int(file[1]), int(file[2])) for file in files if file[1]]
    if len(parts) < len(files) and len(files) > 1:
        raise UserError(f"dataset.path={folder} has {files[0][0]} and {files[1][0]}: leave one of them there")
    if parts and parts != (whole := [(part, len(parts)) for part in range(parts[0][1])]):
        raise UserError(
            f"dataset.path={folder} has {', '.join(file[0] for file in files[:2])}, ...: parts are missing or twice"
            f" there, leave the {len(whole)} of one copy"
        )


def _from_hub(task: str, split: str) -> pd.DataFrame:
    reachable = use_hub()
    from datasets import load_dataset  # after the line above, which may tell it to stay offline

    try:
        return _rows(load_dataset(HUB_ID, task, split=split))
    except failures() as error:
        why = (
            "cannot be loaded" if reachable else "is not in the cache and the hub is out of reach (or HF_HUB_OFFLINE=1)"
        )
        raise UserError(
            f"dataset.task_name={task}: {HUB_ID} {why}: load it once with a network, or give a local copy with"
            f" dataset.path=FOLDER ({reason(error)})"
        ) from error


def _rows(dataset: Any) -> pd.DataFrame:
    import pandas as pd

    table = dataset.to_pandas()
    return table.set_index(pd.RangeIndex(len(table), name="row"))
