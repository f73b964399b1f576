"""What a network attended to, kept as queries and keys: N*d numbers a head instead of N*N."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionTrace:
    """Queries and keys of every layer, from which attention maps are computed where somebody reads them.

    queries: L tensors (B, H, N, d), scaled by 1/sqrt(d); keys: L tensors (B, H, N, d);
    real: (B, N) bool, False on padding.
    """

    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    real: Tensor

    @property
    def layers(self) -> int:
        return len(self.queries)

    def rows(self, layer: int, places: Tensor) -> Tensor:
        """The queries (B, H, n, d) at `places` (B, n)."""
        queries = self.queries[layer]
        return queries.gather(2, places[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[-1]))

    def scores(self, layer: int) -> Tensor:
        """Attention scores before the softmax, (B, H, N, N); -inf on keys that are padding."""
        scores = self.queries[layer] @ self.keys[layer].transpose(-1, -2)
        return scores.masked_fill(~self.real[:, None, None, :], -math.inf)

    def probabilities(self, layer: int) -> Tensor:
        """Attention probabilities, (B, H, N, N); rows are queries and sum to 1 over the real keys."""
        return torch.softmax(self.scores(layer), dim=-1)
