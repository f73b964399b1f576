"""Fashion-MNIST, MNIST and their kin: four files in the IDX format, as they are or compressed (.gz)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sttabt.data.checks import check_class_names, check_folder
from sttabt.data.labelled import LabelledImages, decode
from sttabt.data.source import PREPARED, Source
from sttabt.errors import UserError
from sttabt.settings import DatasetSettings, ModelSettings
from sttabt.system.paths import not_a_file, read_bytes

if TYPE_CHECKING:
    from sttabt.data.base import Splits

FILES = {  # images, labels
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UNSIGNED_BYTES = 8  # the third byte of a file
REMEDY = (
    "for Fashion-MNIST `apt-get install dataset-fashion-mnist`, or `make fashion-mnist` and"
    " dataset.path=data/fashion_mnist"
)


class IdxSource(Source):
    """The t10k files are the test split; validation is a stratified share of train."""

    holds = "images"
    reads = (*PREPARED, "path", "class_names")

    def check(self, dataset: DatasetSettings) -> None:
        if not dataset.path:
            raise UserError(
                "dataset.path is missing: give dataset.path=FOLDER, one with train-images-idx3-ubyte(.gz), ..."
            )
        check_folder(dataset, REMEDY)
        check_class_names(dataset)

    def load(self, dataset: DatasetSettings, model: ModelSettings) -> Splits:
        from sttabt.data.images import image_splits

        folder = Path(dataset.path)
        return image_splits(dataset, model, *(IdxImages(folder, part, dataset) for part in FILES))


class IdxImages(LabelledImages):
    """Grey images, all in memory. Raises UserError naming a file that is missing, damaged or does not fit."""

    def __init__(self, folder: Path, part: str, settings: DatasetSettings) -> None:
        self.name, self.channels = f"{folder.name}, {part}", settings.channels
        paths = [find_file(folder, name) for name in FILES[part]]
        self.images, labels = (read_idx(path, dimensions) for path, dimensions in zip(paths, (3, 1), strict=True))
        if len(self.images) != len(labels):
            raise UserError(
                f"{paths[0]} has {len(self.images)} images, but {paths[1]} has {len(labels)} labels: fetch both again"
            )
        if 0 in self.images.shape[1:]:
            raise UserError(f"{paths[0]} has images of {self.images.shape[1:]} pixels: fetch it again")
        self.labels = labels.tolist()
        found = int(labels.max()) + 1 if len(labels) else 0
        if 0 < settings.classes < found:
            raise UserError(
                f"dataset.classes={settings.classes} but {paths[1]} has labels up to {found - 1}:"
                f" set dataset.classes={found}"
            )
        self.class_names = tuple(settings.class_names) or tuple(map(str, range(found)))

    def read(self, index: int) -> Image.Image:
        return decode(Image.fromarray(self.images[index]), self.channels)

    def where(self, index: int) -> str:
        return f"{self.name}, image {index}"

    def contents(self) -> str:
        from sttabt.data.base import hash_of

        return hash_of(self.images, self.labels)


def find_file(folder: Path, name: str) -> Path:
    """`name` or `name`.gz in the folder. Raises UserError that says where Fashion-MNIST's are to be had."""
    plain, packed = folder / name, folder / f"{name}.gz"
    for path in (plain, packed):
        if not not_a_file(path):
            return path
    for path in (plain, packed):
        if path.exists():
            raise UserError(f"{path} {not_a_file(path)}: {REMEDY}")
    raise UserError(f"dataset.path={folder} has no {name}(.gz): {REMEDY}")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Bytes of that many dimensions: a magic number, the sizes as big-endian integers of 32 bits, the values.

    Raises UserError when the file holds something else or less.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again") from error
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, UNSIGNED_BYTES, dimensions]) or len(content) < header:
        raise UserError(f"{path} is no IDX file of bytes in {dimensions} dimensions: fetch it again")
    sizes = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    if len(content) != header + math.prod(sizes):
        raise UserError(f"{path} has {len(content)} of {header + math.prod(sizes)} bytes: fetch it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)
