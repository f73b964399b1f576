"""What a network attended to, kept as queries and keys: N*d numbers a head instead of N*N."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sttabt.core.counts import is_unasked
from sttabt.core.plan import Scored, output_tokens, rows_with_weight


@dataclass(frozen=True)
class AttentionTrace:
    """Queries and keys of every layer, from which attention maps are computed where they are read.

    queries, keys: L tensors (B, H, N, d); real: (B, N) bool, False on padding; scale: what a product of the two is
    multiplied by to be a score, 1/sqrt(d) unless the queries are scaled already. may_pad: False where it is known that
    no token is padding, which saves looking. pools: the head reads all tokens behind the output tokens, and not these.
    """

    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    real: Tensor
    scale: float = 1.0
    may_pad: bool = True
    pools: bool = False

    @property
    def layers(self) -> int:
        return len(self.queries)

    def compute(self) -> AttentionTrace:
        """The trace with its queries and keys at hand, for a trace that leaves them until they are read."""
        return self

    @property
    def is_padded(self) -> bool:
        """Whether any token is padding; in a graph and on a device, which are not asked, whether any may be."""
        return self.may_pad and (is_unasked(self.real) or not bool(self.real.all()))

    def read_by_head(self, outputs: int) -> Tensor:
        """The tokens (B, N) bool that the head of a dense model reads: the first `outputs`, or all behind them."""
        first = output_tokens(self.real, outputs)
        return self.real & ~first if self.pools else first

    @property
    def padding(self) -> Tensor | None:
        """`real`, or None where no token is padding."""
        return self.real if self.is_padded else None

    def rows(self, layer: int, places: Tensor) -> Tensor:
        """The queries (B, H, n, d) at `places` (B, n)."""
        queries = self.queries[layer].transpose(1, 2)
        batch, tokens, heads, _ = queries.shape
        starts = torch.arange(batch, device=places.device)[:, None] * tokens
        # Whole rows of a flat table: a gather along the heads is an order of magnitude slower.
        picked = queries.flatten(0, 1).flatten(1).index_select(0, (places + starts).flatten())
        return picked.unflatten(0, places.shape).unflatten(-1, (heads, -1)).transpose(1, 2)

    def scores(self, layer: int, places: Tensor | None = None) -> Tensor:
        """Attention scores before the softmax, (B, H, N, N); -inf on keys that are padding.

        places: (B, n), compute only these rows.
        """
        queries = self.queries[layer] if places is None else self.rows(layer, places)
        scores = (queries * self.scale) @ self.keys[layer].transpose(-1, -2)
        return scores.masked_fill(~self.real[:, None, None, :], -math.inf) if self.is_padded else scores

    def received(self, layer: int, weight: Tensor, places: Tensor | None = None) -> Tensor:
        """Attention that each token receives, (B, N): sum over rows of weight times probability, mean over heads.

        weight: (B, N), or (B, n) of the rows at `places` (B, n) alone. Rows of weight 0 are not computed, except on a
        device and in a graph, which are not asked how many they are.
        """
        if places is None and not is_unasked(weight):
            places, weight = rows_with_weight(weight)
        return (weight[:, None, None] @ self.probabilities(layer, places))[:, :, 0].mean(1)

    def rows_computed(self, counts: Tensor) -> Scored:
        """Rows a sample that planning computes, by layer, where counts (B, L) of them carry weight: as many as the
        sample that has most, on a device and in a graph all.
        """
        if is_unasked(counts):
            return (float(self.real.shape[1]),) * self.layers
        return tuple(counts.amax(0).tolist())

    def probabilities(self, layer: int, places: Tensor | None = None) -> Tensor:
        """Attention probabilities, (B, H, N, N); rows are queries and sum to 1 over the real keys."""
        return torch.softmax(self.scores(layer, places), dim=-1)
