"""Splits and batches, the same for every source; an order that a resumed run repeats exactly."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from sttabt.errors import UserError
from sttabt.system.signals import end_with_parent

POOL = 64  # batches of sequences whose members are sorted by length together
TEST_SEED = 0  # a test split that is cut from the data is the same for every split_seed
PARTS = 3  # train, validation and test, each of which needs an item of every class


class Batch(NamedTuple):
    """inputs: what the backbone reads, images (B, C, height, width) or a Text; labels: (B,) int, scores (B,) float."""

    inputs: Any
    labels: Tensor


@dataclass(frozen=True)
class Splits:
    """Data sets are indexed by position; train of images, which is augmented, by (epoch, position).

    class_names: empty for scores; mean, std: what images were normalised by, to draw them again, empty for text.
    contents: what the splits hold, by split: a hash, or the files that were read, each under a name that says its place
    and its label. What is cut from another split need not stand there; {}: the source cannot say it, and its settings
    stand for its data.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    contents: Mapping[str, str | Mapping[str, Path]] = field(default_factory=dict)


class Sequences(Dataset, ABC):
    """Items of different lengths, which loaders put together by length and pad.

    lengths: (items,) int.
    """

    lengths: np.ndarray

    @abstractmethod
    def collate(self, items: Sequence[Batch]) -> Batch:
        """One padded batch."""


class EpochOrder(Sampler):
    """Yields (epoch, index) in an order that depends on the seed and the epoch alone; Lightning sets the epoch.

    taken: how many of `length` items an epoch has, others in each epoch; None: all. ranks: processes that train
    together, of which each has its own batches of `batch_size`; taken is a multiple of both.
    """

    def __init__(self, length: int, seed: int, taken: int | None = None, ranks: int = 1, batch_size: int = 1) -> None:
        self.length, self.seed, self.epoch = length, seed, 0
        self.taken = length if taken is None else taken
        self.ranks, self.batch_size = ranks, batch_size
        self.skipped = 0  # items that the next pass leaves out, as they were seen before an interruption

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.taken // self.ranks

    def __iter__(self) -> Iterator[tuple[int, int]]:
        begin, self.skipped = self.skipped, 0
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)[: self.taken]
        if self.ranks > 1:
            order = order.reshape(-1, self.ranks, self.batch_size)[:, rank()].flatten()
        return iter((self.epoch, int(index)) for index in order[begin:])


class BatchesByLength(Sampler):
    """Batches of indices of nearly equal lengths, in an order that depends on the seed and the epoch alone.

    An epoch's order is cut into pools of POOL batches, each pool is sorted by length and cut into batches, and all
    batches are shuffled. taken, ranks: as in EpochOrder.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, taken: int, ranks: int = 1) -> None:
        self.lengths, self.batch_size, self.ranks = lengths, batch_size, ranks
        self.skipped = 0  # batches, as in EpochOrder
        self.sampler = EpochOrder(len(lengths), seed, taken)  # where Lightning looks for set_epoch

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size // self.ranks

    def __iter__(self) -> Iterator[list[int]]:
        begin, self.skipped = self.skipped, 0
        order = np.array([index for _, index in self.sampler])
        batches = []
        for start in range(0, len(order), POOL * self.batch_size):
            pool = order[start : start + POOL * self.batch_size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += pool.reshape(-1, self.batch_size).tolist()
        shuffled = np.random.default_rng((self.sampler.seed, self.sampler.epoch, 1)).permutation(len(batches))
        if self.ranks > 1:
            shuffled = shuffled[rank() :: self.ranks]
        return iter([batches[index] for index in shuffled[begin:]])


class Share(Sampler):
    """The items of `order` that are this process's among `ranks` which evaluate together: all once, by turns."""

    def __init__(self, order: Sequence[int], ranks: int) -> None:
        self.order, self.ranks = order, ranks

    def __len__(self) -> int:
        return len(self.order[rank() :: self.ranks])

    def __iter__(self) -> Iterator[int]:
        return iter(self.order[rank() :: self.ranks])


class Loader(DataLoader):
    """Says a user's mistake that another process met while loading as if it were met here, without a traceback."""

    def skip(self, batches: int) -> None:
        """The next pass of a training begins after so many batches."""
        if isinstance(self.batch_sampler, BatchesByLength):
            self.batch_sampler.skipped = batches
        elif isinstance(self.sampler, EpochOrder):
            self.sampler.skipped = batches * (self.batch_size or 1)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # what all readers of a DataLoader rely on
        try:
            yield from super().__iter__()
        except Exception as error:  # what else there is goes on as it is; at the interpreter's end UserError is gone
            if not isinstance(error, UserError):
                raise
            raise UserError(str(error.args[0]).rpartition(f"{UserError.__name__}: ")[2].strip()) from error


def rank() -> int:
    """This process's number among those that train together; 0 where it trains alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def train_loader(
    dataset: Dataset,
    batch_size: int,
    workers: int,
    seed: int,
    steps: int = 1,
    share: float = 1.0,
    ranks: int = 1,
    pin_memory: bool = False,
) -> Loader:
    """Shuffled batches, of sequences by length, the same for the same seed and epoch.

    steps: batches a weight update. What does not fill the last update is left out, so that every one weighs the same.
    share: of the items that an epoch has, others in each; at least one update. ranks: processes that train together,
    for each of which its own batches come. pin_memory: for a GPU, which then copies batches while it computes.
    Raises UserError when there are too few samples for one update of several steps or processes.
    """
    length = len(dataset)  # type: ignore[arg-type]
    if steps == ranks == 1:
        batch_size = min(batch_size, length)
    update = batch_size * steps * ranks
    if update > length:
        raise UserError(
            f"a weight update of {update} samples is more than the {length} that there are to train on: lower"
            " hardware.batch_size, accumulate_grad_batches or devices, or the `global_batch_size` of that training"
        )
    taken = max(int(share * length) // update, 1) * update
    common = _loading(workers, pin_memory)
    if (sequences := _sequences(dataset)) is not None:
        lengths, collate = sequences
        batches = BatchesByLength(lengths, batch_size, seed, taken, ranks)
        return Loader(dataset, batch_sampler=batches, collate_fn=collate, **common)
    return Loader(
        dataset, batch_size, sampler=EpochOrder(length, seed, taken, ranks, batch_size), drop_last=True, **common
    )


def evaluation_loader(
    dataset: Dataset, batch_size: int, workers: int = 0, ranks: int = 1, pin_memory: bool = False
) -> Loader:
    """All items once: images in their order, sequences from the longest to the shortest.

    ranks: processes that evaluate together, each a share; some may have one item less. pin_memory: as for training.
    Raises UserError when there are fewer items than processes.
    """
    if len(dataset) < ranks:  # type: ignore[arg-type]
        raise UserError(
            f"{len(dataset)} validation samples are fewer than the {ranks} processes that train together: raise"  # type: ignore[arg-type]
            " dataset.validation_share, or lower hardware.devices"
        )
    if (sequences := _sequences(dataset)) is not None:
        lengths, collate = sequences
        longest_first = np.argsort(-lengths, kind="stable").tolist()  # too little memory shows at once
        share = Share(longest_first, ranks)
        return Loader(dataset, batch_size, sampler=share, collate_fn=collate, **_loading(workers, pin_memory))
    in_order = Share(range(len(dataset)), ranks)  # type: ignore[arg-type]
    return Loader(dataset, batch_size, sampler=in_order, **_loading(workers, pin_memory))


def hash_of(*values: np.ndarray | Tensor | Sequence[str] | Sequence[int]) -> str:
    """A hash of arrays, numbers and words, for `Splits.contents`."""
    found = hashlib.sha256()
    for value in values:
        array = np.ascontiguousarray(value)
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(array.data if array.dtype.kind != "U" else "\0".join(array.flatten().tolist()).encode())
    return found.hexdigest()


@contextmanager
def same_draws(*key: int) -> Iterator[None]:
    """Whatever draws inside draws the same for the same key, and the draws outside go on as if nothing had been."""
    drawn = np.random.SeedSequence(key).generate_state(1)[0]
    states = random.getstate(), np.random.get_state()  # timm draws from all three
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(drawn))
            random.seed(int(drawn))
            np.random.seed(drawn)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def split_indices(
    labels: Sequence[int],
    share: float,
    seed: int,
    setting: str = "dataset.validation_share",
    items: str = "images",
    names: Sequence[str] = (),
) -> tuple[list[int], list[int]]:
    """Indices of the larger and of the smaller part, stratified by label; `share` in (0, 1) is the smaller's.

    Raises UserError, naming the `setting` of the share, when that leaves a class without an item in either part;
    `items` and `names`, of the classes, are what it calls them.
    """
    try:
        larger, smaller = train_test_split(range(len(labels)), test_size=share, random_state=seed, stratify=labels)
    except ValueError as error:
        counts = Counter(labels)
        rarest = min(counts, key=lambda label: (counts[label], label), default=0)
        why = f"each part needs one of every class: give more {items}, or a share nearer to 0.5"
        if counts[rarest] < 2:
            called = names[rarest] if names else rarest
            why = f"class {called} has {counts[rarest]} and needs two, one for each part: give more {items}"
        raise UserError(
            f"{setting}={share} does not split {len(labels)} {items} of {len(counts)} classes: {why}"
        ) from error
    return sorted(larger), sorted(smaller)


def split_classes(
    labels: Sequence[int], share: float, seed: int, same: Sequence[int], left: int = 1
) -> tuple[list[int], list[int]]:
    """Indices of a larger and of a smaller part, class by class: `share` of each, but one at least and not the last
    `left` of them.

    same: a number an item; items of one number are one thing, which goes into one part with its first label. Every
    class needs left + 1 things (`check_three` says so to a user who has fewer).
    """
    first: dict[int, int] = {}
    leaders = [first.setdefault(number, index) for index, number in enumerate(same)]
    by_class: dict[int, list[int]] = {}
    for index in first.values():
        by_class.setdefault(labels[index], []).append(index)
    held_out: set[int] = set()
    for label, members in by_class.items():
        count = min(max(round(share * len(members)), 1), len(members) - left)
        order = np.random.default_rng((seed, label)).permutation(len(members))
        held_out.update(members[place] for place in order[:count])
    larger = [index for index, leader in enumerate(leaders) if leader not in held_out]
    return larger, [index for index, leader in enumerate(leaders) if leader in held_out]


def check_three(labels: Sequence[int], names: Sequence[str], where: str, items: str) -> None:
    """Raises UserError for a class with fewer different items than parts; labels: of items that all differ."""
    counts = Counter(labels)
    few = [label for label in range(len(names)) if counts[label] < PARTS]
    if few:
        named = ", ".join(f"{names[label]} ({counts[label]})" for label in few[:PARTS])
        more = f" and {len(few) - PARTS} classes more" if len(few) > PARTS else ""
        raise UserError(
            f"{where}: too few different {items} of {named}{more}: train, validation and test need one each, so give"
            f" {PARTS} of every class at least, or take such classes out"
        )


def _loading(workers: int, pin_memory: bool) -> dict[str, Any]:
    """Workers stay from epoch to epoch: to start them again takes seconds."""
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": pin_memory,
        "worker_init_fn": end_with_parent,
    }


def _sequences(dataset: Dataset) -> tuple[np.ndarray, Callable[[Sequence[Batch]], Batch]] | None:
    """Lengths and padding of sequences, or of a subset of some; None for images."""
    if isinstance(dataset, Subset):
        whole = _sequences(dataset.dataset)
        return whole and (whole[0][list(dataset.indices)], whole[1])
    return (dataset.lengths, dataset.collate) if isinstance(dataset, Sequences) else None
