"""Any folder of images laid out as ImageNet: train/CLASS/*.jpg and val/CLASS/*.jpg."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision.datasets import ImageFolder

from sttabt.data.base import AugmentedImages, Images, Splits, split_indices
from sttabt.errors import UserError
from sttabt.settings import DatasetSettings, ModelSettings, normalisation


def load(settings: DatasetSettings, model: ModelSettings | None = None) -> Splits:
    """val/ is the test split; validation is a stratified share of train/. Raises UserError naming what is missing."""
    train_images, test_images = (_open(Path(settings.path) / part) for part in ("train", "val"))
    if train_images.classes != test_images.classes:
        differing = sorted(set(train_images.classes) ^ set(test_images.classes))
        raise UserError(
            f"dataset.path={settings.path}: train/ and val/ have different classes"
            f" ({len(differing)} in one only, the first is {differing[0]}): give both the same class folders"
        )
    train, validation = split_indices(train_images.targets, settings.validation_share, settings.split_seed)
    mean, deviation = normalisation(model) or (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    make = partial(create_transform, settings.image_size, interpolation="bicubic", mean=mean, std=deviation)
    plain = make(crop_pct=0.875)
    augmented = make(is_training=True, auto_augment="rand-m9-mmax9-mstd0.5-inc1", re_prob=0.25)
    return Splits(
        train=AugmentedImages(train_images, train, augmented if settings.augment else plain, seed=settings.split_seed),
        validation=Images(train_images, validation, plain),
        test=Images(test_images, range(len(test_images)), plain),
        class_names=tuple(train_images.classes),
        mean=mean,
        deviation=deviation,
    )


def _open(folder: Path) -> ImageFolder:
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise UserError(f"dataset.path: {folder} holds no class folders with images: {error}") from error
