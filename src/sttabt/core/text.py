"""Sentences as a model reads them. B batch, N tokens of the longest."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Text(NamedTuple):
    """(B, N) each; a row's padding stands at its end.

    ids: places in the vocabulary, int; types: 0 in the first text, 1 in the second, int; real: bool, False on padding.
    """

    ids: Tensor
    types: Tensor
    real: Tensor
