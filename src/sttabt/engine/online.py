"""Methods that decide while the model runs: a rule sees a layer's attention and says who goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sttabt.backbones.base import Backbone
from sttabt.core.plan import TokenPlan, output_tokens
from sttabt.engine.attention import attend, merge_heads, split_heads

# rule(layer, probabilities (B, H, n, n), alive (B, n) bool) -> (B, n) bool, the alive tokens that the layer writes
Rule = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OnlineRun:
    """logits (B, classes), and what the rule decided as a plan like any other."""

    logits: Tensor
    plan: TokenPlan


def run_online_masked(backbone: Backbone, inputs: Any, rule: Rule) -> OnlineRun:
    """Computes every token and masks those that the rule drops; the last layer writes the output tokens alone."""
    alive = backbone.real(inputs)
    x = backbone.embed(inputs)
    boundaries = [alive]
    for layer in range(backbone.layers):
        query, key, value = backbone.qkv(layer, x)
        probabilities = _probabilities(query, key, alive, backbone.heads)
        attended = merge_heads(_dropout(probabilities, backbone) @ split_heads(value, backbone.heads))
        if layer == backbone.layers - 1:
            alive = output_tokens(alive, backbone.outputs)
        else:
            alive = rule(layer, probabilities, alive)
        x = backbone.finish(layer, x, attended, gate=alive[..., None].to(x.dtype))
        boundaries.append(alive)
    return OnlineRun(backbone.head(x[:, : backbone.outputs]), TokenPlan(torch.stack(boundaries, 1)))


def run_online_dropped(backbone: Backbone, inputs: Any, rule: Rule) -> OnlineRun:
    """Computes the kept tokens only. Samples that keep fewer than the longest are padded to it, layer by layer."""
    real = backbone.real(inputs)
    alive, x = real, backbone.embed(inputs)
    token = torch.arange(real.shape[1], device=real.device).expand_as(real)  # which token stands in each place
    boundaries = [real]
    for layer in range(backbone.layers):
        if layer == backbone.layers - 1:
            query, key, value = backbone.qkv(layer, x, lambda rows: rows[:, : backbone.outputs])
            bias = None if bool(alive.all()) else alive[:, None, None, :]
            attended = attend(query, key, value, backbone.heads, bias, backbone.attention_dropout)
            x = backbone.finish(layer, x[:, : backbone.outputs], attended)
            boundaries.append(output_tokens(real, backbone.outputs))
            break
        query, key, value = backbone.qkv(layer, x)
        probabilities = _probabilities(query, key, alive, backbone.heads)
        keep = rule(layer, probabilities, alive)
        boundaries.append(torch.zeros_like(real).scatter_(1, token, keep))
        place = keep.int().argsort(dim=1, descending=True, stable=True)[:, : int(keep.sum(1).max())]
        rows = place[:, None, :, None].expand(-1, backbone.heads, -1, probabilities.shape[-1])
        kept = _dropout(probabilities.gather(2, rows), backbone)
        attended = merge_heads(kept @ split_heads(value, backbone.heads))
        x = backbone.finish(layer, x.gather(1, place[..., None].expand(-1, -1, x.shape[-1])), attended)
        alive, token = keep.gather(1, place), token.gather(1, place)
    return OnlineRun(backbone.head(x), TokenPlan(torch.stack(boundaries, 1)))


def _dropout(probabilities: Tensor, backbone: Backbone) -> Tensor:
    return F.dropout(probabilities, backbone.attention_dropout) if backbone.attention_dropout else probabilities


def _probabilities(query: Tensor, key: Tensor, alive: Tensor, heads: int) -> Tensor:
    query, key = split_heads(query, heads), split_heads(key, heads)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~alive[:, None, None, :], -math.inf).softmax(-1)
