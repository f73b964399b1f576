"""Tokens really gone. Order them once by how many layers read them: then every layer's set is a prefix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.dispatch import dispatched
from sttabt.core.plan import TokenPlan
from sttabt.engine.attention import attend
from sttabt.engine.dense import padding_bias
from sttabt.engine.packed import Packing, attend_packed


@dispatched
def run_dropped(
    backbone: Backbone, inputs: Any, plan: TokenPlan, counts: Sequence[Sequence[int]] | None = None
) -> Tensor:
    """Logits (B, classes) under a hard plan; computes what the plan keeps and nothing else.

    Where all samples keep equally many tokens a layer, rows are (B, n, D) and a layer's set is a slice; otherwise rows
    are packed, (T, D), and attention alone may compute padding (engine.packed). A device is asked once, how many tokens
    each layer reads, and not at all where the host knows: counts[l][b] tokens of sample b live at boundary l.
    Where it is asked: raises ValueError for a plan that drops what the head reads, UserError for inputs that the model
    cannot read.
    """
    if counts is None:
        packings = _packings(backbone, inputs, plan)
    else:
        packings = [Packing.of_lengths(lengths, plan.lifetime.device) for lengths in counts]
    x = backbone.embed_tokens(inputs, *first_tokens(plan, packings[0]))
    if all(packing.uniform for packing in packings):
        kept = [packing.longest for packing in packings]
        return _run_sliced(backbone, x.unflatten(0, (plan.lifetime.shape[0], -1)), kept)
    return run_packed(backbone, x, packings)


def run_packed(backbone: Backbone, x: Tensor, packings: Sequence[Packing]) -> Tensor:
    """Logits (B, classes) from the embedded rows (T, D); packings: of each of the L+1 boundaries.

    Each sample's rows stand by how long they live, so that a layer writes the first of those that it reads.
    """
    for layer, (read, write) in enumerate(pairwise(packings)):
        same = read is write or (read.lengths is not None and read.lengths == write.lengths)
        written = None if same else partial(torch.index_select, dim=0, index=read.prefix(write))
        query, key, value = backbone.qkv(layer, x, written)
        attended = attend_packed(query, key, value, backbone.heads, read, write, backbone.attention_dropout(layer))
        x = backbone.finish(layer, x if written is None else written(x), attended)
    left = packings[-1]
    return backbone.head(left.unpack(x), None if left.uniform else left.present)


@dispatched
def run_fixed(backbone: Backbone, inputs: Any, order: Tensor, counts: Sequence[int]) -> Tensor:
    """Logits (B, classes) where every sample keeps the same number of tokens; order, counts: see core.counts.

    No shape and no branch depends on a tensor: torch.compile takes it whole. Padding among the tokens is masked. On a
    device, which is not asked, samples that the model cannot read have NaN for logits.
    """
    counts = [*counts[:-1], counts[-2]] if backbone.reads_survivors else counts
    sample = torch.arange(order.shape[0], device=order.device)[:, None].expand_as(order)
    x = backbone.embed_tokens(inputs, sample.flatten(), order.flatten())
    present = backbone.real(inputs).gather(1, order) if backbone.may_pad else None
    logits = _run_sliced(backbone, x.unflatten(0, order.shape), counts, present)
    unreadable = backbone.unreadable(inputs)
    return logits if unreadable is None else logits.masked_fill(unreadable[:, None], torch.nan)


def _packings(backbone: Backbone, inputs: Any, plan: TokenPlan) -> list[Packing]:
    """How many tokens live at each boundary, and all that must be known of a batch, in one copy to the host."""
    lacking, unreadable = plan.lacking(backbone.outputs, backbone.pools), backbone.unreadable(inputs)
    wrong = lacking if unreadable is None else unreadable | lacking
    counts = (plan.with_survivors() if backbone.reads_survivors else plan).counts
    *boundaries, refused = torch.cat([counts.t(), wrong[None]]).tolist()
    if any(refused):
        backbone.check_numbers(inputs)
        plan.check(backbone.outputs, backbone.pools)
    return [Packing.of(each, lengths) for each, lengths in zip(counts.unbind(1), boundaries, strict=True)]


def first_tokens(plan: TokenPlan, first: Packing) -> tuple[Tensor, Tensor]:
    """The sample and the token of each row that the first layer reads, (T,) each."""
    sample, place = first.places
    return sample, plan.order()[sample, place]


def _run_sliced(backbone: Backbone, x: Tensor, counts: Sequence[int], present: Tensor | None = None) -> Tensor:
    """present: (B, counts[0]) bool, False on padding; None where there is none."""
    bias = None if present is None else padding_bias(present)
    for layer in range(backbone.layers):
        kept = counts[layer + 1]
        written = None if kept == counts[layer] else partial(torch.narrow, dim=1, start=0, length=kept)
        query, key, value = backbone.qkv(layer, x, written)
        seen = None if bias is None else bias[..., : counts[layer]]
        attended = attend(query, key, value, backbone.heads, seen, backbone.attention_dropout(layer))
        x = backbone.finish(layer, x[:, :kept], attended)
    return backbone.head(x, None if present is None else present[:, : counts[-1]])
