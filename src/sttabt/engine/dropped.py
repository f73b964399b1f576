"""Tokens really gone. Order them once by how many layers read them: then every layer's set is a prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.dispatch import dispatched
from sttabt.core.plan import TokenPlan
from sttabt.engine.attention import attend
from sttabt.engine.packed import attend_packed, present_places, unpack


@dispatched
def run_dropped(backbone: Backbone, inputs: Any, plan: TokenPlan) -> Tensor:
    """Logits (B, classes) under a hard plan; computes what the plan keeps and nothing else.

    Where all samples keep equally many tokens a layer, rows are (B, n, D) and a layer's set is a slice; otherwise rows
    are packed, (T, D), and attention alone may compute padding (engine.packed).
    Raises ValueError for a plan that drops what the head reads.
    """
    plan.check(backbone.outputs, backbone.pools)
    plan = plan.with_survivors() if backbone.reads_survivors else plan
    layout = _layout(plan)
    x = backbone.embed_tokens(inputs, layout.sample, layout.token)
    if layout.uniform:
        return _run_sliced(backbone, x.unflatten(0, (plan.lifetime.shape[0], -1)), layout.counts[0])
    return _run_packed(backbone, x, layout.counts)


@dispatched
def run_fixed(backbone: Backbone, inputs: Any, order: Tensor, counts: Sequence[int]) -> Tensor:
    """Logits (B, classes) where every sample keeps the same number of tokens; order, counts: see core.fixed.

    No shape and no branch depends on a tensor: torch.compile takes it whole.
    """
    counts = [*counts[:-1], counts[-2]] if backbone.reads_survivors else counts
    sample = torch.arange(order.shape[0], device=order.device)[:, None].expand_as(order)
    x = backbone.embed_tokens(inputs, sample.flatten(), order.flatten())
    return _run_sliced(backbone, x.unflatten(0, order.shape), counts)


@dataclass(frozen=True)
class _Layout:
    """counts[b][l]: tokens of sample b alive at boundary l; sample, token: (T,) who stands in each row at first."""

    counts: list[list[int]]
    sample: Tensor
    token: Tensor

    @property
    def uniform(self) -> bool:
        return all(counts == self.counts[0] for counts in self.counts)


def _layout(plan: TokenPlan) -> _Layout:
    order, counts = plan.order(), plan.counts
    first = torch.arange(order.shape[1], device=order.device) < counts[:, :1]
    sample, place = first.nonzero(as_tuple=True)
    return _Layout(counts.tolist(), sample, order[sample, place])


def _run_sliced(backbone: Backbone, x: Tensor, counts: Sequence[int]) -> Tensor:
    for layer in range(backbone.layers):
        kept = counts[layer + 1]
        written = None if kept == counts[layer] else partial(torch.narrow, dim=1, start=0, length=kept)
        query, key, value = backbone.qkv(layer, x, written)
        attended = attend(query, key, value, backbone.heads, dropout=backbone.attention_dropout(layer))
        x = backbone.finish(layer, x[:, :kept], attended)
    return backbone.head(x)


def _run_packed(backbone: Backbone, x: Tensor, counts: list[list[int]]) -> Tensor:
    for layer in range(backbone.layers):
        read = [sample[layer] for sample in counts]
        write = [sample[layer + 1] for sample in counts]
        written = None if read == write else partial(torch.index_select, dim=0, index=_prefixes(read, write, x.device))
        query, key, value = backbone.qkv(layer, x, written)
        attended = attend_packed(query, key, value, backbone.heads, read, write, backbone.attention_dropout(layer))
        x = backbone.finish(layer, x if written is None else written(x), attended)
    return _classify(backbone, x, [sample[-1] for sample in counts])


def _classify(backbone: Backbone, x: Tensor, left: list[int]) -> Tensor:
    """Logits from packed rows, `left` of each sample."""
    if len(set(left)) == 1:
        return backbone.head(x.unflatten(0, (len(left), -1)))
    present = present_places(left, x.device)
    return backbone.head(unpack(x, present), present)


def _prefixes(read: list[int], write: list[int], device: torch.device) -> Tensor:
    """Rows of each sample's first `write` tokens in a packing of `read` tokens a sample."""
    starts = torch.tensor(read).cumsum(0) - torch.tensor(read)
    return torch.cat(
        [torch.arange(start, start + kept) for start, kept in zip(starts.tolist(), write, strict=True)]
    ).to(device)
