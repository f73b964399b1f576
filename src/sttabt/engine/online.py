"""Methods that decide while the model runs: a rule sees a layer's attention and says who goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sttabt.backbones.base import Backbone
from sttabt.core.dispatch import dispatched
from sttabt.core.forward import received_attention
from sttabt.core.plan import TokenPlan, output_tokens
from sttabt.core.received import Selection
from sttabt.core.remembered import remembered
from sttabt.engine.attention import attend, merge_heads, split_heads
from sttabt.engine.dense import embed_packed
from sttabt.engine.packed import Packing
from sttabt.engine.run import Run


class LayerAttention:
    """A layer's attention as a rule sees it, computed when it is asked for.

    query, key, value: (B, n, D), heads not split; present: (B, n) bool, the keys that are there.
    """

    def __init__(self, backbone: Backbone, query: Tensor, key: Tensor, value: Tensor, present: Tensor) -> None:
        self.query, self.key, self.value, self.present = query, key, value, present
        self.heads, self.classifiers = backbone.heads, backbone.architecture.classifiers

    @remembered
    def probabilities(self) -> Tensor:
        """(B, H, n, n); rows are queries and sum to 1 over the keys that are there."""
        return self._probabilities(self.query)

    @remembered
    def of_class(self) -> Tensor:
        """(B, H, n): the attention that each token receives from the class token, whose row alone is computed.

        Mean over the tokens that have a classifier, where these are several (distilled DeiT).
        """
        return self._probabilities(self.query[:, : self.classifiers]).mean(2)

    def received(self, rows: Tensor) -> Tensor:
        """The attention (B, n) that each token receives: mean over heads and over the `rows` (B, n) bool."""
        return received_attention(self.probabilities, rows)

    def attended(self, place: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
        """What the rows at `place` (B, m) attend to, (B, m, D); bias: of the keys that are there, None where all are.

        Where the rule has read all probabilities they are used; otherwise attention is fused, of these rows alone.
        """
        if "probabilities" in vars(self):
            picked = place[:, None, :, None].expand(-1, self.heads, -1, self.present.shape[1])
            probabilities = drop_out(self.probabilities.gather(2, picked), dropout)
            return merge_heads(probabilities @ split_heads(self.value, self.heads))
        query = self.query.gather(1, place[..., None].expand(-1, -1, self.query.shape[-1]))
        return attend(query, self.key, self.value, self.heads, bias, dropout)

    def _probabilities(self, rows: Tensor) -> Tensor:
        """Of the queries `rows` (B, r, D): (B, H, r, n)."""
        query, key = split_heads(rows, self.heads), split_heads(self.key, self.heads)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return scores.masked_fill(~self.present[:, None, None, :], -math.inf).softmax(-1)


# rule(layer, attention, alive (B, n) bool) -> (B, n) bool, the alive tokens that the layer writes
Rule = Callable[[int, LayerAttention, Tensor], Tensor]
# As a rule, of every layer and of real tokens; its mask (B, N) in [0, 1] multiplies what the layer writes.
SoftRule = Callable[[int, LayerAttention, Tensor], Tensor]


@dataclass(frozen=True)
class OnlineSoftRun:
    """logits (B, classes); masks: (B, L, N), what each layer's output was multiplied by."""

    logits: Tensor
    masks: Tensor


def run_online_soft(
    backbone: Backbone, inputs: Any, rule: SoftRule, before_feed_forward: bool = False
) -> OnlineSoftRun:
    """Computes every token and multiplies each layer's output, residual included, by its mask (METHOD section 4).

    before_feed_forward: multiplies what the feed-forward reads instead. Attention goes on to see tokens whose mask is
    small: their output is nearly 0, their keys are not. Gradients reach the masks and, through the probabilities, the
    weights.
    """
    real = backbone.real(inputs)
    x = backbone.embed(inputs)
    masks: list[Tensor] = []
    for layer in range(backbone.layers):
        query, key, value = backbone.qkv(layer, x)
        attention, dropout = LayerAttention(backbone, query, key, value, real), backbone.attention_dropout(layer)
        attended = merge_heads(drop_out(attention.probabilities, dropout) @ split_heads(value, backbone.heads))
        mask = rule(layer, attention, real)
        if layer == backbone.layers - 1 and backbone.reads_survivors:
            mask = masks[-1] if masks else real.to(x.dtype)  # it writes what it reads
        factor = mask[..., None].to(x.dtype)
        x = backbone.project(layer, x, attended)
        x = (
            backbone.feed_forward(layer, x * factor)
            if before_feed_forward
            else backbone.feed_forward(layer, x) * factor
        )
        masks.append(mask)
    left = torch.stack([real, *(mask >= 0.5 for mask in masks[:-1])]).all(0)  # what the last layer would read
    return OnlineSoftRun(backbone.head(x, left), torch.stack(masks, 1))


def run_online_masked(backbone: Backbone, inputs: Any, rule: Rule) -> Run:
    """Computes every token and masks those that the rule drops; the last layer writes the output tokens alone.

    Raises ValueError for a rule that brings a token back.
    """
    logits, alive = mask_online(backbone, inputs, rule)
    return Run(logits, TokenPlan.of_sets(alive), backbone.real(inputs))


def mask_online(backbone: Backbone, inputs: Any, rule: Rule) -> tuple[Tensor, Tensor]:
    """As `run_online_masked`, of any rule: logits (B, classes), and the tokens of each boundary, (B, L+1, N) bool."""
    alive = backbone.real(inputs)
    x = backbone.embed(inputs)
    boundaries = [alive]
    for layer in range(backbone.layers):
        query, key, value = backbone.qkv(layer, x)
        attention, dropout = LayerAttention(backbone, query, key, value, alive), backbone.attention_dropout(layer)
        attended = merge_heads(drop_out(attention.probabilities, dropout) @ split_heads(value, backbone.heads))
        last = layer == backbone.layers - 1
        alive = what_the_last_writes(alive, backbone) if last else rule(layer, attention, alive)
        x = backbone.finish(layer, x, attended, gate=alive[..., None].to(x.dtype))
        boundaries.append(alive)
    return backbone.head(x, alive), torch.stack(boundaries, 1)


# goes_on(layer, tokens) -> how many go on of samples of which the layer reads so many, None where it depends on them
GoesOn = Callable[[int, Sequence[int]], Sequence[int] | None]


@dispatched
def run_online_dropped(
    backbone: Backbone, inputs: Any, rule: Rule, goes_on: GoesOn = lambda layer, tokens: None
) -> Run:
    """Computes the kept tokens only; padding is not even embedded.

    goes_on: what is known of the rule beforehand. A device is asked for the rest, once a layer.

    The samples' rows are packed behind each other, (T, D): what is linear runs over kept rows alone. Attention runs on
    samples padded to the longest, and not fused in layers whose probabilities the rule reads.
    """
    real = backbone.real(inputs)
    heads, (x, packing) = backbone.heads, embed_packed(backbone, inputs)
    sample, token = packing.places  # of each row: its sample, and its token
    lifetime = real.long()
    for layer in range(backbone.layers - 1):
        present = packing.present
        query, key, value = map(packing.unpack, backbone.qkv(layer, x))
        attention = LayerAttention(backbone, query, key, value, present)
        keep = rule(layer, attention, present)
        written = pack_kept(keep, goes_on(layer, packing.counted))
        place = places_of(keep, written)
        attended = attention.attended(place, _bias(packing), backbone.attention_dropout(layer))
        kept = packing.rows_at(place, written)
        x = backbone.finish(layer, x[kept], written.pack(attended))
        sample, token, packing = sample[kept], token[kept], written
        lifetime = lifetime.index_put((sample, token), lifetime.new_full((), layer + 2))
    layer = backbone.layers - 1
    lifetime = lifetime + what_the_last_writes(lifetime > layer, backbone)
    left = packing if backbone.reads_survivors else Packing.alike(len(real), backbone.outputs, real.device)
    last = packing.prefix(left)  # the output tokens stand in front
    query, key, value = backbone.qkv(layer, x, lambda rows: rows[last])
    rows = left.unpack(query), packing.unpack(key), packing.unpack(value)
    attended = left.pack(attend(*rows, heads, _bias(packing), backbone.attention_dropout(layer)))
    x = left.unpack(backbone.finish(layer, x[last], attended))
    return Run(backbone.head(x, left.present), TokenPlan(lifetime, backbone.layers), real)


@dispatched
def run_selected(backbone: Backbone, inputs: Any, selection: Selection) -> Run:
    """`run_online_dropped` by the attention received alone; an engine may register a faster way.

    Where the selection says how many tokens go on, a device is not asked.
    """
    goes_on = partial(_selected, None if selection.counts is None else selection.counts.tolist(), backbone.outputs)
    return run_online_dropped(backbone, inputs, rule_of(selection, backbone.outputs), goes_on)


def pack_kept(keep: Tensor, lengths: Sequence[int] | None) -> Packing:
    """How the rows that are kept, (B, n) bool, are packed; lengths: how many they are, None: a device is asked."""
    each = keep.sum(1)
    return Packing.of(each, each.tolist() if lengths is None else lengths)


def places_of(keep: Tensor, written: Packing) -> Tensor:
    """The places (B, longest) of the rows that are kept, (B, n) bool, in their order; behind them those of others."""
    return keep.int().argsort(dim=1, descending=True, stable=True)[:, : written.longest]


def _selected(counts: list[list[int]] | None, outputs: int, layer: int, tokens: Sequence[int]) -> Sequence[int] | None:
    if counts is None:
        return None
    return [min(max(count, outputs), there) for count, there in zip(counts[layer], tokens, strict=True)]


def _bias(read: Packing) -> Tensor | None:
    """Of the keys that are read, where samples are padded to the longest."""
    return None if read.uniform else read.present[:, None, None, :]


def rule_of(selection: Selection, outputs: int) -> Rule:
    """The rule; the first `outputs` tokens always go on."""

    def select(layer: int, attention: LayerAttention, alive: Tensor) -> Tensor:
        return selection.select(layer, attention.received(alive), alive, outputs)

    return select


def what_the_last_writes(alive: Tensor, backbone: Backbone) -> Tensor:
    """What the last layer writes of the tokens (B, N) that it reads: what the head reads."""
    return alive if backbone.reads_survivors else output_tokens(alive, backbone.outputs)


def drop_out(probabilities: Tensor, share: float) -> Tensor:
    """Probabilities of which a share is dropped at random; unchanged where the share is 0."""
    return F.dropout(probabilities, share) if share else probabilities


def first_places(counts: Tensor) -> Tensor:
    """(B, n): the first places of each sample, as many as its count (B,), n being the largest."""
    return torch.arange(int(counts.max()), device=counts.device) < counts[:, None]
