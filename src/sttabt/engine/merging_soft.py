"""Merging and dropping as training sees it: every row is computed, and masks say how much of it attention reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.plan import output_tokens
from sttabt.engine.attention import attend_weighted
from sttabt.engine.masked import TINY
from sttabt.engine.merging import class_attention


class SoftRows(NamedTuple):
    """x: (B, N, D), what a layer's feed-forward would read; of_class: (B, N), the attention received from the class
    token; alive: (B, N) bool, the rows that stand for tokens.
    """

    x: Tensor
    of_class: Tensor
    alive: Tensor


class SoftMerging(NamedTuple):
    """target: (B, N) int64, the row that each becomes part of, its own where it stays, -1 where it is dropped; factor:
    (B, N), what a row's mask is multiplied by: 1 or 0, with a gradient.
    """

    target: Tensor
    factor: Tensor


SoftMergingRule = Callable[[int, SoftRows], SoftMerging]


def run_merging_soft(backbone: Backbone, inputs: Any, rule: SoftMergingRule) -> Tensor:
    """Logits (B, classes), those of `engine.merging.run_merging` where rows that become one weigh the same.

    Rows that merge or are dropped go on, with a mask of 0: no other row reads them, but gradients reach the masks as if
    it might.
    """
    real = backbone.real(inputs)
    x = backbone.embed(inputs)
    mask, size, alive = real.to(x.dtype), torch.ones_like(x[..., 0]), real
    for layer in range(backbone.layers):
        query, key, value = backbone.qkv(layer, x)
        log_weight = (mask * size + TINY).log()
        attended = attend_weighted(query, key, value, backbone.heads, log_weight, backbone.attention_dropout(layer))
        x = backbone.project(layer, x, attended)
        if layer < backbone.layers - 1:
            with torch.no_grad():
                classified = query[:, : backbone.architecture.classifiers]
                of_class = class_attention(classified, key, log_weight, backbone.heads)
            target, factor = rule(layer, SoftRows(x, of_class, alive))
            x, size, alive = _merge(x, size, alive, target)
            mask = mask * factor
        x = backbone.feed_forward(layer, x)
    return backbone.head(x, alive if backbone.reads_survivors else output_tokens(real, backbone.outputs))


def _merge(x: Tensor, size: Tensor, alive: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of rows, sums of sizes, and who is alive; what merges away stays where it is, as it is."""
    own = torch.arange(target.shape[1], device=target.device)
    merges = alive & (target >= 0) & (target != own)
    into = torch.where(merges, target, own)
    taken, more = (x * merges[..., None], size * merges), merges.to(x.dtype)
    members = 1 + torch.zeros_like(more).scatter_add(1, into, more)
    sums = x.scatter_add(1, into[..., None].expand_as(x), taken[0])
    return sums / members[..., None], size.scatter_add(1, into, taken[1]), alive & (target == own)
