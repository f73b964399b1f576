"""Tokens merged instead of dropped: fewer rows from layer to layer, each the mean of those that it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.counts import counts_on
from sttabt.core.dispatch import dispatched
from sttabt.core.merge import Merging, first_places, match_tokens, pairs_to_merge
from sttabt.core.plan import MergeRecord
from sttabt.engine.attention import attend, attend_weighted, split_heads
from sttabt.engine.dense import pack_real
from sttabt.engine.packed import present_places, unpack
from sttabt.engine.run import Run

GONE = -1e4  # added to a score, leaves a probability of 0 in every precision, and gradients that are finite


class MergingRows:
    """The rows of a layer as a rule sees them, samples padded to the longest: B samples, n rows.

    counts: rows of each sample; present: (B, n) bool, which are there; x, query, key: (B, n, D), heads not split, x
    being what the feed-forward would read; log_size: (B, n), logarithm of how many tokens a row stands for, None where
    attention weighs all alike. Made of what is behind each other, (T, D) and (T,).
    """

    def __init__(
        self, backbone: Backbone, x: Tensor, query: Tensor, key: Tensor, counts: list[int], log_size: Tensor | None
    ) -> None:
        self._x, self._query, self._key, self._log_size = x, query, key, log_size
        self.counts, self.heads, self.classifiers = counts, backbone.heads, backbone.architecture.classifiers
        self.present = present_places(counts, key.device)

    @cached_property
    def x(self) -> Tensor:
        return unpack(self._x, self.present)

    @cached_property
    def query(self) -> Tensor:
        return unpack(self._query, self.present)

    @cached_property
    def key(self) -> Tensor:
        return unpack(self._key, self.present)

    @cached_property
    def log_size(self) -> Tensor | None:
        return None if self._log_size is None else unpack(self._log_size[:, None], self.present)[..., 0]

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
    packing = pack_real(backbone, real)
    if packing is None:
        counts = [real.shape[1]] * len(real)
        x = backbone.embed(inputs).flatten(0, 1)
    else:
        assert packing.lengths is not None, "real tokens are counted"
        counts = [*packing.lengths]
        x = backbone.embed_tokens(inputs, *packing.places)
    nobody = real.shape[1]  # the token of a row that stands for none alone
    token = _packed(torch.arange(nobody, device=real.device).expand_as(real), counts)
    size, log_size = torch.ones_like(x[:, :1]), None  # before anything merged nothing is weighed
    boundaries, rows = [real], [counts]
    for layer in range(backbone.layers - 1):
        query, key, value = backbone.qkv(layer, x)
        attended = attend_rows(backbone, layer, query, key, value, counts, counts, log_size)
        x = backbone.project(layer, x, attended)
        merging = rule(layer, MergingRows(backbone, x, query, key, counts, log_size))
        if merging is not None:
            x, size, token = _merge(merging, counts, x, size, token, nobody)
            counts, log_size = list(merging.left), size[:, 0].log() if weighted else None
        x = backbone.feed_forward(layer, x)
        boundaries.append(boundaries[-1] if merging is None else _alive(token, counts, real))
        rows.append(counts)
    layer = backbone.layers - 1
    left = counts if backbone.reads_survivors else [min(backbone.outputs, own) for own in counts]
    written = partial(_first_rows, counts=counts, left=left)
    attended = attend_rows(backbone, layer, *backbone.qkv(layer, x, written), counts, left, log_size)
    x = backbone.finish(layer, written(x), attended)
    boundaries.append(_alive(written(token[:, None])[:, 0], left, real))
    present = present_places(left, real.device)
    return Run(backbone.head(unpack(x, present), present), _record(boundaries, [*rows, left]), real)


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
    counts: list[int],
    written: list[int],
    log_size: Tensor | None,
) -> Tensor:
    """Attention within each sample: (sum of `written`, D) queries over (sum of `counts`, D) keys and values.

    log_size: (sum of `counts`,), a key's probability is multiplied by its exponential. Samples are padded to the
    longest.
    """
    reads, writes = (present_places(own, key.device) for own in (counts, written))
    padded = unpack(query, writes), unpack(key, reads), unpack(value, reads)
    ragged, dropout = len(key) < reads.numel(), backbone.attention_dropout(layer)
    if log_size is None:
        found = attend(*padded, backbone.heads, reads[:, None, None, :] if ragged else None, dropout)
    else:
        weight = unpack(log_size[:, None], reads)[..., 0]
        weight = weight.masked_fill(~reads, GONE) if ragged else weight
        found = attend_weighted(*padded, backbone.heads, weight, dropout)
    return _packed(found, written)


def _merge(
    merging: Merging, counts: Sequence[int], x: Tensor, size: Tensor, token: Tensor, nobody: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that are left of x (T, D); how many tokens each stands for, (T, 1); and which one alone, (T,)."""
    place, stays = _packed(merging.place, counts), _packed(merging.stays, counts)
    left = counts_on(x.device, merging.left)
    start = _each_row(left.cumsum(0) - left, counts)
    total = sum(merging.left)  # the row behind all is for what leaves no trace
    target = torch.where(place < 0, total, start + place)

    def summed(rows: Tensor) -> Tensor:
        return rows.new_zeros(total + 1, rows.shape[1]).index_add(0, target, rows)[:total]

    sizes = summed(size)
    weight = size if merging.weight is None else _packed(merging.weight, counts)[:, None].to(x.dtype)
    whole = sizes if merging.weight is None else summed(weight)
    names = token.new_full((total + 1,), nobody).scatter(0, torch.where(stays, target, total), token)
    return summed(x * weight) / whole, sizes, names[:total]


def _alive(token: Tensor, counts: Sequence[int], real: Tensor) -> Tensor:
    """(B, N) bool, the tokens that rows stand for: token (T,), N where a row stands for none alone."""
    batch, places = real.shape[0], real.shape[1] + 1
    start = _each_row(torch.arange(0, batch * places, places, device=real.device), counts)
    alive = real.new_zeros(batch * places).scatter(0, start + token, torch.ones_like(token, dtype=torch.bool))
    return alive.view(batch, places)[:, :-1]


def _record(boundaries: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> MergeRecord:
    alive = torch.stack(list(boundaries), 1)
    counts = torch.stack([counts_on(alive.device, boundary) for boundary in rows], 1)
    return MergeRecord(alive, counts - alive.sum(-1))


def _each_row(values: Tensor, counts: Sequence[int]) -> Tensor:
    """(T,): the value of a sample, (B,), for each of its rows."""
    if len(set(counts)) == 1:
        return values.repeat_interleave(counts[0])
    return values.repeat_interleave(counts_on(values.device, counts), output_size=sum(counts))


def _first_rows(rows: Tensor, counts: Sequence[int], left: Sequence[int]) -> Tensor:
    """Of rows (T, D), `counts` of each sample, the first `left` of each."""
    if list(counts) == list(left):
        return rows
    if len({*zip(counts, left, strict=True)}) == 1:
        return rows.unflatten(0, (len(counts), -1))[:, : left[0]].flatten(0, 1)
    starts = accumulate(counts[:-1], initial=0)
    kept = torch.cat([torch.arange(start, start + own) for start, own in zip(starts, left, strict=True)])
    return rows[kept.to(rows.device)]


def _packed(padded: Tensor, counts: Sequence[int]) -> Tensor:
    """The first `counts` rows of each sample of (B, n, ...), behind each other."""
    if min(counts) == padded.shape[1]:
        return padded.flatten(0, 1)
    return padded[first_places(counts, padded.shape[1], padded.device)]
