"""Sentences as a model reads them. B batch, N tokens of the longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Text(NamedTuple):
    """(B, N) each; a row's padding stands at its end.

    ids: places in the vocabulary, int; types: 0 in the first text, 1 in the second, int; real: bool, False on padding.
    """

    ids: Tensor
    types: Tensor
    real: Tensor


class MeasuredText(Text):
    """A Text on a device whose host knows `lengths`, the real tokens of each row."""

    lengths: tuple[int, ...] | None = None  # None where it was made again of its tensors, which may be others

    @classmethod
    def of(cls, text: Text, lengths: Sequence[int]) -> MeasuredText:
        found = cls(*text)
        found.lengths = tuple(lengths)
        return found
