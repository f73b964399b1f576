"""Any data set of Hugging Face's `datasets` with a column of images: from the hub, or a local copy in its formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sttabt.data.checks import check_folder, check_label_column
from sttabt.data.labelled import LabelledImages, decode
from sttabt.data.source import PREPARED, Source
from sttabt.errors import UserError, nearest
from sttabt.pretrained.hub import use_hub
from sttabt.settings import DatasetSettings, ModelSettings

if TYPE_CHECKING:
    from sttabt.data.base import Splits


class ImageTableSource(Source):
    """`test_split` is the test split; validation is a stratified share of `train_split`."""

    holds = "images"
    reads = (
        *PREPARED,
        *("path", "hub_id", "configuration", "train_split", "test_split", "image_column", "label_column"),
    )

    def check(self, dataset: DatasetSettings) -> None:
        if not (dataset.path or dataset.hub_id):
            raise UserError(
                "dataset.hub_id is missing: give the id of a data set on the hub, or a copy, dataset.path=FOLDER"
            )
        if dataset.path:
            check_folder(dataset, "give a local copy, or none for the hub")
        check_label_column(dataset)

    def load(self, dataset: DatasetSettings, model: ModelSettings) -> Splits:
        from sttabt.data.images import image_splits

        train = TableImages(dataset.train_split, dataset)
        return image_splits(dataset, model, train, TableImages(dataset.test_split, dataset, train.class_names))

    def unused(self, dataset: DatasetSettings) -> dict[str, str]:
        own = {"class_names": "source image_table has its own"}
        return own | ({"hub_id": "dataset.path gives a local copy"} if dataset.path else {})


class TableImages(LabelledImages):
    """The images of a split; names: of the classes, where another split has decided them."""

    def __init__(self, split: str, settings: DatasetSettings, names: tuple[str, ...] = ()) -> None:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        table = open_split(settings, split)
        self.name, self.column, self.channels = (
            f"{_origin(settings)} {split}",
            settings.image_column,
            settings.channels,
        )
        for setting in ("image_column", "label_column"):
            if (column := getattr(settings, setting)) not in table.column_names:
                hint = nearest(column, table.column_names)
                raise UserError(f"dataset.{setting}={column} is no column of {self.name}: {hint}")
        features, label = table.features, table.features[settings.label_column]
        if not isinstance(features[self.column], ImageFeature):
            images = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
            raise UserError(
                f"dataset.image_column={self.column} of {self.name} holds no images, columns that do:"
                f" {', '.join(images) or 'none'}"
            )
        labels = np.asarray(table.with_format("numpy")[settings.label_column][:])
        if labels.dtype.kind not in "iu":
            labels, found = _numbered(labels, names, self.name)
        else:
            found = tuple(label.names) if isinstance(label, ClassLabel) else names or _numbers(labels)
        if names and found != names:
            raise UserError(f"{self.name} has other classes than {settings.train_split}: give splits of one data set")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(found):
            raise UserError(
                f"{self.name} has label {labels.min() if labels.min() < 0 else labels.max()}, which is none of"
                f" {len(found)} classes: splits without labels cannot be scored, choose dataset.test_split"
            )
        self.labels, self.class_names = labels.tolist(), found
        self.images = table.select_columns([self.column])

    def read(self, index: int) -> Image.Image:
        return decode(self.images[index][self.column], self.channels)

    def where(self, index: int) -> str:
        from datasets import Image as ImageFeature

        stored = self.images.cast_column(self.column, ImageFeature(decode=False))[index][self.column]
        return f"{self.name}, row {index}" + (f" ({stored['path']})" if stored.get("path") else "")


def open_split(settings: DatasetSettings, split: str) -> Any:
    """A `datasets.Dataset`: of a folder saved by save_to_disk, of files that load_dataset reads, or of the hub.

    Raises UserError when there is none, naming the splits that are there.
    """
    reachable = use_hub()
    from datasets import Dataset, load_dataset  # after the line above, which may tell it to stay offline

    folder = Path(settings.path)
    try:
        if settings.path and (folder / split / "state.json").is_file():
            return Dataset.load_from_disk(str(folder / split))
        if settings.path and (folder / "dataset_dict.json").is_file():
            raise UserError(f"dataset.path={folder} has no split {split}: {nearest(split, _saved_splits(folder))}")
        return load_dataset(
            str(folder) if settings.path else settings.hub_id, settings.configuration or None, split=split
        )
    except (OSError, ValueError) as error:  # ConnectionError is an OSError; ValueError: no such split, or not cached
        where = f"dataset.path={folder}" if settings.path else f"dataset.hub_id={settings.hub_id}"
        why = "cannot be loaded"
        if not settings.path and not reachable:
            why = "is not in the cache and the hub is out of reach (or HF_HUB_OFFLINE=1)"
        raise UserError(
            f"{where}, split {split}: {why} ({str(error).splitlines()[0]}): set dataset.train_split and"
            " dataset.test_split to splits that are there, or give a local copy with dataset.path=FOLDER"
        ) from error


def _saved_splits(folder: Path) -> list[str]:
    return [path.parent.name for path in folder.glob("*/state.json")]


def _origin(settings: DatasetSettings) -> str:
    return Path(settings.path).name if settings.path else settings.hub_id


def _numbers(labels: np.ndarray) -> tuple[str, ...]:
    return tuple(map(str, range(int(labels.max()) + 1)))


def _numbered(labels: np.ndarray, names: tuple[str, ...], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Classes 0, 1, ... of labels that are words, in the alphabet's order."""
    found = names or tuple(sorted(set(map(str, labels))))
    places = {name: place for place, name in enumerate(found)}
    if unknown := set(map(str, labels)) - set(found):
        raise UserError(f"{where} has the class {min(unknown)}, which the training split does not have")
    return np.array([places[str(label)] for label in labels]), found
