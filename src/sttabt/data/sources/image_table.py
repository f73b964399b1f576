"""Any data set of Hugging Face's `datasets` with a column of images: from the hub, or a local copy in its formats."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sttabt.data.arrow import failures, open_saved, reason
from sttabt.data.checks import check_folder, check_label_column
from sttabt.data.labelled import LabelledImages, read_image
from sttabt.data.source import PREPARED, Source
from sttabt.errors import UserError, nearest
from sttabt.pretrained.hub import use_hub
from sttabt.settings import DatasetSettings, ModelSettings

if TYPE_CHECKING:
    from sttabt.data.base import Splits

LABELS = r"u?int\d+|float\d+|bool|null|(large_)?string(_view)?"  # types of a column, as `datasets` calls them
NO_NUMBERS = (float("inf"), float("-inf"))


class ImageTableSource(Source):
    """`test_split` is the test split, or where it is empty a share of `train_split`, as validation is."""

    holds = "images"
    reads = (
        *PREPARED,
        *("path", "hub_id", "configuration", "train_split", "test_split", "test_share", "image_column", "label_column"),
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
        test = TableImages(dataset.test_split, dataset, train.class_names) if dataset.test_split else None
        return image_splits(dataset, model, train, test)

    def unused(self, dataset: DatasetSettings) -> dict[str, str]:
        own = {"class_names": "source image_table has its own"}
        if dataset.test_split:
            own["test_share"] = "dataset.test_split is the test split"
        return own | ({"hub_id": "dataset.path gives a local copy"} if dataset.path else {})


class TableImages(LabelledImages):
    """The images of a split; names: of the classes, where another split has decided them."""

    def __init__(self, split: str, settings: DatasetSettings, names: tuple[str, ...] = ()) -> None:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        table = open_split(settings, split)
        if not len(table):
            raise UserError(f"{_origin(settings)} {split} has no rows: set dataset.train_split and dataset.test_split")
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
        if not re.fullmatch(LABELS, kind := str(getattr(label, "dtype", "list"))):
            raise UserError(
                f"dataset.label_column={settings.label_column} of {self.name} holds no labels, but {kind}: name a"
                " column of numbers or words"
            )
        labels = table.with_format("arrow")[settings.label_column][:].to_pylist()
        missing = [row for row, value in enumerate(labels) if value is None or value in NO_NUMBERS or value != value]
        if missing:
            raise UserError(f"{self.name}, row {missing[0]} has no label: complete it, or take the row out")
        if isinstance(label, ClassLabel):
            for extreme in (min(labels), max(labels)):
                _check_known(extreme, labels.index(extreme), self.name, tuple(map(str, range(len(label.names)))))
            found = tuple(label.names)
        else:
            labels, found = _numbered(labels, names, self.name)
        if names and found != names:
            raise UserError(f"{self.name} has other classes than {settings.train_split}: give splits of one data set")
        self.labels, self.class_names = labels, found
        self.images = table.select_columns([self.column]).cast_column(self.column, ImageFeature(decode=False))

    def read(self, index: int) -> Image.Image:
        stored = self.images[index][self.column]
        if stored is None:
            raise ValueError("it is missing")
        if stored["bytes"] is None:
            return read_image(Path(stored["path"]), self.channels)
        return read_image(BytesIO(stored["bytes"]), self.channels)

    def where(self, index: int) -> str:
        stored = self.images[index][self.column] or {}
        return f"{self.name}, row {index}" + (f" ({stored['path']})" if stored.get("path") else "")

    def same(self) -> list[int]:
        """Rows of the same bytes are one image, as are those that name the same file."""
        found: dict[object, int] = {}
        rows = (row[self.column] or {"bytes": None, "path": str(place)} for place, row in enumerate(self.images))
        keys = (row["path"] if row["bytes"] is None else hashlib.sha256(row["bytes"]).digest() for row in rows)
        return [found.setdefault(key, place) for place, key in enumerate(keys)]

    def contents(self) -> dict[str, Path]:
        """The files of the table, and the images that it only names."""
        from sttabt.data.base import hash_of

        labels = hash_of(np.asarray(self.labels), self.class_names)
        column = self.images.data.column(self.column)
        paths = [chunk.field("path").filter(chunk.field("bytes").is_null()).to_pylist() for chunk in column.chunks]
        named = {f"{labels} image {place}": Path(path) for place, path in enumerate(chain.from_iterable(paths)) if path}
        if len(named) == len(column):
            return named
        table = [Path(file["filename"]) for file in self.images.cache_files]
        return named | {f"{labels} table {place}": path for place, path in enumerate(table)}


def open_split(settings: DatasetSettings, split: str) -> Any:
    """A `datasets.Dataset`: of a folder saved by save_to_disk, of files that load_dataset reads, or of the hub.

    Raises UserError when there is none, naming the splits that are there.
    """
    reachable = use_hub()
    from datasets import load_dataset  # after the line above, which may tell it to stay offline

    folder = Path(settings.path)
    cut = " (or dataset.test_split= for a share of train)" if split == settings.test_split else ""
    try:
        if settings.path and (saved := open_saved(folder, split, cut)) is not None:
            return saved
        return load_dataset(
            str(folder) if settings.path else settings.hub_id, settings.configuration or None, split=split
        )
    except failures() as error:
        where = f"dataset.path={folder}" if settings.path else f"dataset.hub_id={settings.hub_id}"
        why = "cannot be loaded"
        if not settings.path and not reachable:
            why = "is not in the cache and the hub is out of reach (or HF_HUB_OFFLINE=1)"
        raise UserError(
            f"{where}, split {split}: {why} ({reason(error)}): set dataset.train_split and"
            f" dataset.test_split to splits that are there{cut}, or give a local copy with dataset.path=FOLDER"
        ) from error


def _origin(settings: DatasetSettings) -> str:
    return Path(settings.path).name if settings.path else settings.hub_id


def _numbered(labels: list[Any], names: tuple[str, ...], where: str) -> tuple[list[int], tuple[str, ...]]:
    """Classes 0, 1, ... of labels that are words or other numbers, in their order; 1.0 is the class 1."""
    labels = [int(label) if isinstance(label, float) and label.is_integer() else label for label in labels]
    found = names or tuple(map(str, sorted(set(labels))))
    places = {name: place for place, name in enumerate(found)}
    for row, label in enumerate(labels):
        _check_known(label, row, where, places)
    return [places[str(label)] for label in labels], found


def _check_known(label: Any, row: int, where: str, names: Collection[str]) -> None:
    if str(label) not in names:
        hint = ": splits without labels cannot be scored, choose dataset.test_split" if label == -1 else ""
        raise UserError(f"{where}, row {row} has the label {label}, which is none of the {len(names)} classes{hint}")
