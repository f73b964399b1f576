"""Splits and batches, the same for every source; an order that a resumed run repeats exactly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sttabt.errors import UserError


class Batch(NamedTuple):
    """inputs: what the backbone reads, for images (B, C, height, width); labels: (B,) int."""

    inputs: Any
    labels: Tensor


@dataclass(frozen=True)
class Splits:
    """train is augmented and is indexed by (epoch, index); validation and test by index.

    mean, deviation: what images were normalised by, to draw them again.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class Images(Dataset):
    """Items of `images` by their position in `indices`, each through `transform`."""

    def __init__(
        self, images: Sequence[tuple[Any, int]], indices: Sequence[int], transform: Callable[[Any], Tensor]
    ) -> None:
        self.images, self.indices, self.transform = images, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Batch:
        image, label = self.images[self.indices[index]]
        return Batch(self.transform(image), torch.tensor(label))


class AugmentedImages(Images):
    """Images whose transform is random, and yet the same for the same (seed, epoch, index)."""

    def __init__(self, *arguments: Any, seed: int) -> None:
        super().__init__(*arguments)
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Batch:  # type: ignore[override]
        epoch, index = key
        drawn = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]
        states = random.getstate(), np.random.get_state()  # timm's RandAugment draws from all three
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(drawn))
            random.seed(int(drawn))
            np.random.seed(drawn)
            item = super().__getitem__(index)
        random.setstate(states[0])
        np.random.set_state(states[1])
        return item


class EpochOrder(Sampler):
    """Yields (epoch, index) in an order that depends on the seed and the epoch alone; Lightning sets the epoch."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter((self.epoch, int(index)) for index in order)


def train_loader(dataset: Dataset, batch_size: int, workers: int, seed: int) -> DataLoader:
    """Shuffled batches; the last one is left out when it is not full, so that every step weighs the same."""
    length = len(dataset)  # type: ignore[arg-type]
    return DataLoader(
        dataset,
        batch_size=min(batch_size, length),
        sampler=EpochOrder(length, seed),
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )


def evaluation_loader(dataset: Dataset, batch_size: int, workers: int = 0) -> DataLoader:
    """All items once, in their order."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers)


def split_indices(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the larger and of the smaller part, stratified by label; `share` in (0, 1) is the smaller's.

    Raises UserError when that leaves a class without an image in either part.
    """
    try:
        larger, smaller = train_test_split(range(len(labels)), test_size=share, random_state=seed, stratify=labels)
    except ValueError as error:
        raise UserError(
            f"dataset.validation_share={share} does not split {len(labels)} images of {len(set(labels))} classes:"
            f" {error}"
        ) from error
    return sorted(larger), sorted(smaller)
