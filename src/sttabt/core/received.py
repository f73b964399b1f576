"""Who goes on by the attention that a token receives, and by nothing else. B batch, L layers, N tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sttabt.core.forward import forward_select
from sttabt.core.ltp import hard_mask
from sttabt.core.plan import output_tokens


@dataclass(frozen=True)
class MostReceived:
    """In each layer but the last the tokens that receive most: counts, (L-1, B) int64, says how many of a sample's."""

    counts: Tensor
    threshold: None = None

    def select(self, layer: int, received: Tensor, alive: Tensor, outputs: int) -> Tensor:
        """The alive tokens that the layer writes, (B, N) bool, the first `outputs` among them; received: (B, N)."""
        return forward_select(received, alive, self.counts[layer], outputs)


@dataclass(frozen=True)
class AboveThreshold:
    """In each layer but the last all tokens that receive more than its threshold, of `threshold` (L-1,)."""

    threshold: Tensor
    counts: None = None

    def select(self, layer: int, received: Tensor, alive: Tensor, outputs: int) -> Tensor:
        """As MostReceived's."""
        return (hard_mask(received, self.threshold[layer]) | output_tokens(alive, outputs)) & alive


Selection = MostReceived | AboveThreshold
