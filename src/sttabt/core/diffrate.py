"""DiffRate: how many tokens a layer prunes and merges, as a number that gradients reach. (Chen et al., ICCV 2023)

B batch, n rows of the longest sample, K candidates: the shares 1/K, 2/K .. 1 of a sample's tokens behind the outputs. A
layer has a probability of each candidate, for pruning and for merging; what it keeps is the expected share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sttabt.core.counts import counts_on
from sttabt.core.plan import ranks

ROUNDING = 1e-6  # a share of tokens is no token more than it should be
STEEPEST = 1e4  # a start that keeps all is all but certain of it


def start_logits(share: float, candidates: int) -> Tensor:
    """(K,): the logits, linear in the candidates, whose expected share is `share`, above 1/K and at most 1."""
    shares, low, high = _shares(candidates, torch.device("cpu")).double(), -STEEPEST, STEEPEST
    for _ in range(100):  # bisection: the expectation rises with the slope
        slope = (low + high) / 2
        expected = float((slope * shares).softmax(0) @ shares)
        low, high = (slope, high) if expected < share else (low, slope)
    return (slope * (shares - shares.mean())).float()


def expected_shares(logits: Tensor) -> Tensor:
    """(...): the share of tokens that is kept, from logits (..., K)."""
    return logits.softmax(-1) @ _shares(logits.shape[-1], logits.device).to(logits.dtype)


def kept_counts(share: float, tokens: Sequence[int], counts: Sequence[int], outputs: int) -> list[int]:
    """Rows that are kept of samples of `counts` rows, which began with `tokens`: 1 behind the outputs at the least."""
    found = []
    for whole, rows in zip(tokens, counts, strict=True):
        kept = math.ceil(share * (whole - outputs) - ROUNDING)
        found.append(min(rows, outputs + max(kept, 1)))
    return found


def kept_probability(logits: Tensor, rank: Tensor, tokens: Tensor) -> Tensor:
    """(B, n): how probable it is that a row of that rank (B, n) behind the outputs is kept (section 3.3).

    The sum over the candidates that keep more rows than its rank; logits: (K,), tokens: (B,) behind the outputs.
    """
    tail = logits.softmax(-1).flip(-1).cumsum(-1).flip(-1)  # of this candidate or one that keeps more
    smallest = rank * len(logits) // tokens[:, None].clamp_min(1)  # the least one that keeps the rank
    return tail[smallest.clamp(0, len(logits) - 1)]


def discrete(kept: Tensor, probability: Tensor, decides: Tensor) -> Tensor:
    """The mask `kept` (B, n) as numbers whose gradient is that of `probability`, and 1 where nothing is decided."""
    proxy = kept.to(probability.dtype) - probability.detach() + probability
    return torch.where(decides, proxy, 1.0)


class Compressed(NamedTuple):
    """target: (B, n) int64, the row that each becomes part of, its own where it stays, -1 where it is pruned; rank: its
    place by importance, the output tokens first.
    """

    target: Tensor
    rank: Tensor


def compress(
    x: Tensor, importance: Tensor, alive: Tensor, pruned_to: Sequence[int], merged_to: Sequence[int], outputs: int = 1
) -> Compressed:
    """Keep the `pruned_to` most important rows of a sample, and merge the least important of them (section 3.2).

    x: (B, n, D); importance: (B, n); alive: (B, n) bool, the rows that are there; the first `outputs` stay and take
    none in. All but the `merged_to` most important of a sample merge into the one of those whose x is most alike, by
    cosine.
    """
    device, places = x.device, torch.arange(x.shape[1], device=x.device)
    rank = ranks(importance.masked_fill(places < outputs, torch.inf), alive)
    pruned, merged = (counts_on(device, each)[:, None] for each in (pruned_to, merged_to))
    target = places.expand_as(rank).masked_fill(rank >= pruned, -1)
    most = max(before - after for before, after in zip(pruned_to, merged_to, strict=True))
    if most:
        order = rank.argsort(dim=-1)
        offered, taking = merged + places[:most], outputs + places[: max(merged_to) - outputs].expand(len(x), -1)
        offers, takes = offered < pruned, taking < merged
        source, partner = (order.gather(1, each.clamp_max(x.shape[1] - 1)) for each in (offered, taking))
        whom = _rows(x, source) @ _rows(x, partner).transpose(1, 2)
        whom = partner.gather(1, whom.masked_fill(~takes[:, None], -torch.inf).argmax(-1))
        target = target.scatter(1, source, torch.where(offers, whom, target.gather(1, source)))
    return Compressed(target, rank)


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """The rows of x (B, n, D) at `places` (B, m), of length 1."""
    return F.normalize(x.gather(1, places[..., None].expand(-1, -1, x.shape[-1])), dim=-1)


def _shares(candidates: int, device: torch.device) -> Tensor:
    return torch.arange(1, candidates + 1, device=device) / candidates
