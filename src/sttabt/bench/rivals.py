"""Rivals as their authors time them: ToMe on maps of attention, and DynamicViT's masks, with which it trains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sttabt.backbones.base import Backbone
from sttabt.core.cost import encoder_macs
from sttabt.engine.attention import merge_heads, split_heads
from sttabt.methods.dynamicvit import DynamicVit, predictor_macs


def run_plain_tome(base: Backbone, images: Tensor, merged: int) -> Tensor:
    """Logits of ToMe on rows (B, n, D): what engine.merging computes of samples of one length, as one would write it.

    Attention is a softmax of scores, which a row's size is added to as its logarithm; rows are picked by gather and
    summed up by scatter. (Bolya et al., ICLR 2023, section 3) The last layer computes every row and merges none.
    """
    images = base.prepare(images)
    x, size, scale = base.embed(images), None, (base.architecture.width // base.heads) ** -0.5
    for layer, pairs in enumerate(_pairs(base, merged)):
        query, key, value = (split_heads(rows, base.heads) for rows in base.qkv(layer, x))
        scores = query @ key.transpose(-1, -2) * scale
        if size is not None:
            scores = scores + size.log()[:, None, None, :, 0]
        x = base.project(layer, x, merge_heads(scores.softmax(-1) @ value))
        if pairs:
            size = torch.ones_like(x[..., :1]) if size is None else size
            merge = _match(key.mean(1), pairs, base.outputs)
            whole = merge(size)
            x, size = merge(x * size) / whole, whole
        x = base.feed_forward(layer, x)
    return base.head(x)


def plain_tome_macs(base: Backbone, merged: int) -> float:
    """Multiply-adds of a sample."""
    pairs = _pairs(base, merged)
    reads = [base.tokens - sum(pairs[:layer]) for layer in range(base.layers)]
    writes = [read - merging for read, merging in zip(reads, pairs, strict=True)]
    parts = encoder_macs(base.architecture, reads, writes, base.tokens - base.outputs, reads, reads)
    offered = [read - base.outputs for read, merging in zip(reads, pairs, strict=True) if merging]
    compared = sum((own // 2) * (own - own // 2) for own in offered)
    return sum(parts.values()) + compared * (base.architecture.width // base.heads)


def masks_macs(base: Backbone, method: DynamicVit) -> float:
    """Multiply-adds of a sample in the forward that DynamicViT trains with: every token, and the modules."""
    every = [base.tokens] * base.layers
    parts = encoder_macs(base.architecture, every, every, base.tokens - base.outputs)
    modules = len(method.deciding) * predictor_macs(base.tokens - base.outputs, base.architecture.width)
    return sum(parts.values()) + modules


def _pairs(base: Backbone, merged: int) -> list[int]:
    """Of each layer, none of the last."""
    rows, found = base.tokens, list[int]()
    for _ in range(base.layers - 1):
        found.append(min(merged, (rows - base.outputs) // 2))
        rows -= found[-1]
    return [*found, 0]


def _match(features: Tensor, pairs: int, outputs: int) -> Callable[[Tensor], Tensor]:
    """What sums up rows (B, n, D) to (B, n - pairs, D): outputs, the half that takes, and who is left of the other."""
    unit = F.normalize(features, dim=-1)
    best, partner = (unit[:, outputs::2] @ unit[:, outputs + 1 :: 2].transpose(1, 2)).max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    going, staying = order[:, :pairs, None], order[:, pairs:].sort(-1).values[..., None]
    into = partner[..., None].gather(1, going)

    def merge(rows: Tensor) -> Tensor:
        width = rows.shape[-1]
        offered, taking = rows[:, outputs::2], rows[:, outputs + 1 :: 2]
        given = offered.gather(1, going.expand(-1, -1, width))
        taken = taking.scatter_reduce(1, into.expand(-1, -1, width), given, "sum")
        return torch.cat([rows[:, :outputs], taken, offered.gather(1, staying.expand(-1, -1, width))], 1)

    return merge
