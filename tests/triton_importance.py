"""The planner's kernel against torch's own sums, and the plans made of them; test_importance.py runs this file, in
Triton's interpreter or on a card.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference import random_trace
from sttabt.core.backtrack import backtrack, backtrack_fixed
from sttabt.core.concrete import concrete_plan, plan_concrete, weighted_percentile
from sttabt.core.trace import AttentionTrace
from sttabt.engine.planner import KernelTrace
from sttabt.native.importance import importance

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [150, 70, 131]  # keys of more than one block, rows of several
HALVES = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]  # the interpreter lacks the other


def traced(
    lengths: list[int], layers: int = 1, scale: float = 2.0, width: int = 8
) -> tuple[AttentionTrace, KernelTrace]:
    """The same attention as torch sums it up, and as the kernel does."""
    drawn = random_trace(5, lengths, layers=layers, width=width, scale=2.0, dtype=torch.float32)
    fields = {
        "queries": tuple(each.to(DEVICE) for each in drawn.queries),
        "keys": tuple(each.to(DEVICE) for each in drawn.keys),
        "real": drawn.real.to(DEVICE),
        "scale": 0.7,
        "may_pad": len(set(lengths)) > 1,
    }
    return AttentionTrace(**fields), KernelTrace(**fields)


def some_weight(trace: AttentionTrace) -> Tensor:
    """Of half of the real rows."""
    drawn = torch.rand(trace.real.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    return drawn * (drawn > 0.5) * trace.real


@pytest.mark.parametrize("width", [4, 8, 24])
@pytest.mark.parametrize("lengths", [[9], [40, 40], LENGTHS], ids=str)
def test_sums_are_torch_s(lengths: list[int], width: int) -> None:
    plain, kernel = traced(lengths, width=width)
    weight = some_weight(plain)
    torch.testing.assert_close(kernel.received(0, weight), plain.received(0, weight), atol=2e-6, rtol=2e-5)
    found = importance(plain.queries[0], plain.keys[0], *_ranked(weight), plain.real, 1.0, True)
    expected = weighted_percentile(plain.queries[0], plain.keys[0], weight, plain.real)
    torch.testing.assert_close(found * plain.real, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    plain, _ = traced(LENGTHS)
    kernel = KernelTrace((plain.queries[0].to(dtype),), (plain.keys[0].to(dtype),), plain.real, 0.7)
    rounded = AttentionTrace((kernel.queries[0].float(),), (kernel.keys[0].float(),), plain.real, 0.7)
    weight = some_weight(plain) / 40
    found = kernel.received(0, weight)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, rounded.received(0, weight), atol=2e-5, rtol=1e-4)


def test_equal_scores_stand_in_the_middle() -> None:
    """No variance: torch's reference says 0.5 of each, too."""
    queries, keys = torch.zeros(1, 2, 20, 8, device=DEVICE), torch.ones(1, 2, 20, 8, device=DEVICE)
    real, weight = torch.ones(1, 20, dtype=torch.bool, device=DEVICE), torch.ones(1, 20, device=DEVICE)
    found = importance(queries, keys, *_ranked(weight), real, 1.0, True)
    torch.testing.assert_close(found, torch.full((1, 20), 10.0, device=DEVICE))


@pytest.mark.parametrize("keep", [0.4, None], ids=str)
def test_topk_plans_are_torch_s(keep: float | None) -> None:
    plain, kernel = traced(LENGTHS, layers=3)
    found, expected = backtrack(kernel, keep), backtrack(plain, keep)
    assert torch.equal(found.plan.lifetime, expected.plan.lifetime)
    rows = found.plan.counts[:, 1:].float().mean(0)
    assert torch.equal(torch.as_tensor(found.scored), rows), "rows are read sample by sample"


def test_fixed_orders_are_torch_s() -> None:
    plain, kernel = traced([40, 40], layers=3)
    counts = [30, 12, 5, 1]
    assert torch.equal(backtrack_fixed(kernel, counts), backtrack_fixed(plain, counts))


def test_concrete_plans_are_torch_s_but_near_the_threshold() -> None:
    plain, kernel = traced(LENGTHS, layers=3)
    p_logit = torch.tensor([-1.0, -0.5, 0.0], device=DEVICE)
    soft = concrete_plan(plain, p_logit, negligible=1e-5).plan.alive
    found = plan_concrete(kernel, p_logit, 0.1, 0.1, 1, 1e-5).plan.alive
    clear = (soft - 0.5).abs() > 1e-3
    assert clear.float().mean() > 0.95 and torch.equal(found[clear], soft[clear] >= 0.5)


def test_gradients_are_torch_s() -> None:
    plain, kernel = traced([20, 12], layers=2)
    grads = []
    for trace in (plain, kernel):
        p_logit = torch.zeros(2, device=DEVICE, requires_grad=True)
        concrete_plan(trace, p_logit).plan.alive.square().sum().backward()
        grads.append(p_logit.grad)
    torch.testing.assert_close(*grads)


def _ranked(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ranked, places = weight.sort(dim=-1, descending=True)
    return places, ranked, (weight > 0).sum(-1)
