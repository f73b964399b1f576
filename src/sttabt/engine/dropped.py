"""Tokens really gone. Order them once by how many layers read them: then every layer's set is a prefix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.plan import TokenPlan
from sttabt.engine.attention import attend

MACS_A_CALL = 500_000  # what fits into the time that one more call of attention takes on a CPU


def run_dropped(backbone: Backbone, inputs: Any, plan: TokenPlan) -> Tensor:
    """Logits (B, classes) under a hard plan; computes what the plan keeps and nothing else.

    When all samples keep equally many tokens a layer, rows are (B, n, D) and a layer's set is a slice. Otherwise
    the samples' rows are packed behind each other, (T, D): linear layers run once over all of them, attention a
    sample at a time, or once on rows padded to the longest where that is faster.
    Raises ValueError for a soft plan or one that is not nested.
    """
    if not plan.is_hard:
        raise ValueError("only a hard plan can drop tokens: call harden() first")
    plan.check(backbone.outputs)
    layout = _layout(plan)
    x = backbone.embed_tokens(inputs, layout.sample, layout.token)
    if layout.uniform:
        return _run_sliced(backbone, x.unflatten(0, (plan.alive.shape[0], -1)), layout.counts[0])
    return _run_packed(backbone, x, layout.counts)


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
    order = plan.alive.sum(1).argsort(dim=-1, descending=True, stable=True)
    counts = plan.alive.sum(-1)
    first = torch.arange(order.shape[1], device=order.device) < counts[:, :1]
    sample, place = first.nonzero(as_tuple=True)
    return _Layout(counts.tolist(), sample, order[sample, place])


def _run_sliced(backbone: Backbone, x: Tensor, counts: list[int]) -> Tensor:
    for layer in range(backbone.layers):
        kept = counts[layer + 1]
        written = None if kept == counts[layer] else partial(torch.narrow, dim=1, start=0, length=kept)
        query, key, value = backbone.qkv(layer, x, written)
        x = backbone.finish(layer, x[:, :kept], attend(query, key, value, backbone.heads))
    return backbone.head(x)


def _run_packed(backbone: Backbone, x: Tensor, counts: list[list[int]]) -> Tensor:
    for layer in range(backbone.layers):
        read = [sample[layer] for sample in counts]
        write = [sample[layer + 1] for sample in counts]
        written = None if read == write else partial(torch.index_select, dim=0, index=_prefixes(read, write, x.device))
        query, key, value = backbone.qkv(layer, x, written)
        # Padding is computed too: it pays while that takes less time than the calls that it saves.
        pays = _wasted_macs(read, write, x.shape[-1]) <= MACS_A_CALL * (len(counts) - 1)
        attend_layer = _attend_padded if pays else _attend_segments
        attended = attend_layer(query, key, value, backbone.heads, read, write)
        x = backbone.finish(layer, x if written is None else written(x), attended)
    return backbone.head(x.unflatten(0, (len(counts), -1)))


def padding_macs(counts: list[list[int]], width: int) -> int:
    """Multiply-adds that a batch spends on padding, all layers; counts[b][l]: tokens of sample b at boundary l."""
    boundaries = list(zip(*counts, strict=True))
    wasted = [_wasted_macs(list(read), list(write), width) for read, write in pairwise(boundaries)]
    return sum(macs for macs in wasted if macs <= MACS_A_CALL * (len(counts) - 1))


def _wasted_macs(read: list[int], write: list[int], width: int) -> int:
    """What attention would spend on padding if it ran once on samples padded to the longest."""
    padded = len(read) * max(read) * max(write)
    return 2 * width * (padded - sum(r * w for r, w in zip(read, write, strict=True)))


def _attend_segments(
    query: Tensor, key: Tensor, value: Tensor, heads: int, read: list[int], write: list[int]
) -> Tensor:
    segments = zip(query.split(write), key.split(read), value.split(read), strict=True)
    return torch.cat([attend(q[None], k[None], v[None], heads)[0] for q, k, v in segments])


def _attend_padded(query: Tensor, key: Tensor, value: Tensor, heads: int, read: list[int], write: list[int]) -> Tensor:
    reads, writes = _present(read, query.device), _present(write, query.device)
    attended = attend(
        pad_rows(query, writes), pad_rows(key, reads), pad_rows(value, reads), heads, reads[:, None, None, :]
    )
    return attended[writes]


def _present(counts: list[int], device: torch.device) -> Tensor:
    """(B, n): which places hold a row when samples are padded to the longest."""
    return torch.arange(max(counts), device=device) < torch.tensor(counts, device=device)[:, None]


def pad_rows(rows: Tensor, present: Tensor) -> Tensor:
    """Packed rows (T, D) as (B, n, D): zeros where `present` (B, n) says that no row stands."""
    if rows.shape[0] == present.numel():
        return rows.unflatten(0, present.shape)
    return rows.new_zeros(*present.shape, rows.shape[-1]).masked_scatter(present[..., None], rows)


def _prefixes(read: list[int], write: list[int], device: torch.device) -> Tensor:
    """Rows of each sample's first `write` tokens in a packing of `read` tokens a sample."""
    starts = torch.tensor(read).cumsum(0) - torch.tensor(read)
    return torch.cat(
        [torch.arange(start, start + kept) for start, kept in zip(starts.tolist(), write, strict=True)]
    ).to(device)
