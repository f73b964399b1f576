"""Methods that decide between layers: a rule sees what a layer would read, and says which tokens enter it."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.dynamicvit import attend_to_kept
from sttabt.core.plan import TokenPlan
from sttabt.engine.attention import merge_heads, split_heads
from sttabt.engine.dense import embed_packed
from sttabt.engine.merging import attend_rows
from sttabt.engine.online import GoesOn, LayerAttention, drop_out, pack_kept, places_of, what_the_last_writes
from sttabt.engine.packed import Packing
from sttabt.engine.run import Run

# rule(layer, x (B, n, D), alive (B, n) bool) -> (B, n) bool, the alive tokens that the layer reads
EntryRule = Callable[[int, Tensor, Tensor], Tensor]
# As a rule, of all tokens; a decision (B, N) in [0, 1] takes the place of who is alive.
SoftEntryRule = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class EnteringSoftRun:
    """logits (B, classes); states: what the last layer wrote, (B, N, D); decisions: (B, N), one a deciding layer."""

    logits: Tensor
    states: Tensor
    decisions: list[Tensor]


def run_entering(
    backbone: Backbone,
    inputs: Any,
    rule: EntryRule,
    deciding: Container[int],
    enters: GoesOn = lambda layer, tokens: None,
) -> Run:
    """Computes the tokens that enter a layer and no others; the rule is asked at the layers `deciding`.

    enters: as `goes_on` of engine.online, of what the rule lets enter.

    Rows of the samples are packed behind each other, (T, D); attention may run on samples padded to the longest.
    """
    real = backbone.real(inputs)
    x, packing = embed_packed(backbone, inputs)
    sample, token = packing.places  # who stands in each row
    lifetime = real.long()
    for layer in range(backbone.layers):
        if layer in deciding:
            keep = rule(layer, packing.unpack(x), packing.present)
            entered = pack_kept(keep, enters(layer, packing.counted))
            kept = packing.rows_at(places_of(keep, entered), entered)
            x, sample, token, packing = x[kept], sample[kept], token[kept], entered
        lifetime = lifetime.index_put((sample, token), lifetime.new_full((), layer + 1))
        if layer < backbone.layers - 1:
            attended = attend_rows(backbone, layer, *backbone.qkv(layer, x), packing, packing, None)
            x = backbone.finish(layer, x, attended)
    last = what_the_last_writes(lifetime == backbone.layers, backbone)
    left = packing if backbone.reads_survivors else Packing.alike(len(real), backbone.outputs, real.device)
    written = packing.prefix(left)  # the output tokens stand in front
    inputs_of_last = backbone.qkv(backbone.layers - 1, x, lambda rows: rows[written])
    attended = attend_rows(backbone, backbone.layers - 1, *inputs_of_last, packing, left, None)
    x = backbone.finish(backbone.layers - 1, x[written], attended)
    return Run(backbone.head(left.unpack(x), left.present), TokenPlan(lifetime + last, backbone.layers), real)


def run_entering_masked(backbone: Backbone, inputs: Any, rule: EntryRule, deciding: Container[int]) -> Run:
    """As `run_entering`, every token computed and masked."""
    real = alive = backbone.real(inputs)
    x, boundaries = backbone.embed(inputs), []
    for layer in range(backbone.layers):
        alive = rule(layer, x, alive) if layer in deciding else alive
        boundaries.append(alive)
        query, key, value = backbone.qkv(layer, x)
        probabilities = LayerAttention(backbone, query, key, value, alive).probabilities
        probabilities = drop_out(probabilities, backbone.attention_dropout(layer))
        x = backbone.finish(layer, x, merge_heads(probabilities @ split_heads(value, backbone.heads)))
    boundaries.append(what_the_last_writes(alive, backbone))
    plan = TokenPlan.of_sets(torch.stack(boundaries, 1))
    return Run(backbone.head(x, boundaries[-1]), plan, real)


def run_entering_soft(
    backbone: Backbone, inputs: Any, rule: SoftEntryRule, deciding: Container[int]
) -> EnteringSoftRun:
    """Computes every token; each attends to those that the decisions so far keep, and to itself (core.dynamicvit)."""
    real = backbone.real(inputs)
    x, decisions = backbone.embed(inputs), list[Tensor]()
    decision = real.to(x.dtype)
    for layer in range(backbone.layers):
        if layer in deciding:
            decision = rule(layer, x, decision)
            decisions.append(decision)
        query, key, value = (split_heads(rows, backbone.heads) for rows in backbone.qkv(layer, x))
        probabilities = attend_to_kept(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, decision, real)
        probabilities = drop_out(probabilities, backbone.attention_dropout(layer))
        x = backbone.finish(layer, x, merge_heads(probabilities @ value))
    return EnteringSoftRun(backbone.head(x, decision >= 0.5), x, decisions)
