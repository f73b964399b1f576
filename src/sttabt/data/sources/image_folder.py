"""Any folder of class folders with images; or train/CLASS/*.JPEG and val/CLASS/*.JPEG as ImageNet (ILSVRC2012) has."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from PIL import Image

from sttabt.data.labelled import LabelledImages, image_suffixes, read_image
from sttabt.data.source import PREPARED, SPLIT_NAMES, Source
from sttabt.errors import UserError, printable
from sttabt.settings import DatasetSettings, ModelSettings
from sttabt.system.paths import not_a_folder

if TYPE_CHECKING:
    from sttabt.data.base import Splits

SHOWN = 3  # names in a message
# What systems leave in folders, in lower case, beside what begins with a dot.
LEFT_BEHIND = {
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "desktop.ini",
}

log = logging.getLogger(__name__)


class ImageFolderSource(Source):
    """Without test/ the split val/ (valid/, validation/) is the test split, as ImageNet's is; without either, test is
    cut from the images, the same for every seed. Validation is a share of train, unless both are there.
    """

    holds = "images"
    reads = (*PREPARED, "path", "test_share")

    def check(self, dataset: DatasetSettings) -> None:
        if not dataset.path:
            raise UserError("dataset.path is missing: give dataset.path=FOLDER, one with a folder of images a class")
        folder = Path(dataset.path)
        if why := not_a_folder(folder):
            raise UserError(f"dataset.path={dataset.path} {why}: give one with a folder of images a class")
        parts = _named(folder)
        if parts and "train" not in parts:
            found = _shortened(sorted(part.name for part in parts.values()))
            raise UserError(
                f"dataset.path={dataset.path} has no train/ beside {found}/: add it, or give {found} another name if it"
                " is a class"
            )
        for part in parts.values():
            if why := not_a_folder(part):
                raise UserError(f"dataset.path={dataset.path}: {part} {why}: allow it, or take it out")
            if not _visible(part):
                raise UserError(
                    f"dataset.path={dataset.path}: {part.name}/ is empty: it must hold one folder of images a class"
                )
        if not parts and not _visible(folder):
            raise UserError(f"dataset.path={dataset.path} is empty: it must hold one folder of images a class")

    def load(self, dataset: DatasetSettings, model: ModelSettings) -> Splits:
        """Raises UserError naming the class folders that are missing, or are in two parts the same."""
        from sttabt.data.images import image_splits

        folders = _parts(Path(dataset.path))
        images = {part: FolderImages(folder, dataset) for part, folder in folders.items()}
        for one, other in combinations(folders, 2):
            _check_apart(images[one], images[other], dataset)
        return image_splits(dataset, model, images["train"], images.get("test"), images.get("validation"))

    def unused(self, dataset: DatasetSettings) -> dict[str, str]:
        unused = {"class_names": "source image_folder has its own"}
        parts = {} if not_a_folder(dataset.path) else _labelled(Path(dataset.path))
        if len(parts) > 1:
            unused["test_share"] = "the folder has a test split"
        if len(parts) > 2:
            unused["validation_share"] = "the folder has a validation split"
        return unused


class FolderImages(LabelledImages):
    """The images of a folder of class folders, with those of folders inside; hidden files and folders are skipped.

    Files that are no images to Pillow are left out, counted and reported once. Raises UserError naming a folder that
    does not fit.
    """

    def __init__(self, folder: Path, settings: DatasetSettings) -> None:
        self.folder = folder
        self.class_names = tuple(sorted(entry.name for entry in _visible(folder) if entry.is_dir()))
        if not self.class_names:
            raise UserError(_without_classes(folder))
        if strange := [name for name in self.class_names if not name.isprintable()]:
            raise UserError(
                f"dataset.path: {folder} has a class folder that cannot be printed, {strange[0]}: rename it"
            )
        self.samples: list[tuple[str, int]] = []  # path and label
        self.channels, suffixes, left_out = settings.channels, image_suffixes(), []
        for label, name in enumerate(self.class_names):
            for path in _files(folder / name):
                if _suffix(path) in suffixes:
                    self.samples.append((path, label))
                else:
                    left_out.append(path)
        self.labels = [label for _, label in self.samples]
        _check_classes(folder, self, left_out, settings.classes)
        if left_out:
            log.warning("%s: %s", folder, _described(left_out))
        if loose := sorted(entry.name for entry in _visible(folder) if not entry.is_dir()):
            log.warning(
                "%s: %s left out, beside the class folders, the first is %s",
                *(folder, _counted(len(loose)), printable(loose[0])),
            )

    def read(self, index: int) -> Image.Image:
        return read_image(Path(self.samples[index][0]), self.channels)

    def where(self, index: int) -> str:
        return printable(self.samples[index][0])

    def same(self) -> list[int]:
        """Files of the same bytes are one image; those of a size of their own are not read."""
        sizes = [Path(path).stat().st_size for path, _ in self.samples]
        often = Counter(sizes)
        found: dict[object, int] = {}
        return [
            found.setdefault((size, _hash(Path(path)) if often[size] > 1 else index), index)
            for index, ((path, _), size) in enumerate(zip(self.samples, sizes, strict=True))
        ]

    def contents(self) -> dict[str, Path]:
        """Paths below the folder begin with the class."""
        start = len(str(self.folder)) + 1
        return {path[start:]: Path(path) for path, _ in self.samples}


def _named(folder: Path) -> dict[str, Path]:
    """The folders that are called as a split is. Raises UserError where two are called as one."""
    found: dict[str, Path] = {}
    for part, names in SPLIT_NAMES.items():
        there = sorted(entry for entry in folder.iterdir() if entry.name.lower() in names and not entry.is_file())
        if len(there) > 1:
            raise UserError(
                f"dataset.path={folder} has {there[0].name}/ and {there[1].name}/: leave one {part} folder there"
            )
        if there:
            found[part] = there[0]
    return found


def _labelled(folder: Path) -> dict[str, Path]:
    """The same without a test/ that has no class folders, as ImageNet's has none: its labels are secret."""
    found = _named(folder)
    if "test" in found and not _deeper(found["test"]):
        del found["test"]
    return found


def _parts(folder: Path) -> dict[str, Path]:
    """The folder of each split that is there; of the folder itself where it is still to be split."""
    named, found = _named(folder), _labelled(folder)
    if not named:
        return {"train": folder}
    if len(named) > len(found):
        log.warning("%s holds no class folders, so that nothing can be tested on it: it is left out", named["test"])
    if "test" not in found and "validation" in found:
        log.info("%s is the test split, as there is no other", found["validation"])
        found["test"] = found.pop("validation")
    known = {part.name for part in named.values()}
    if others := sorted(entry.name for entry in _visible(folder) if entry.is_dir() and entry.name not in known):
        log.warning("%s: folders beside its splits are left out: %s", folder, _shortened(others))
    return found


def _check_apart(one: FolderImages, other: FolderImages, dataset: DatasetSettings) -> None:
    """Two splits have the same classes, and no folder in common."""
    names = one.folder.name, other.folder.name
    for lacking, missing in (
        (names[1], sorted(set(one.class_names) - set(other.class_names))),
        (names[0], sorted(set(other.class_names) - set(one.class_names))),
    ):
        if missing:
            raise UserError(
                f"dataset.path={dataset.path}: {names[0]}/ and {names[1]}/ have different classes, {lacking}/ lacks"
                f" {_shortened(missing)}: give both the same class folders"
            )
    for name in ("", *one.class_names):
        folders = one.folder / name, other.folder / name
        if folders[0].samefile(folders[1]):
            raise UserError(
                f"dataset.path={dataset.path}: {folders[0]} and {folders[1]} are one folder: images that a model was"
                " trained on cannot test it, give it others"
            )


def _hash(path: Path) -> str:
    """Of a file that cannot be read its place: what reads it as an image says why."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else str(path)
    except OSError:
        return str(path)


def _deeper(folder: Path) -> bool:
    return any(entry.is_dir() for entry in _visible(folder))


def is_hidden(name: str) -> bool:
    """What editors and systems leave behind: .ipynb_checkpoints, .DS_Store, Thumbs.db, ..."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not is_hidden(entry.name)]


def _files(folder: Path) -> Iterator[str]:
    """The visible files of a folder and of those inside, in a fixed order. Links are followed, but not in circles.

    Paths are strings, since Path is slow with a million of them.
    """
    found = []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        visible = [name for name in folders if not is_hidden(name)]
        circles = [name for name in visible if _leads_back(Path(place), name)]
        for name in circles:
            log.warning("%s: a link back to a folder around it is left out", printable(f"{place}{os.sep}{name}"))
        folders[:] = [name for name in visible if name not in circles]
        found.append((place, [name for name in names if not is_hidden(name)]))
    for place, names in sorted(found):
        for name in sorted(names):
            yield f"{place}{os.sep}{name}"


def _leads_back(folder: Path, name: str) -> bool:
    return (folder / name).is_symlink() and folder.resolve().is_relative_to((folder / name).resolve())


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(
        f"dataset.path: {error.filename} cannot be read ({error.strerror}): allow it, or take it out"
    ) from error


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
    if nested and (len(images.class_names) == 1 or (expected and len(images.class_names) != expected)):
        outer = ""
        if len(images.class_names) > 1:
            outer = f", or set dataset.classes={len(images.class_names)} if the outer ones are the classes"
        raise UserError(
            f"dataset.path: {folder} has {len(images.class_names)} class folders, and images in folders inside them,"
            f" {_shortened(nested)}: move the folder of each class into {folder}{outer}"
        )
    if nested:
        log.info("%s: images of %s count to the class folder around them", folder, _shortened(nested))


def _described(left_out: list[str]) -> str:
    kinds = Counter(_suffix(path) or "without suffix" for path in left_out)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(SHOWN))
    more = f" and {len(kinds) - SHOWN} kinds more" if len(kinds) > SHOWN else ""
    counted, first = _counted(len(left_out)), printable(left_out[0])
    return f"{counted} left out, which Pillow does not read ({printable(found)}{more}), the first is {first}"


def _counted(files: int) -> str:
    return f"{files} files are" if files > 1 else "1 file is"


def _suffix(path: str) -> str:
    stem, _, suffix = path.rpartition(os.sep)[2].rpartition(".")
    return f".{suffix.lower()}" if stem else ""


def _shortened(names: list[str]) -> str:
    return printable(", ".join(names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
