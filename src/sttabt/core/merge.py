"""Which rows become one. B batch, n rows of the longest sample, d features.

Bipartite soft matching is ToMe's (Bolya et al., ICLR 2023, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from sttabt.core.counts import counts_on


@dataclass(frozen=True)
class Merging:
    """What becomes of the rows (B, n) of a layer; the samples have `left` of them afterwards.

    place: (B, n) int64, which of those that are left a row becomes part of; -1 where it leaves no trace and on padding.
    stays: (B, n) bool, the rows that go on to stand for their token: at most one for each that is left. A row without
    stands for no token alone. weight: (B, n), of a row in the mean of those that become one; None: as many tokens as it
    stands for.
    """

    place: Tensor
    stays: Tensor
    left: Sequence[int]
    weight: Tensor | None = None


def pairs_by_layer(merged: float, layers: int, decreasing: bool = False) -> list[int]:
    """Pairs that each of so many layers merges, `merged` on the average: of 2.5 they are 2, 3, 2, 3, ...

    decreasing: twice as many in the first layer, none in the last, on a line between. (ToMe section 4)
    """
    before = [*range(layers + 1)]  # of every layer, as if all layers before it merged one pair
    if decreasing and layers > 1:
        before = [2 * layer - layer * (layer - 1) / (layers - 1) for layer in before]
    total = [math.floor(merged * share) for share in before]
    return [after - before for before, after in pairwise(total)]


def pairs_to_merge(wanted: Sequence[int], counts: Sequence[int], outputs: int = 1) -> list[int]:
    """Of samples of `counts` rows, the pairs that merge: as many as wanted, at most half of those that take part.

    The first `outputs` rows take no part.
    """
    return [max(min(pairs, (rows - outputs) // 2), 0) for pairs, rows in zip(wanted, counts, strict=True)]


def match_tokens(features: Tensor, counts: Sequence[int], merged: Sequence[int], outputs: int = 1) -> Merging:
    """Merge the most alike pairs of (B, n, d) features, by cosine; the first `outputs` rows take no part.

    counts: rows of each sample, the first of its n; merged: its pairs, as `pairs_to_merge` says. Rows alternate between
    two halves; each of the first half is offered its most alike of the second. What is left is the outputs, the second
    half, and those of the first half that did not merge, in this order.
    """
    present = first_places(counts, features.shape[1], features.device)
    offered, taking = present[:, outputs::2], present[:, outputs + 1 :: 2]
    going, partner = most_alike(features[:, outputs::2], features[:, outputs + 1 :: 2], offered, taking, merged)
    places = torch.arange(features.shape[1], device=features.device)
    place = places.repeat(len(features), 1)
    place[:, outputs + 1 :: 2] = outputs + places[: taking.shape[1]]
    behind = outputs + taking.sum(1, keepdim=True) + (offered & ~going).cumsum(1) - 1
    place[:, outputs::2] = torch.where(going, outputs + partner, behind)
    stays = present.clone()
    stays[:, outputs::2] &= ~going
    left = [rows - pairs for rows, pairs in zip(counts, merged, strict=True)]
    merges = counts_on(place.device, merged)[:, None] > 0  # other samples of the batch keep their order
    return Merging(torch.where(merges, place, places).masked_fill(~present, -1), stays, left)


def merge_into(target: Tensor, present: Tensor, left: Sequence[int], weight: Tensor | None = None) -> Merging:
    """Each row becomes part of the row `target` (B, n): its own where it stays, -1 where it leaves no trace.

    present: (B, n) bool; left: how many of each sample stay, which keep their order; weight: as Merging's.
    """
    stays = present & (target == torch.arange(target.shape[1], device=target.device))
    place = (stays.cumsum(1) - 1).gather(1, target.clamp_min(0))
    return Merging(place.masked_fill(~present | (target < 0), -1), stays, left, weight)


def most_alike(
    offered: Tensor, taking: Tensor, offers: Tensor, takes: Tensor, merged: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Which rows of `offered` (B, a, d) merge, (B, a) bool, and with which row of `taking` (B, b, d) each, (B, a).

    offers, takes: (B, a), (B, b) bool, the rows that are there; the `merged` of a sample whose cosine is largest merge.
    """
    alike = F.normalize(offered, dim=-1) @ F.normalize(taking, dim=-1).transpose(1, 2)
    best, partner = alike.masked_fill(~takes[:, None], -torch.inf).max(-1)
    order = best.masked_fill(~offers, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    chosen = first_places(merged, order.shape[1], order.device)
    return torch.zeros_like(offers).scatter(1, order, chosen), partner


def first_places(counts: Sequence[int], places: int, device: torch.device) -> Tensor:
    """(B, places) bool: the first places of each sample, as many as its count."""
    return torch.arange(places, device=device) < counts_on(device, counts)[:, None]
