"""A trace that planning reads without attention maps on CUDA: one kernel sums up a layer's rows (native.importance)."""

from __future__ import annotations

import torch
from torch import Tensor

from sttabt.core.concrete import percentiles
from sttabt.core.plan import Scored
from sttabt.core.trace import AttentionTrace
from sttabt.native.importance import importance


class KernelTrace(AttentionTrace):
    """Sums are in single precision whatever the trace is in. Where somebody asks for gradients torch computes them."""

    def received(self, layer: int, weight: Tensor, places: Tensor | None = None) -> Tensor:
        if _wants_gradient(self, layer, weight):
            return super().received(layer, weight, places)
        if places is None:
            weight, places, counts = _ranked(weight)
        else:
            counts = places.new_full(places.shape[:1], places.shape[1])
        return importance(self.queries[layer], self.keys[layer], places, weight, counts, self.real, self.scale, False)

    def rows_computed(self, counts: Tensor) -> Scored:
        """Of each sample its own, mean over the batch."""
        return counts.float().mean(0)


@percentiles.register
def _(trace: KernelTrace, layer: int, weight: Tensor, padding: Tensor | None, skip: bool) -> Tensor:
    if _wants_gradient(trace, layer, weight):
        return percentiles.default(trace, layer, weight, padding, skip)
    own, places, counts = _ranked(weight)
    found = importance(trace.queries[layer], trace.keys[layer], places, own, counts, trace.real, 1.0, True)
    return found.to(weight.dtype)


def _wants_gradient(trace: AttentionTrace, layer: int, weight: Tensor) -> bool:
    read = weight, trace.queries[layer], trace.keys[layer]
    return torch.is_grad_enabled() and any(each.requires_grad for each in read)


def _ranked(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (B, N) from the largest on, their places, and how many are above 0, (B,)."""
    ranked, places = weight.sort(dim=-1, descending=True)
    return ranked, places, (weight > 0).sum(-1)
