"""Stand-ins for data sets of images, in their own formats: a few images that differ by class."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def make_idx(folder: Path, train: int = 60, test: int = 30, classes: int = 10, compressed: bool = True) -> Path:
    """Fashion-MNIST's four files with so many images of 28x28 pixels, whose classes follow each other."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for count, (images, labels) in ((train, IDX_FILES[:2]), (test, IDX_FILES[2:])):
        classes_of = np.arange(count) % classes
        pixels = random.integers(0, 60, (count, 28, 28)) + 19 * classes_of[:, None, None]
        write_idx(folder / images, pixels.astype(np.uint8), compressed)
        write_idx(folder / labels, classes_of.astype(np.uint8), compressed)
    return folder


def write_idx(path: Path, values: np.ndarray, compressed: bool = False) -> None:
    content = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
    path = path.with_name(f"{path.name}.gz") if compressed else path
    path.write_bytes(gzip.compress(content) if compressed else content)


def make_folder(root: Path, classes: list[str], images: int = 10, parts: tuple[str, str] = ("train", "val")) -> Path:
    """A folder in ImageNet's layout."""
    for part in parts:
        for number, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(images):
                Image.new("RGB", (40, 36), (20 * number, 10 * index, 90)).save(folder / f"{index}.jpg")
    return root
