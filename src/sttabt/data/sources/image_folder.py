"""Any folder of images laid out as ImageNet (ILSVRC2012): train/CLASS/*.JPEG and val/CLASS/*.JPEG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sttabt.data.labelled import MODES, LabelledImages
from sttabt.data.source import PREPARED, Source
from sttabt.errors import UserError
from sttabt.settings import DatasetSettings, ModelSettings

if TYPE_CHECKING:
    from sttabt.data.base import Splits


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
            if not any((Path(dataset.path) / part).iterdir()):
                raise UserError(
                    f"dataset.path={dataset.path}: {part}/ is empty: it must hold one folder of images a class"
                )

    def load(self, dataset: DatasetSettings, model: ModelSettings) -> Splits:
        """Raises UserError naming the class folders that are missing."""
        from sttabt.data.images import image_splits

        train, test = (FolderImages(Path(dataset.path) / part, dataset.channels) for part in ("train", "val"))
        for part, missing in (
            ("val", sorted(set(train.class_names) - set(test.class_names))),
            ("train", sorted(set(test.class_names) - set(train.class_names))),
        ):
            if missing:
                more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
                raise UserError(
                    f"dataset.path={dataset.path}: train/ and val/ have different classes, {part}/ lacks"
                    f" {', '.join(missing[:3])}{more}: give both the same class folders"
                )
        return image_splits(dataset, model, train, test)

    def unused(self, dataset: DatasetSettings) -> dict[str, str]:
        return {"class_names": "source image_folder has its own"}


class FolderImages(LabelledImages):
    """The images of a folder of class folders. Raises UserError naming a folder that does not fit."""

    def __init__(self, folder: Path, channels: int) -> None:
        from torchvision.datasets import ImageFolder

        _refuse_flat(folder)
        try:
            found = ImageFolder(str(folder))
        except FileNotFoundError as error:
            raise UserError(f"dataset.path: {folder} has class folders without images: {error}") from error
        self.samples, self.labels, self.mode = found.samples, found.targets, MODES[channels]
        self.class_names = tuple(found.classes)

    def read(self, index: int) -> Image.Image:
        with Image.open(self.where(index)) as image:
            return image.convert(self.mode)

    def where(self, index: int) -> str:
        return self.samples[index][0]


def _refuse_flat(folder: Path) -> None:
    """ImageNet's archive of val/ has no class folders, and is easily left so."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    entries = list(folder.iterdir()) if folder.is_dir() else []
    images = sum(entry.suffix.lower() in IMG_EXTENSIONS for entry in entries)
    if images and not any(entry.is_dir() for entry in entries):
        raise UserError(
            f"dataset.path: {folder} holds {images} images but no class folders: move each into a folder of its class,"
            " for ImageNet by ILSVRC2012_validation_ground_truth.txt of the development kit"
        )
