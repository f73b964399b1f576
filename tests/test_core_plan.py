"""Token plans, counts, and the forward top-k selection (method sections 2 and 4)."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import forward_keep_ratios as slow_forward_keep_ratios
from reference import forward_select as slow_forward_select
from reference import random_probabilities
from reference import received_attention as slow_received_attention
from sttabt.core.forward import forward_keep_ratios, forward_select, received_attention
from sttabt.core.plan import MergeRecord, SoftPlan, TokenPlan, keep_all, spread_shares, tokens_to_keep

EXAMPLES = settings(max_examples=30, deadline=None, derandomize=True)
SWEPT_RATIOS = ["0.05", "0.1", "0.15", "0.2", "0.3", "0.4", "0.5", "0.6", "0.625", "0.75", "0.8", "1.0"]


def nested_plan(depths: list[list[int]], layers: int) -> TokenPlan:
    """The plan in which `depths[b][n]` layers read token n; layers + 1 stands for an output token."""
    return TokenPlan(torch.tensor(depths), layers)


@st.composite
def plans(draw) -> tuple[TokenPlan, list[list[int]]]:
    layers, tokens, batch = draw(st.integers(1, 4)), draw(st.integers(2, 8)), draw(st.integers(1, 3))
    depths = [
        [layers + 1, *draw(st.lists(st.integers(0, layers), min_size=tokens - 1, max_size=tokens - 1))]
        for _ in range(batch)
    ]
    return nested_plan(depths, layers), depths


@EXAMPLES
@given(plans())
def test_depth_counts_the_layers_that_read_a_token(case):
    plan, depths = case
    plan.check()
    sets = [[[boundary < depth for depth in row] for boundary in range(plan.layers + 1)] for row in depths]
    assert plan.alive.tolist() == sets
    assert plan.counts.tolist() == [[sum(alive) for alive in row] for row in sets]
    assert torch.equal(TokenPlan.of_sets(plan.alive).lifetime, plan.lifetime)
    for row, order, counts in zip(plan.alive, plan.order(), plan.counts, strict=True):
        for alive, count in zip(row, counts, strict=True):
            assert sorted(order[:count].tolist()) == alive.nonzero()[:, 0].tolist(), "a set is a prefix"
    assert plan.depth().tolist() == [[min(depth, plan.layers) for depth in row] for row in depths]
    for layer in range(plan.layers):
        assert torch.equal(plan.reads(layer), plan.depth() > layer)
        assert torch.equal(plan.reads(layer), plan.alive[:, layer])
        assert torch.equal(plan.writes(layer), plan.alive[:, layer + 1])


@EXAMPLES
@given(plans(), st.data())
def test_occupancy_counts_real_tokens(case, data):
    plan, depths = case
    real_tokens = [data.draw(st.integers(1, len(row))) for row in depths]
    real = torch.arange(len(depths[0])) < torch.tensor(real_tokens)[:, None]
    plan = TokenPlan(plan.lifetime * real, plan.layers)
    alive = plan.alive
    expected = [
        [sum(alive[b, n].tolist()) / real_tokens[b] for n in range(plan.layers + 1)] for b in range(len(depths))
    ]
    np.testing.assert_allclose(plan.occupancy(real).numpy(), expected, rtol=1e-6)
    everything = torch.ones_like(real)
    torch.testing.assert_close(plan.occupancy(), plan.occupancy(everything))


def test_occupancy_of_a_soft_plan_is_the_mean_of_its_shares():
    plan = SoftPlan(torch.tensor([[[1.0, 0.5, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]]]))
    real = torch.tensor([[True, True, True, False]])
    assert plan.occupancy(real)[0].tolist() == pytest.approx([1.75 / 3, 1 / 3])


def test_a_soft_plan_hardens_at_its_threshold():
    plan = SoftPlan(torch.tensor([[[1.0, 0.5, 0.49, 0.9], [1.0, 0.1, 0.2, 0.6]]]))
    assert isinstance(plan.harden(), TokenPlan)
    assert plan.harden().alive.tolist() == [[[True, True, False, True], [True, False, False, True]]]
    assert plan.harden(0.7).alive.tolist() == [[[True, False, False, True], [True, False, False, False]]]


@pytest.mark.parametrize(
    ("alive", "outputs", "valid"),
    [
        ([[1, 1, 1], [1, 1, 0], [1, 0, 0]], 1, True),
        ([[1, 1, 1], [1, 1, 0], [1, 1, 0]], 2, True),
        ([[1, 1, 0], [1, 0, 1], [1, 0, 0]], 1, False),  # the third token comes back
        ([[1, 1, 1], [0, 1, 1], [0, 0, 1]], 1, False),  # the class token is lost
        ([[1, 1, 1], [1, 1, 0], [1, 0, 0]], 2, False),  # the second output token is lost
    ],
)
def test_plans_that_are_not_nested_or_lose_an_output_are_found(alive, outputs, valid):
    good = [[1, 1, 1], [1, 1, 1], [1, 1, 1]]
    sets = torch.tensor([good, alive]).bool()
    if valid:
        TokenPlan.of_sets(sets).check(outputs)
    else:
        with pytest.raises(ValueError, match=r"nested|output"):
            TokenPlan.of_sets(sets).check(outputs)
    if alive[0][2] < alive[1][2]:
        with pytest.raises(ValueError, match="nested"):
            TokenPlan.of_sets(sets)


def test_what_merging_left_counts_fused_rows_too():
    alive = torch.tensor([[[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]]]).bool()
    record = MergeRecord(alive, fused=torch.tensor([[0, 1, 1]]))
    assert record.layers == 2 and record.counts.tolist() == [[4, 3, 2]]
    assert record.depth().tolist() == [[2, 1, 2, 1]]
    assert record.occupancy()[0].tolist() == pytest.approx([1.0, 0.75, 0.5])
    real = torch.tensor([[True, True, True, True]])
    assert torch.equal(record.occupancy(real), record.occupancy())
    assert MergeRecord(alive).counts.tolist() == [[4, 2, 1]]


@pytest.mark.parametrize("outputs", [1, 2])
def test_keep_all_keeps_the_real_tokens_until_the_outputs(outputs):
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    plan = keep_all(real, 3, outputs)
    plan.check(outputs)
    assert plan.layers == 3
    assert plan.depth().tolist() == [[3] * 5, [3, 3, 3, 0, 0]]
    assert plan.writes(2).sum(-1).tolist() == [outputs, outputs]
    assert torch.equal(plan.occupancy(real)[:, :3], torch.ones(2, 3))


@pytest.mark.parametrize("ratio", SWEPT_RATIOS)
def test_tokens_to_keep_is_exact(ratio):
    # In single precision 0.3 of 50 tokens comes out as 16.
    real_tokens = list(range(1, 600))
    expected = [math.ceil(Fraction(ratio) * n) for n in real_tokens]
    assert tokens_to_keep(float(ratio), torch.tensor(real_tokens)).tolist() == expected


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.0001, float("nan")])
def test_tokens_to_keep_refuses_what_is_not_a_ratio(ratio):
    with pytest.raises(ValueError, match=r"a keep ratio lies in \(0, 1\], got"):
        tokens_to_keep(ratio, torch.tensor([10]))


@pytest.mark.parametrize("target", [0.1, 0.4, 0.5, 0.666, 0.667, 0.8, 0.95, 1.0])
def test_forward_keep_ratios_of_twelve_layers(target):
    assert forward_keep_ratios(target, 12) == pytest.approx(slow_forward_keep_ratios(target))


@pytest.mark.parametrize("layers", [12, 16, 24])
@pytest.mark.parametrize("target", [0.1, 0.3, 0.6, 0.8, 1.0])
def test_forward_keep_ratios_fall_and_average_about_the_target(target, layers):
    ratios = forward_keep_ratios(target, layers)
    assert len(ratios) == layers
    assert all(0 < later <= earlier <= 1 for earlier, later in pairwise(ratios))
    assert sum(ratios) / layers == pytest.approx(target, rel=0.1)


@st.composite
def selections(draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(3, 8))
    probabilities = random_probabilities(draw(st.integers(0, 10_000)), batch, draw(st.integers(1, 3)), tokens, 2.0)
    alive = torch.tensor([[True, True, *[draw(st.booleans()) for _ in range(tokens - 2)]] for _ in range(batch)])
    count = torch.tensor([draw(st.integers(1, tokens)) for _ in range(batch)])
    return probabilities, alive, count


@EXAMPLES
@given(selections())
def test_received_attention_is_the_slow_one(case):
    probabilities, alive, _ = case
    expected = slow_received_attention(probabilities.numpy(), alive.numpy())
    np.testing.assert_allclose(received_attention(probabilities, alive).numpy(), expected, atol=1e-12)


@EXAMPLES
@given(selections(), st.sampled_from([0, 1, 2]))
def test_forward_select_is_the_slow_one(case, outputs):
    probabilities, alive, count = case
    selected = forward_select(received_attention(probabilities, alive), alive, count, outputs)
    expected = slow_forward_select(probabilities.numpy(), alive.numpy(), count.tolist(), outputs)
    np.testing.assert_array_equal(selected.numpy(), expected)
    assert not (selected & ~alive).any()
    assert selected[:, :outputs].all()


def test_shares_that_are_spread_step_one_layer_at_a_time() -> None:
    """Of 50 tokens in 4 layers: totals rise by one where equal shares rise by 4."""
    real = torch.tensor([50])
    totals = []
    for step in range(1, 2001):
        shares = spread_shares(step / 2000, 4, 50)
        counts = [int(tokens_to_keep(share, real)) for share in shares]
        assert counts == sorted(counts, reverse=True) and counts[0] - counts[-1] <= 1
        assert sum(counts) / 4 == pytest.approx(min(step / 40 + 0.5, 50), abs=0.51)
        totals.append(sum(counts))
    assert {after - before for before, after in pairwise(totals)} == {0, 1}
    assert totals[-1] >= 199 and totals[0] == 4
