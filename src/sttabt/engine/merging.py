"""Tokens merged instead of dropped: fewer rows from layer to layer, each the mean of those that it stands for."""

from __future__ import annotations

from typing import Any

import torch

from sttabt.backbones.base import Backbone
from sttabt.core.dispatch import dispatched
from sttabt.core.merge import match_tokens, pairs_by_layer
from sttabt.core.plan import MergeRecord, output_tokens
from sttabt.engine.attention import attend_layer, split_heads
from sttabt.engine.run import Run


@dispatched
def run_merged(backbone: Backbone, inputs: Any, merged: float) -> Run:
    """Logits when every layer but the last merges its `merged` most alike pairs before its feed-forward (ToMe).

    merged: a mean over layers, see core.merge.pairs_by_layer.
    Keys are compared, mean over heads; attention counts a merged token as often as it stands for one. The last layer
    computes the output tokens alone. The record says which tokens still stand for themselves or for others.
    """
    real = backbone.real(inputs)
    x = backbone.embed(inputs)
    token = torch.arange(real.shape[1], device=real.device).expand_as(real)
    size = torch.ones_like(x[..., :1])
    boundaries = [real]
    last, survivors = backbone.layers - 1, backbone.reads_survivors
    pairs = pairs_by_layer(merged, last)
    for layer in range(backbone.layers):
        written = (lambda rows: rows[:, : backbone.outputs]) if layer == last and not survivors else None
        attended, key = attend_layer(backbone, layer, x, None if layer == 0 else size[..., 0].log(), written)
        if layer == last:
            x = backbone.finish(layer, x[:, : attended.shape[1]], attended)
            break
        x = backbone.project(layer, x, attended)
        matching = match_tokens(split_heads(key, backbone.heads).mean(1), pairs[layer], backbone.outputs)
        x, size = matching.merge(x * size), matching.merge(size)
        x = backbone.feed_forward(layer, x / size)
        token = token.gather(1, matching.stay)
        boundaries.append(torch.zeros_like(real).scatter_(1, token, True))
    boundaries.append(boundaries[-1] if survivors else output_tokens(real, backbone.outputs))
    return Run(backbone.head(x), MergeRecord(torch.stack(boundaries, 1)), real)
