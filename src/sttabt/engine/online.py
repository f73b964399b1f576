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
from sttabt.engine.dense import padding_bias
from sttabt.engine.packed import unpack

# rule(layer, probabilities (B, H, n, n), alive (B, n) bool) -> (B, n) bool, the alive tokens that the layer writes
Rule = Callable[[int, Tensor, Tensor], Tensor]
# As a rule, of every layer and of real tokens; its mask (B, N) in [0, 1] multiplies what the layer writes.
SoftRule = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OnlineRun:
    """logits (B, classes), and what the rule decided as a plan like any other."""

    logits: Tensor
    plan: TokenPlan


@dataclass(frozen=True)
class OnlineSoftRun:
    """logits (B, classes); masks: (B, L, N), what each layer's output was multiplied by."""

    logits: Tensor
    masks: Tensor


def run_online_soft(backbone: Backbone, inputs: Any, rule: SoftRule) -> OnlineSoftRun:
    """Computes every token and multiplies each layer's output, residual included, by its mask (METHOD section 4).

    Attention goes on to see tokens whose mask is small: their output is nearly 0, their keys are not. Gradients reach
    the masks and, through the probabilities, the weights.
    """
    real = backbone.real(inputs)
    x = backbone.embed(inputs)
    masks: list[Tensor] = []
    for layer in range(backbone.layers):
        query, key, value = backbone.qkv(layer, x)
        probabilities = attention_probabilities(query, key, real, backbone.heads)
        attended = merge_heads(_dropout(probabilities, backbone) @ split_heads(value, backbone.heads))
        mask = rule(layer, probabilities, real)
        if layer == backbone.layers - 1 and backbone.reads_survivors:
            mask = masks[-1] if masks else real.to(x.dtype)  # it writes what it reads
        x = backbone.finish(layer, x, attended) * mask[..., None].to(x.dtype)
        masks.append(mask)
    left = torch.stack([real, *(mask >= 0.5 for mask in masks[:-1])]).all(0)  # what the last layer would read
    return OnlineSoftRun(backbone.head(x, left), torch.stack(masks, 1))


def run_online_masked(backbone: Backbone, inputs: Any, rule: Rule) -> OnlineRun:
    """Computes every token and masks those that the rule drops; the last layer writes the output tokens alone."""
    alive = backbone.real(inputs)
    x = backbone.embed(inputs)
    boundaries = [alive]
    for layer in range(backbone.layers):
        query, key, value = backbone.qkv(layer, x)
        probabilities = attention_probabilities(query, key, alive, backbone.heads)
        attended = merge_heads(_dropout(probabilities, backbone) @ split_heads(value, backbone.heads))
        last = layer == backbone.layers - 1
        alive = _last(alive, backbone) if last else rule(layer, probabilities, alive)
        x = backbone.finish(layer, x, attended, gate=alive[..., None].to(x.dtype))
        boundaries.append(alive)
    return OnlineRun(backbone.head(x, alive), TokenPlan(torch.stack(boundaries, 1)))


def run_online_dropped(backbone: Backbone, inputs: Any, rule: Rule) -> OnlineRun:
    """Computes the kept tokens only; padding is not even embedded.

    The samples' rows are packed behind each other, (T, D): what is linear runs over kept rows alone. Attention runs on
    samples padded to the longest, and not fused where the rule reads its probabilities: in all layers but the last.
    """
    real = backbone.real(inputs)
    batch, heads = real.shape[0], backbone.heads
    sample, token = real.nonzero(as_tuple=True)  # who stands in each row
    if padding_bias(real) is None:
        x = backbone.embed(inputs).flatten(0, 1)
    else:
        x = backbone.embed_tokens(inputs, sample, token)
    boundaries = [real]
    for layer in range(backbone.layers):
        present = _first(torch.bincount(sample, minlength=batch))
        if layer == backbone.layers - 1:
            boundaries.append(_last(boundaries[-1], backbone))
            written = boundaries[-1][sample, token]
            left = _first(boundaries[-1].sum(1))
            query, key, value = backbone.qkv(layer, x, lambda rows: rows[written])  # noqa: B023
            query, key, value = unpack(query, left), unpack(key, present), unpack(value, present)
            attended = attend(query, key, value, heads, padding_bias(present), backbone.attention_dropout)
            x = unpack(backbone.finish(layer, x[written], attended[left]), left)
            break
        query, key, value = (unpack(rows, present) for rows in backbone.qkv(layer, x))
        probabilities = attention_probabilities(query, key, present, heads)
        keep = rule(layer, probabilities, present)
        written = _first(keep.sum(1))
        place = keep.int().argsort(dim=1, descending=True, stable=True)[:, : written.shape[1]]
        picked = place[:, None, :, None].expand(-1, heads, -1, probabilities.shape[-1])
        attended = merge_heads(_dropout(probabilities.gather(2, picked), backbone) @ split_heads(value, heads))
        kept = keep[present]
        x = backbone.finish(layer, x[kept], attended[written])
        sample, token = sample[kept], token[kept]
        boundaries.append(torch.zeros_like(real).index_put((sample, token), keep.new_ones(())))
    return OnlineRun(backbone.head(x, left), TokenPlan(torch.stack(boundaries, 1)))


def _last(alive: Tensor, backbone: Backbone) -> Tensor:
    """What the last layer writes of the tokens (B, N) that it reads: what the head reads."""
    return alive if backbone.reads_survivors else output_tokens(alive, backbone.outputs)


def _dropout(probabilities: Tensor, backbone: Backbone) -> Tensor:
    return F.dropout(probabilities, backbone.attention_dropout) if backbone.attention_dropout else probabilities


def attention_probabilities(query: Tensor, key: Tensor, alive: Tensor, heads: int) -> Tensor:
    """(B, H, n, n) of queries and keys (B, n, D) with heads not split; alive: (B, n) bool, the keys that are there."""
    query, key = split_heads(query, heads), split_heads(key, heads)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~alive[:, None, None, :], -math.inf).softmax(-1)


def _first(counts: Tensor) -> Tensor:
    """(B, n): the first places of each sample, as many as its count (B,), n being the largest."""
    return torch.arange(int(counts.max()), device=counts.device) < counts[:, None]
