"""Concrete masks: a differentiable choice of how many tokens a layer reads. (STTABT section 3.3; METHOD section 3)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import threshold

from sttabt.core.counts import check_counts, extend, is_unasked
from sttabt.core.dispatch import dispatched
from sttabt.core.plan import Planned, Scored, SoftPlan, output_tokens, rows_with_weight
from sttabt.core.trace import AttentionTrace

EPSILON = 1e-7
SMALLEST_VARIANCE = 1e-20  # a row of equal scores stands at 0.5 instead of NaN
FLOOR = 0.01  # the least importance of a real token, so that its logit stays finite


@dataclass(frozen=True)
class ConcretePlan:
    """plan: the soft one; scored: rows of attention a sample that were computed for it, by layer."""

    plan: SoftPlan
    scored: Scored


@dataclass(frozen=True)
class ConcreteLoss:
    """The two scalar terms that are added to a task loss: `p_logit` holds the logits, `keep` the share of tokens."""

    p_logit: Tensor
    keep: Tensor


def concrete_plan(
    trace: AttentionTrace,
    p_logit: Tensor,
    propagation: float = 0.1,
    temperature: float = 0.1,
    outputs: int = 1,
    negligible: float | None = None,
) -> ConcretePlan:
    """The soft plan; its `harden()` is the hard one.

    p_logit: (L,), one a layer. Differentiable in `p_logit` and in the trace. The last boundary is 1 on the output
    tokens and 0 elsewhere. negligible: rows that weigh no more than this are not scored, which moves a token's
    importance (before it is divided by the largest) by at most N * negligible; None scores every row. Under a head that
    pools (`trace.pools`) the first step weighs all that a dense model's head reads alike, and the largest importance is
    that of a token behind the output tokens.
    """
    real, padding = trace.real, trace.padding
    first = output_tokens(real, outputs)
    kept = first.to(p_logit.dtype)
    mask = importance = trace.read_by_head(outputs).to(p_logit.dtype)
    boundaries, weights = [kept], []
    for layer in reversed(range(trace.layers)):
        weight = mask * (propagation * importance + (1 - propagation))
        if negligible is not None:
            weight = threshold(weight, negligible, 0.0)
        importance = percentiles(trace, layer, weight, padding, skip=negligible is not None)
        importance = importance / (mask.sum(-1, keepdim=True) + EPSILON)
        ranked = importance.masked_fill(first, 0) if trace.pools else importance
        importance = importance / (ranked.amax(-1, keepdim=True) + EPSILON)
        importance = importance.clamp_max(1) if trace.pools else importance
        importance = (FLOOR + (1 - FLOOR) * importance) * real
        logit = _logit(torch.sigmoid(p_logit[layer])) + _logit(importance)
        mask = kept = torch.maximum(torch.sigmoid(logit / temperature) * real, kept)
        boundaries.append(mask)
        weights.append(weight)
    scored: Scored = (float(real.shape[-1]),) * trace.layers
    if negligible is not None:
        scored = trace.rows_computed(torch.stack(weights[::-1], 1).count_nonzero(-1))
    return ConcretePlan(SoftPlan(torch.stack(boundaries[::-1], 1)), scored)


@dispatched
@torch.no_grad()
def plan_concrete(
    trace: AttentionTrace, p_logit: Tensor, propagation: float, temperature: float, outputs: int, negligible: float
) -> Planned:
    """The hard plan of `concrete_plan`, in single precision at least; an engine with a trace of its own may register a
    faster way.
    """
    p_logit = p_logit.to(torch.promote_types(p_logit.dtype, torch.float32))
    found = concrete_plan(trace, p_logit, propagation, temperature, outputs, negligible)
    return harden_plan(trace, found, outputs)


def harden_plan(trace: AttentionTrace, found: ConcretePlan, outputs: int) -> Planned:
    """The hard plan of a soft one. Under a head that pools the likeliest token of the last layer lives in all layers,
    however low the logits are: the head reads one at least.
    """
    alive = found.plan.alive
    if trace.pools:
        behind = trace.real & ~output_tokens(trace.real, outputs)
        best = alive[:, -2].masked_fill(~behind, -1).argmax(-1)
        alive = alive.scatter(2, best[:, None, None].expand(-1, trace.layers, 1), 1.0)
    return Planned(SoftPlan(alive).harden(), found.scored)


@torch.no_grad()
def concrete_fixed(trace: AttentionTrace, counts: Sequence[int], propagation: float = 0.1, outputs: int = 1) -> Tensor:
    """Tokens by the importance of `concrete_plan`, so many a layer instead of by a threshold: (B, counts[0]).

    order, counts: see core.counts. A token that a layer reads weighs as one whose mask is 1. Padding comes last.
    Under a head that pools each count must hold one token beside the first `outputs`.
    Raises ValueError for counts that do not fit.
    """
    padding = trace.padding
    check_counts(counts, trace.layers, trace.real.shape[1], outputs)
    order = rows = torch.arange(outputs, device=trace.real.device).expand(trace.real.shape[0], -1)
    if trace.pools:
        rows = torch.arange(outputs, trace.real.shape[1], device=order.device).expand(trace.real.shape[0], -1)
    important = trace.queries[0].new_ones(rows.shape)
    for layer in reversed(range(trace.layers)):
        weight = propagation * important + (1 - propagation)
        if padding is not None:
            weight = weight * padding.gather(1, rows)
        importance = weighted_percentile(trace.rows(layer, rows), trace.keys[layer], weight, padding)
        largest = (importance[:, outputs:] if trace.pools else importance).amax(-1, keepdim=True)
        importance = FLOOR + (1 - FLOOR) * (importance / largest).clamp_max(1)
        rows = order = extend(order, importance, counts[layer], padding)
        important = importance.gather(1, order)
    return order


def concrete_loss(
    p_logit: Tensor, masks: Tensor, real: Tensor, p_init: float, lambda_p: float, lambda_mask: float
) -> ConcreteLoss:
    """Hold the logits near `p_init`, and what the layers write near sigmoid(p_init) of the real tokens.

    p_logit: (L,); masks: (B, L+1, N), soft or hard; real: (B, N) bool.
    """
    written = (masks[:, 1:] * real[:, None]).sum(-1) / real.sum(-1)[:, None]
    target = torch.sigmoid(torch.as_tensor(p_init, dtype=written.dtype))
    return ConcreteLoss(
        p_logit=lambda_p * (p_logit - p_init).square().sum(), keep=lambda_mask * (target - written.mean()).square()
    )


@dispatched
def percentiles(trace: AttentionTrace, layer: int, weight: Tensor, padding: Tensor | None, skip: bool) -> Tensor:
    """`weighted_percentile` of a layer in the precision of `weight` (B, N); skip: leave out rows of weight 0.

    An engine with a trace of its own may register a faster way.
    """
    queries, keys = trace.queries[layer].to(weight.dtype), trace.keys[layer].to(weight.dtype)
    if skip and not is_unasked(weight):
        places, weight = rows_with_weight(weight)
        queries = trace.rows(layer, places).to(weight.dtype)
    return weighted_percentile(queries, keys, weight, padding)


def weighted_percentile(queries: Tensor, keys: Tensor, weight: Tensor, real: Tensor | None) -> Tensor:
    """Percentiles of the keys in the rows of the queries, (B, N): sum over rows of `weight` (B, n) times percentile.

    The percentile, in (0, 1), is the normal CDF of the standardised score (over real keys), mean over heads.
    queries: (B, H, n, d); keys: (B, H, N, d); real: (B, N) bool, None where there is no padding. A row's mean is
    q . mean(k) and its variance q . Cov(k) . q, so that centred keys and scaled queries give standardised scores in
    one product.
    """
    if real is None:
        centred = keys - keys.mean(-2, keepdim=True)
        covariance = centred.transpose(-1, -2) @ (centred / keys.shape[-2])
    else:
        here = real[:, None, :, None].to(keys.dtype)
        count = here.sum(-2, keepdim=True)
        centred = (keys - (keys * here).sum(-2, keepdim=True) / count) * here
        covariance = centred.transpose(-1, -2) @ (centred / count)
    variance = ((queries @ covariance) * queries).sum(-1, keepdim=True)
    scale = (2 * variance.clamp_min(SMALLEST_VARIANCE)).rsqrt()  # 2: the normal CDF is (1 + erf(x / sqrt 2)) / 2
    standard = (queries * scale) @ centred.transpose(-1, -2)
    errors = standard.erf() if standard.requires_grad else standard.erf_()
    percentile = 0.5 * (weight.sum(-1, keepdim=True) + (weight[:, None, None] @ errors)[:, :, 0].mean(1))
    return percentile if real is None else percentile * real


def _logit(probability: Tensor) -> Tensor:
    return torch.log(probability + EPSILON) - torch.log(1 - probability + EPSILON)
