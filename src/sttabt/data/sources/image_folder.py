"""Any folder of images laid out as ImageNet (ILSVRC2012): train/CLASS/*.JPEG and val/CLASS/*.JPEG."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sttabt.data.labelled import LabelledImages, decode, image_suffixes
from sttabt.data.source import PREPARED, Source
from sttabt.errors import UserError
from sttabt.settings import DatasetSettings, ModelSettings

if TYPE_CHECKING:
    from sttabt.data.base import Splits

SHOWN = 3  # names in a message

log = logging.getLogger(__name__)


class ImageFolderSource(Source):
    """val/ is the test split; validation is a stratified share of train/."""

    holds = "images"
    reads = (*PREPARED, "path")

    def check(self, dataset: DatasetSettings) -> None:
        if not dataset.path:
            raise UserError("dataset.path is missing: give dataset.path=FOLDER, one with train/ and val/")
        for folder in (Path(dataset.path), Path(dataset.path) / "train", Path(dataset.path) / "val"):
            if not folder.is_dir():
                raise UserError(f"dataset.path={dataset.path}: {folder} is no folder: give one with train/ and val/")
        for part in ("train", "val"):
            if all(is_hidden(entry.name) for entry in (Path(dataset.path) / part).iterdir()):
                raise UserError(
                    f"dataset.path={dataset.path}: {part}/ is empty: it must hold one folder of images a class"
                )

    def load(self, dataset: DatasetSettings, model: ModelSettings) -> Splits:
        """Raises UserError naming the class folders that are missing."""
        from sttabt.data.images import image_splits

        train, test = (FolderImages(Path(dataset.path) / part, dataset) for part in ("train", "val"))
        for part, missing in (
            ("val", sorted(set(train.class_names) - set(test.class_names))),
            ("train", sorted(set(test.class_names) - set(train.class_names))),
        ):
            if missing:
                raise UserError(
                    f"dataset.path={dataset.path}: train/ and val/ have different classes, {part}/ lacks"
                    f" {_shortened(missing)}: give both the same class folders"
                )
        return image_splits(dataset, model, train, test)

    def unused(self, dataset: DatasetSettings) -> dict[str, str]:
        return {"class_names": "source image_folder has its own"}


class FolderImages(LabelledImages):
    """The images of a folder of class folders, with those of folders inside; hidden files and folders are skipped.

    Files that are no images to Pillow are left out, counted and reported once. Raises UserError naming a folder that
    does not fit.
    """

    def __init__(self, folder: Path, settings: DatasetSettings) -> None:
        from torchvision.datasets.folder import make_dataset

        self.folder = folder
        self.class_names = tuple(sorted(entry.name for entry in _visible(folder) if entry.is_dir()))
        if not self.class_names:
            raise UserError(_without_classes(folder))
        suffixes, left_out = image_suffixes(), []

        def takes(path: str) -> bool:
            inside = path[len(str(folder)) + 1 :].split(os.sep)  # noqa: PTH206  # Path is slow with a million files
            if any(map(is_hidden, inside)):
                return False
            if _suffix(inside[-1]) not in suffixes:
                left_out.append(path)
                return False
            return True

        classes = {name: place for place, name in enumerate(self.class_names)}
        self.samples = make_dataset(str(folder), classes, is_valid_file=takes, allow_empty=True)
        self.labels, self.channels = [label for _, label in self.samples], settings.channels
        _check_classes(folder, self, left_out, settings.classes)
        if left_out:
            log.warning("%s: %s", folder, _described(left_out))

    def read(self, index: int) -> Image.Image:
        path = Path(self.where(index))
        if not path.is_file():  # opening a pipe would wait for ever
            raise OSError("it is no file")
        with Image.open(path) as image:
            return decode(image, self.channels)

    def where(self, index: int) -> str:
        return self.samples[index][0]

    def contents(self) -> dict[str, Path]:
        """Paths below the folder begin with the class."""
        start = len(str(self.folder)) + 1
        return {path[start:]: Path(path) for path, _ in self.samples}


def is_hidden(name: str) -> bool:
    """What editors and systems leave behind: .ipynb_checkpoints, .DS_Store, and the folder of macOS's archives."""
    return name.startswith(".") or name == "__MACOSX"


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not is_hidden(entry.name)]


def _without_classes(folder: Path) -> str:
    """ImageNet's archive of val/ has no class folders, and is easily left so."""
    images = sum(_suffix(entry.name) in image_suffixes() for entry in _visible(folder))
    if not images:
        return f"dataset.path: {folder} holds no class folders: put the images of each class into one of its own"
    return (
        f"dataset.path: {folder} holds {images} images but no class folders: move each into a folder of its class, for"
        " ImageNet by ILSVRC2012_validation_ground_truth.txt of the development kit"
    )


def _check_classes(folder: Path, images: FolderImages, left_out: list[str], expected: int) -> None:
    """Every class folder has images, and there are as many as expected where they hold folders instead."""
    counts = Counter(images.labels)
    if empty := [name for place, name in enumerate(images.class_names) if not counts[place]]:
        others = f"; {_described(left_out)}" if left_out else ""
        raise UserError(
            f"dataset.path: {folder} has class folders without images, {_shortened(empty)}: fill them or take them"
            f" out{others}"
        )
    inner = {path.rpartition(os.sep)[0][len(str(folder)) + 1 :] for path, _ in images.samples}
    nested = sorted(name for name in inner if os.sep in name)
    if nested and len(images.class_names) != expected:
        raise UserError(
            f"dataset.classes={expected}, but {folder} has {len(images.class_names)} class folders, and images in"
            f" folders inside them, {_shortened(nested)}: move the folder of each class into {folder}, or set"
            f" dataset.classes={len(images.class_names)} if the outer ones are the classes"
        )
    if nested:
        log.info("%s: images of %s count to the class folder around them", folder, _shortened(nested))


def _described(left_out: list[str]) -> str:
    kinds = Counter(_suffix(path.rpartition(os.sep)[2]) or "without suffix" for path in left_out)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(SHOWN))
    more = f" and {len(kinds) - SHOWN} kinds more" if len(kinds) > SHOWN else ""
    return f"{len(left_out)} files are left out, which Pillow does not read ({found}{more}), the first is {left_out[0]}"


def _suffix(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if stem else ""


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
