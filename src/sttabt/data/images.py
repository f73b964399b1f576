"""Images for training and evaluation: read, augmented, normalised; what is broken is named or replaced."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torch.utils.data import Dataset

from sttabt.data.base import PARTS, TEST_SEED, Batch, Splits, check_three, same_draws, split_classes, split_indices
from sttabt.data.labelled import UNREADABLE, LabelledImages
from sttabt.errors import UserError
from sttabt.settings import AugmentationSettings, DatasetSettings, ModelSettings

STRONGEST = 10  # of timm's RandAugment without mmax

log = logging.getLogger(__name__)


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
    settings: DatasetSettings,
    model: ModelSettings,
    train: LabelledImages,
    test: LabelledImages | None,
    validation: LabelledImages | None = None,
) -> Splits:
    """Splits that are not there are cut from train by class: validation, or test and validation. Images become
    `image_size` pixels wide and high, by bicubic interpolation.

    validation: None where test is. Raises UserError naming the setting when classes, shares or augmentation do not fit.
    """
    given = {"train": train, "validation": validation, "test": test}
    for part, images in given.items():
        if images is not None and not len(images.labels):
            raise UserError(f"{settings.name}: its {part} split holds no image: give one that does")
    parts = _parts(settings, train, test, validation)
    mean, std = normalisation(settings, model)
    common: dict[str, Any] = {"interpolation": "bicubic", "mean": mean, "std": std}
    plain = create_transform(settings.image_size, crop_pct=model.crop, **common)
    augmented = _augmentation(settings, common) if settings.augment else plain
    seed, broken_share = settings.split_seed, settings.broken_share
    contents: Mapping[str, Any] = {part: images.contents() for part, images in given.items() if images is not None}
    return Splits(
        train=AugmentedImages(*parts["train"], augmented, seed=seed, broken_share=broken_share),
        validation=Images(*parts["validation"], plain),
        test=Images(*parts["test"], plain),
        class_names=train.class_names,
        mean=mean,
        std=std,
        contents=contents if test is not None else {"all": contents["train"]},
    )


def _parts(
    settings: DatasetSettings, train: LabelledImages, test: LabelledImages | None, validation: LabelledImages | None
) -> dict[str, tuple[LabelledImages, Sequence[int]]]:
    """Where the images of each split are, and which they are; said in one line."""
    share, seed, names = settings.validation_share, settings.split_seed, train.class_names
    parts: dict[str, tuple[LabelledImages, Sequence[int]]]
    if test is None:
        kept, tested, validated = _cut_in_three(settings, train)
        parts = {"train": (train, kept), "validation": (train, validated), "test": (train, tested)}
        how = f"split by class here (dataset.test_share={settings.test_share:g}, validation_share={share:g})"
    elif validation is None:
        kept, validated = split_indices(train.labels, share, seed, names=names)
        parts = {"train": (train, kept), "validation": (train, validated), "test": (test, range(len(test.labels)))}
        how = f"validation is cut from train (dataset.validation_share={share:g})"
    else:
        parts = {
            part: (images, range(len(images.labels)))
            for part, images in (("train", train), ("validation", validation), ("test", test))
        }
        how = "as they were given"
    sizes = ", ".join(f"{len(places)} {part}" for part, (_, places) in parts.items())
    log.info("%s: %s images of %d classes, %s", settings.name, sizes, len(names), how)
    return parts


def _cut_in_three(settings: DatasetSettings, images: LabelledImages) -> tuple[list[int], list[int], list[int]]:
    """Indices for training, for testing and for validation: of every class, each image once.

    Raises UserError naming classes that have too few images.
    """
    labels, same = images.labels, images.same()
    first = dict(zip(reversed(same), reversed(labels), strict=True))
    check_three(list(first.values()), images.class_names, settings.name, "images")
    if doubles := len(labels) - len(first):
        log.info("%s: %d images are copies of others, and stay in one split with them", settings.name, doubles)
    rest, tested = split_classes(labels, settings.test_share, TEST_SEED, same, left=PARTS - 1)
    inner, outer = split_classes(
        [labels[index] for index in rest],
        settings.validation_share,
        settings.split_seed,
        [same[index] for index in rest],
    )
    return [rest[index] for index in inner], tested, [rest[index] for index in outer]


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
