"""Who goes on by the attention that a token receives, and by nothing else. B batch, L layers, N tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sttabt.core.counts import counts_on
from sttabt.core.forward import forward_select
from sttabt.core.ltp import hard_mask
from sttabt.core.plan import largest, output_tokens


@dataclass(frozen=True)
class MostReceived:
    """In each layer but the last the tokens that receive most: counts, (L-1, B) int64, says how many of a sample's.

    Where the counts are on the host no device is asked for them.
    """

    counts: Tensor
    threshold: None = None

    def select(self, layer: int, received: Tensor, alive: Tensor, outputs: int) -> Tensor:
        """The alive tokens that the layer writes, (B, N) bool, the first `outputs` among them; received: (B, N)."""
        counts = self.counts[layer]
        if counts.device != alive.device:
            counts = counts_on(alive.device, counts.tolist())
        return forward_select(received, alive, counts, outputs)


@dataclass(frozen=True)
class AboveThreshold:
    """In each layer but the last all tokens that receive more than its threshold, of `threshold` (L-1,).

    pools: of the tokens behind the output tokens the one that receives most goes on as well, for a head that reads one
    at least.
    """

    threshold: Tensor
    pools: bool = False
    counts: None = None

    def select(self, layer: int, received: Tensor, alive: Tensor, outputs: int) -> Tensor:
        """As MostReceived's."""
        first = output_tokens(alive, outputs)
        kept = hard_mask(received, self.threshold[layer]) | first
        if self.pools:
            kept = kept | largest(received, torch.ones_like(alive[:, 0], dtype=torch.long), among=alive & ~first)
        return kept & alive


Selection = MostReceived | AboveThreshold
