"""Attention back-tracking, top-k: which tokens does the output need? (STTABT section 3.2; METHOD section 2)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sttabt.core.counts import check_counts, extend
from sttabt.core.dispatch import dispatched
from sttabt.core.plan import Planned, Scored, TokenPlan, largest, output_tokens, tokens_to_keep
from sttabt.core.trace import AttentionTrace

DYNAMIC_SHARE = 0.00625  # a token counts when its importance exceeds this share of the largest
DYNAMIC_RANGE = (0.2, 0.95)  # share of the real tokens that a dynamic count is clipped to

Keep = float | Sequence[float] | Sequence[int] | None


@dataclass(frozen=True)
class Backtracking:
    """plan: the tokens by layer; impacts: (B, L, N), how much of the output each layer's tokens carry, sums to 1;
    scored: rows of attention a sample that were computed for it, by layer.
    """

    plan: TokenPlan
    impacts: Tensor
    scored: Scored


@torch.no_grad()
def backtrack(trace: AttentionTrace, keep: Keep, propagation: float = 0.1, outputs: int = 1) -> Backtracking:
    """Track importance from the output tokens back to the inputs, keeping `keep` tokens a layer.

    keep: a ratio in (0, 1] of each sample's real tokens, for all layers or one a layer; int entries are token
    counts; None chooses the count from the importances. Every set also holds the set of the layer above.
    propagation: p, how much a row's own impact weighs against a plain mean. outputs: leading tokens that are never
    dropped. Under a head that pools (`trace.pools`) they count among the tokens of a layer, one other at least is
    kept, and the last layer's set need not hold all that a dense model's head reads: it is what the head reads then.
    Raises ValueError on a wrong number of layers or a ratio out of range.
    """
    real, layers = trace.real, trace.layers
    keeps = _by_layer(keep, layers)
    first, rows = output_tokens(real, outputs), trace.read_by_head(outputs)
    alive = first
    impact = rows.to(trace.queries[0].dtype) / rows.sum(-1, keepdim=True)
    boundaries, impacts, scored = [alive], [], []
    for layer in reversed(range(layers)):
        weight = (propagation * impact + (1 - propagation)) * rows / rows.sum(-1, keepdim=True)
        importance = trace.received(layer, weight)
        count = _count(keeps[layer], importance, real)
        ranked = importance
        if trace.pools:
            ranked, count = importance.masked_fill(first, torch.inf), count.clamp_min(outputs + 1)
        scored.append(rows.sum(-1))
        rows = alive = largest(ranked, count, among=real) | alive
        impact = importance * alive
        impact = impact / impact.sum(-1, keepdim=True)
        boundaries.append(alive)
        impacts.append(impact)
    boundaries.reverse()
    plan = TokenPlan(torch.stack(boundaries, 1).sum(1), layers)
    return Backtracking(plan, torch.stack(impacts[::-1], 1), trace.rows_computed(torch.stack(scored[::-1], 1)))


@dispatched
def plan_topk(trace: AttentionTrace, keep: Keep, propagation: float, outputs: int) -> Planned:
    """The plan of `backtrack`; an engine with a trace of its own may register a faster way."""
    found = backtrack(trace, keep, propagation, outputs)
    return Planned(found.plan, found.scored)


@dispatched
@torch.no_grad()
def backtrack_fixed(trace: AttentionTrace, counts: Sequence[int], propagation: float = 0.1, outputs: int = 1) -> Tensor:
    """As `backtrack`, with the same number of tokens for every sample: their order (B, counts[0]) of core.counts.

    The tokens of the layer above take part in a layer's count, where `backtrack` adds those that the count missed. A
    sample with fewer tokens than a count has all of them in front of padding, which carries nothing.
    Under a head that pools each count must hold one token beside the first `outputs`.
    Raises ValueError for counts that do not fit.
    """
    queries, padding = trace.queries[0], trace.padding
    check_counts(counts, trace.layers, trace.real.shape[1], outputs)
    order = torch.arange(outputs, device=queries.device).expand(queries.shape[0], -1)
    rows = order
    if trace.pools:
        rows = torch.arange(outputs, trace.real.shape[1], device=queries.device).expand(queries.shape[0], -1)
    impact = queries.new_full(rows.shape, 1 / rows.shape[1])
    for layer in reversed(range(trace.layers)):
        weight = (propagation * impact + (1 - propagation)) / rows.shape[1]
        if padding is not None:
            weight = weight * padding.gather(1, rows)
        importance = trace.received(layer, weight, rows)
        rows = order = extend(order, importance, counts[layer], padding)
        impact = importance.gather(1, order)
        impact = impact / impact.sum(-1, keepdim=True)
    return order


def _by_layer(keep: Keep, layers: int) -> list[float | int | None]:
    if keep is None or isinstance(keep, float | int):
        return [keep] * layers
    if len(keep) != layers:
        raise ValueError(f"keep has {len(keep)} entries for {layers} layers")
    return list(keep)


def _count(keep: float | int | None, importance: Tensor, real: Tensor) -> Tensor:
    real_tokens = real.sum(-1)
    if keep is None:
        large = importance > DYNAMIC_SHARE * importance.amax(-1, keepdim=True)
        low, high = (tokens_to_keep(share, real_tokens) for share in DYNAMIC_RANGE)
        return (large & real).sum(-1).clamp(low, high)
    if isinstance(keep, int):
        return real_tokens.clamp_max(keep)
    return tokens_to_keep(keep, real_tokens)
