"""Tokens merged instead of dropped: fewer rows from layer to layer, each the mean of those that it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.dispatch import dispatched
from sttabt.core.merge import Merging, match_tokens, pairs_to_merge
from sttabt.core.plan import MergeRecord
from sttabt.core.remembered import remembered
from sttabt.engine.attention import attend, attend_weighted, split_heads
from sttabt.engine.dense import embed_packed
from sttabt.engine.packed import Packing
from sttabt.engine.run import Run

GONE = -1e4  # added to a score, leaves a probability of 0 in every precision, and gradients that are finite


class MergingRows:
    """The rows of a layer as a rule sees them, samples padded to the longest: B samples, n rows.

    counts: rows of each sample; present: (B, n) bool, which are there; x, query, key: (B, n, D), heads not split, x
    being what the feed-forward would read; log_size: (B, n), logarithm of how many tokens a row stands for, None where
    attention weighs all alike. Made of what is behind each other, (T, D) and (T,).
    """

    def __init__(
        self, backbone: Backbone, x: Tensor, query: Tensor, key: Tensor, packing: Packing, log_size: Tensor | None
    ) -> None:
        self._x, self._query, self._key, self._log_size, self._packing = x, query, key, log_size, packing
        self.counts, self.present = list(packing.counted), packing.present
        self.heads, self.classifiers = backbone.heads, backbone.architecture.classifiers

    @remembered
    def x(self) -> Tensor:
        return self._packing.unpack(self._x)

    @remembered
    def query(self) -> Tensor:
        return self._packing.unpack(self._query)

    @remembered
    def key(self) -> Tensor:
        return self._packing.unpack(self._key)

    @remembered
    def log_size(self) -> Tensor | None:
        return None if self._log_size is None else self._packing.unpack(self._log_size[:, None])[..., 0]

    @property
    def mean_key(self) -> Tensor:
        """(B, n, d): what ToMe and its successors compare, the mean over heads of the keys."""
        return split_heads(self.key, self.heads).mean(1)

    @property
    def of_class(self) -> Tensor:
        """(B, n): the attention that each row receives from the class token, whose row alone is computed.

        Mean over heads, and over the tokens that have a classifier, where these are several (distilled DeiT).
        """
        log_weight = torch.zeros_like(self.present, dtype=self.key.dtype) if self.log_size is None else self.log_size
        log_weight = log_weight.masked_fill(~self.present, -torch.inf)
        return class_attention(self.query[:, : self.classifiers], self.key, log_weight, self.heads)


def class_attention(query: Tensor, key: Tensor, log_weight: Tensor, heads: int) -> Tensor:
    """(B, n): the attention that keys (B, n, D) receive from a few queries (B, c, D), mean over those and the heads.

    log_weight: (B, n), added to the scores of a key.
    """
    queries, keys = split_heads(query, heads), split_heads(key, heads)
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    return (scores + log_weight[:, None, None]).softmax(-1).mean((1, 2))


# rule(layer, rows) -> what becomes of the rows, None where all go on as they are
MergingRule = Callable[[int, MergingRows], Merging | None]


def run_merging(backbone: Backbone, inputs: Any, rule: MergingRule, weighted: bool = True) -> Run:
    """Logits when every layer but the last merges rows, as the rule says, between its attention and its feed-forward.

    weighted: attention counts a row as often as it stands for a token. The last layer computes the output tokens alone.
    The samples' rows are packed behind each other, (T, D), so that padding is computed in attention alone. The record
    says which tokens still stand for themselves or for others.
    """
    real = backbone.real(inputs)
    x, packing = embed_packed(backbone, inputs)
    nobody = real.shape[1]  # the token of a row that stands for none alone
    token = packing.places[1]
    size, log_size = torch.ones_like(x[:, :1]), None  # before anything merged nothing is weighed
    boundaries, rows = [real], [packing.each]
    for layer in range(backbone.layers - 1):
        query, key, value = backbone.qkv(layer, x)
        attended = attend_rows(backbone, layer, query, key, value, packing, packing, log_size)
        x = backbone.project(layer, x, attended)
        merging = rule(layer, MergingRows(backbone, x, query, key, packing, log_size))
        if merging is not None:
            left = Packing.of_lengths(merging.left, x.device)
            x, size, token = _merge(merging, packing, left, x, size, token, nobody)
            packing, log_size = left, size[:, 0].log() if weighted else None
        x = backbone.feed_forward(layer, x)
        boundaries.append(boundaries[-1] if merging is None else _alive(token, packing, real))
        rows.append(packing.each)
    layer = backbone.layers - 1
    first = [min(backbone.outputs, own) for own in packing.counted]
    left = packing if backbone.reads_survivors else Packing.of_lengths(first, x.device)
    written = partial(torch.index_select, dim=0, index=packing.prefix(left))
    attended = attend_rows(backbone, layer, *backbone.qkv(layer, x, written), packing, left, log_size)
    x = backbone.finish(layer, written(x), attended)
    boundaries.append(_alive(written(token), left, real))
    return Run(backbone.head(left.unpack(x), left.present), _record(boundaries, [*rows, left.each]), real)


@dispatched
def run_matched(backbone: Backbone, inputs: Any, pairs: Sequence[Sequence[int]]) -> Run:
    """`run_merging` by `matching_rule` alone; an engine may register a faster way."""
    return run_merging(backbone, inputs, matching_rule(pairs, backbone.outputs))


def matching_rule(pairs: Sequence[Sequence[int]], outputs: int) -> MergingRule:
    """Every layer merges the pairs whose keys are most alike: pairs[l][b] of sample b, at most half of its rows."""

    def rule(layer: int, rows: MergingRows) -> Merging | None:
        merged = pairs_to_merge(pairs[layer], rows.counts, outputs)
        return match_tokens(rows.mean_key, rows.counts, merged, outputs) if any(merged) else None

    return rule


@dispatched
def attend_rows(
    backbone: Backbone,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    read: Packing,
    write: Packing,
    log_size: Tensor | None,
) -> Tensor:
    """Attention within each sample: (T', D) queries, packed as `write`, over (T, D) keys and values, as `read`.

    log_size: (T,), a key's probability is multiplied by its exponential. Samples are padded to the longest.
    """
    padded = write.unpack(query), read.unpack(key), read.unpack(value)
    ragged, dropout = not read.uniform, backbone.attention_dropout(layer)
    if log_size is None:
        found = attend(*padded, backbone.heads, read.present[:, None, None, :] if ragged else None, dropout)
    else:
        weight = read.unpack(log_size[:, None])[..., 0]
        weight = weight.masked_fill(~read.present, GONE) if ragged else weight
        found = attend_weighted(*padded, backbone.heads, weight, dropout)
    return write.pack(found)


def _merge(
    merging: Merging, read: Packing, left: Packing, x: Tensor, size: Tensor, token: Tensor, nobody: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that are left of x (T, D); how many tokens each stands for, (T', 1); and which one alone, (T',)."""
    place, stays = read.pack(merging.place), read.pack(merging.stays)
    # The row behind all is for what leaves no trace.
    target = torch.where(place < 0, left.rows, read.each_row(left.starts[:-1]) + place)

    def summed(rows: Tensor) -> Tensor:
        return rows.new_zeros(left.rows + 1, rows.shape[1]).index_add(0, target, rows)[: left.rows]

    sizes = summed(size)
    weight = size if merging.weight is None else read.pack(merging.weight)[:, None].to(x.dtype)
    whole = sizes if merging.weight is None else summed(weight)
    names = token.new_full((left.rows + 1,), nobody).scatter(0, torch.where(stays, target, left.rows), token)
    return summed(x * weight) / whole, sizes, names[: left.rows]


def _alive(token: Tensor, packing: Packing, real: Tensor) -> Tensor:
    """(B, N) bool, the tokens that rows stand for: token (T,), N where a row stands for none alone."""
    batch, places = real.shape[0], real.shape[1] + 1
    start = packing.each_row(torch.arange(0, batch * places, places, device=real.device))
    alive = real.new_zeros(batch * places).scatter(0, start + token, torch.ones_like(token, dtype=torch.bool))
    return alive.view(batch, places)[:, :-1]


def _record(boundaries: Sequence[Tensor], rows: Sequence[Tensor]) -> MergeRecord:
    alive = torch.stack(list(boundaries), 1)
    return MergeRecord(alive, torch.stack(list(rows), 1) - alive.sum(-1))
