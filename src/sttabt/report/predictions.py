"""What a model said of each item, kept beside its row, and the paired test of two models on the same items."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from sttabt.report.arrays import check_array, read_arrays
from sttabt.system.files import write_atomically

PREDICTIONS_FILE = "predictions.npz"
MOST_LOGITS = 2_000_000  # numbers that are kept of a data set, 4 MB; of more, the most probable classes alone
TOP = 5  # of them


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of n items, in the order of their data set: class and predicted class, or score and predicted score.

    Of few classes the logits are kept, of many (ImageNet) the TOP most probable classes; what is not kept is empty.

    Raises:
        ValueError: the shapes or kinds of numbers disagree, or an item comes twice or out of order.
    """

    indices: np.ndarray  # int (n,): places in the data set, rising
    labels: np.ndarray  # int (n,), float for scores
    predictions: np.ndarray  # the same
    logits: np.ndarray  # float16 (n, classes) or (n, 0)
    top_classes: np.ndarray  # int32 (n, TOP) or (n, 0), the most probable first
    top_probabilities: np.ndarray  # float16, the same shape

    def __post_init__(self) -> None:
        count = self.indices.size
        for name, kinds in (("indices", "iu"), ("labels", "iuf"), ("predictions", "iuf")):
            check_array(name, getattr(self, name), kinds, (count,))
        for name, kinds in (("logits", "f"), ("top_classes", "iu"), ("top_probabilities", "f")):
            check_array(name, getattr(self, name), kinds, (count, None))
        if self.top_classes.shape != self.top_probabilities.shape:
            raise ValueError(f"{self.top_classes.shape} classes have {self.top_probabilities.shape} probabilities")
        if (np.diff(self.indices) <= 0).any():
            raise ValueError("an item comes twice or out of order")

    @classmethod
    def of(cls, indices: np.ndarray, labels: np.ndarray, predictions: np.ndarray, logits: np.ndarray) -> Predictions:
        """From all logits, float (n, classes): keeps them in half precision, or the most probable classes."""
        none = np.zeros((len(logits), 0), np.float16)
        if logits.size <= MOST_LOGITS or logits.shape[1] <= TOP:
            return cls(indices, labels, predictions, _half(logits), none.astype(np.int32), none)
        best = np.argpartition(logits, -TOP, axis=1)[:, -TOP:]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(logits, best, 1), axis=1, kind="stable"), 1)
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        probabilities = np.take_along_axis(shifted / shifted.sum(axis=1, keepdims=True), best, 1)
        return cls(indices, labels, predictions, none, best.astype(np.int32), _half(probabilities))

    @property
    def right(self) -> np.ndarray:
        """bool (n,): which items were classified rightly. Raises ValueError for scores, of which none is right."""
        if self.labels.dtype.kind == "f":
            raise ValueError("predicted scores are neither right nor wrong")
        right: np.ndarray = self.labels == self.predictions
        return right

    def write(self, path: str | Path) -> None:
        """Writes the predictions; a killed process leaves no half-written file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{each.name: getattr(self, each.name) for each in fields(self)})
        write_atomically(Path(path), buffer.getvalue())


@dataclass(frozen=True)
class PairedTest:
    """Of two models on the same items: how many only the one or only the other classifies rightly.

    p_value: of McNemar's exact test, two-sided: how probable a difference at least as large is if both are equally
    good, so that each of these items is as likely to fall to the one as to the other (McNemar, Psychometrika 1947).
    """

    only_first: int
    only_second: int
    p_value: float


def read_predictions(folder: str | Path) -> Predictions:
    """The predictions in a row's folder.

    Raises:
        FileNotFoundError: there are none, as the row is of an older version.
        ValueError: the file, which is named, is truncated, damaged or foreign.
    """
    path = Path(folder) / PREDICTIONS_FILE
    try:
        return Predictions(**read_arrays(path, lambda _: [each.name for each in fields(Predictions)]))
    except ValueError as error:
        raise ValueError(f"{path} holds no predictions: {error}") from error


def paired_test(first: Predictions, second: Predictions) -> PairedTest:
    """McNemar's exact test of two classifiers.

    Raises:
        ValueError: they are of other items, or predict scores.
    """
    for name in ("indices", "labels"):
        if not np.array_equal(getattr(first, name), getattr(second, name)):
            raise ValueError(f"the two are of different items: their {name} differ")
    only_first = int((first.right & ~second.right).sum())
    only_second = int((second.right & ~first.right).sum())
    return PairedTest(only_first, only_second, exact_p_value(only_first, only_second))


def exact_p_value(one: int, other: int) -> float:
    """Two-sided, of `one` heads and `other` tails of a fair coin."""
    total, few = one + other, min(one, other)
    ways, tail = 1, 0  # ways: total choose k, exact, since they outgrow floating point
    for heads in range(few + 1):
        tail += ways
        ways = ways * (total - heads) // (heads + 1)
    return min(1.0, 2 * tail / 2**total) if total else 1.0


def _half(values: np.ndarray) -> np.ndarray:
    largest = float(np.finfo(np.float16).max)
    return np.clip(values, -largest, largest).astype(np.float16)
