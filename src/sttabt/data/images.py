"""Images for training and evaluation: read, augmented, normalised; what is broken is named or replaced."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torch.utils.data import Dataset

from sttabt.data.base import Batch, Splits, same_draws, split_indices
from sttabt.data.labelled import UNREADABLE, LabelledImages
from sttabt.errors import UserError
from sttabt.settings import AugmentationSettings, DatasetSettings, ModelSettings

STRONGEST = 10  # of timm's RandAugment without mmax


class Images(Dataset):
    """Items of `source` by their position in `indices`, each through `transform`; a broken image is a UserError."""

    def __init__(self, source: LabelledImages, indices: Sequence[int], transform: Callable[[Any], Tensor]) -> None:
        self.source, self.indices, self.transform = source, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Batch:
        place = self.indices[index]
        try:
            image = self.source.read(place)
        except UNREADABLE as error:
            raise UserError(
                f"{self.source.where(place)} cannot be read as an image ({_reason(error)}): mend it or take it out"
            ) from error
        return Batch(self.transform(image), torch.tensor(self.source.labels[place]))


class AugmentedImages(Images):
    """Images whose transform is random, and yet the same for the same (seed, epoch, index).

    In the place of a broken image stands the next one that is whole; `broken` (items,) counts them for all processes
    that load. Raises UserError when they are more than `broken_share` of all.
    """

    def __init__(self, *arguments: Any, seed: int, broken_share: float = 0.0) -> None:
        super().__init__(*arguments)
        self.seed, self.broken_share = seed, broken_share
        self.broken = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.broken.share_memory_()  # which another process that is given a copy shares with its own loaders

    def __getitem__(self, key: tuple[int, int]) -> Batch:  # type: ignore[override]
        epoch, index = key
        with same_draws(self.seed, epoch, index):
            while True:
                try:
                    return super().__getitem__(index)
                except UserError as error:
                    self._note(index, error)
                    index = (index + 1) % len(self)

    def where_broken(self) -> list[str]:
        """The broken images that were met so far."""
        return [self.source.where(self.indices[index]) for index in self.broken.nonzero().flatten().tolist()]

    def _note(self, index: int, error: UserError) -> None:
        self.broken[index] = True
        try:
            self.check_broken(str(error))
        except UserError as too_many:
            raise too_many from error

    def check_broken(self, last: str) -> None:
        """Raises UserError when more images are broken than `broken_share` allows."""
        count = int(self.broken.sum())
        if count > self.broken_share * len(self):
            raise UserError(
                f"{count} of {len(self)} training images are broken, more than"
                f" dataset.broken_share={self.broken_share:g}; the last: {last}"
            )


def image_splits(
    settings: DatasetSettings, model: ModelSettings, train: LabelledImages, test: LabelledImages
) -> Splits:
    """Validation is a stratified share of train. Images become `image_size` pixels wide and high, by bicubic
    interpolation.

    Raises UserError naming the setting when classes, shares or augmentation do not fit.
    """
    for part, images in (("train", train), ("test", test)):
        if not len(images.labels):
            raise UserError(f"{settings.name}: its {part} split holds no image: give one that does")
    share, seed = settings.validation_share, settings.split_seed
    train_indices, validation_indices = split_indices(train.labels, share, seed, names=train.class_names)
    mean, std = normalisation(settings, model)
    common: dict[str, Any] = {"interpolation": "bicubic", "mean": mean, "std": std}
    plain = create_transform(settings.image_size, crop_pct=model.crop, **common)
    augmented = _augmentation(settings, common) if settings.augment else plain
    return Splits(
        train=AugmentedImages(train, train_indices, augmented, seed=seed, broken_share=settings.broken_share),
        validation=Images(train, validation_indices, plain),
        test=Images(test, range(len(test.labels)), plain),
        class_names=train.class_names,
        mean=mean,
        std=std,
        contents={"train": train.contents(), "test": test.contents()},
    )


def normalisation(settings: DatasetSettings, model: ModelSettings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that images are normalised by: the model's, else the data set's."""
    return tuple(model.mean or settings.mean), tuple(model.std or settings.std)


def _augmentation(settings: DatasetSettings, common: dict[str, Any]) -> Callable[[Any], Tensor]:
    chosen = settings.augmentation
    if chosen.rand_augment:
        _check_rand_augment(chosen.rand_augment)
    return create_transform(
        settings.image_size,
        is_training=True,
        scale=(chosen.scale, 1.0),
        hflip=chosen.flip,
        color_jitter=0.0,
        auto_augment=chosen.rand_augment or None,
        re_prob=chosen.erasing,
        re_mode=chosen.erasing_mode,
        **common,
    )


def _check_rand_augment(recipe: str) -> None:
    setting = f"dataset.augmentation.rand_augment={recipe}"
    try:
        operations = rand_augment_transform(recipe, {}).ops
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{setting} is not timm's notation ({error}): write it as {AugmentationSettings().rand_augment}, or ''"
        ) from error
    for operation in operations:
        if not operation.name.startswith("Posterize"):
            continue
        spread = operation.magnitude_std
        low, high = (0, 0) if math.isinf(spread) else (-5 * spread, 5 * spread)
        for change in (low, high):
            strength = min(max(operation.magnitude + change, 0), operation.magnitude_max or STRONGEST)
            if operation.level_fn(strength, operation.hparams)[0] < 1:
                raise UserError(
                    f"{setting} may draw a strength of {strength:g}, at which Pillow refuses to posterise:"
                    " add inc1 and mmax9, as in rand-m9-mmax9-mstd0.5-inc1"
                )


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
