"""Attention back-tracking, top-k, against the slow reference and by its properties (method section 2)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import backtrack as slow_backtrack
from reference import random_trace, trace_probabilities, trace_scores
from sttabt.core.backtrack import backtrack, backtrack_fixed
from sttabt.core.counts import fixed_plan
from sttabt.core.trace import AttentionTrace

EXAMPLES = settings(max_examples=20, deadline=None, derandomize=True)

SIZES = [  # real tokens, padding beyond the longest sample, layers, heads
    pytest.param([9], 0, 3, 2, id="one-sample"),
    pytest.param([8, 8, 8], 0, 4, 3, id="no-padding"),
    pytest.param([11, 4, 7], 2, 3, 2, id="padding"),
    pytest.param([3, 2], 1, 1, 1, id="one-layer"),
]


def slow(trace: AttentionTrace, keep, propagation: float = 0.1, outputs: int = 1):
    return slow_backtrack(trace_probabilities(trace), trace.real.numpy(), keep, propagation, outputs, trace.pools)


def assert_agrees(trace: AttentionTrace, keep, slow_keep, propagation: float = 0.1, outputs: int = 1) -> None:
    result = backtrack(trace, keep, propagation, outputs)
    alive, impacts = slow(trace, slow_keep, propagation, outputs)
    np.testing.assert_array_equal(result.plan.alive.numpy(), alive)
    np.testing.assert_allclose(result.impacts.numpy(), impacts, atol=1e-12)


@st.composite
def traces(draw) -> AttentionTrace:
    real_tokens = draw(st.lists(st.integers(2, 9), min_size=1, max_size=3))
    return random_trace(
        draw(st.integers(0, 10_000)),
        real_tokens,
        layers=draw(st.integers(1, 4)),
        heads=draw(st.integers(1, 3)),
        padding=draw(st.integers(0, 2)),
        scale=draw(st.sampled_from([0.5, 1.0, 3.0])),
    )


keeps = st.sampled_from([None, 0.01, 0.2, 0.35, 0.5, 0.8, 1.0])


@pytest.mark.parametrize(("real_tokens", "padding", "layers", "heads"), SIZES)
@pytest.mark.parametrize("seed", [0, 1])
def test_trace_scores_and_probabilities_are_the_slow_ones(seed, real_tokens, padding, layers, heads):
    trace = random_trace(seed, real_tokens, layers=layers, heads=heads, padding=padding)
    assert trace.layers == layers
    for layer, (scores, probabilities) in enumerate(zip(trace_scores(trace), trace_probabilities(trace), strict=True)):
        np.testing.assert_allclose(trace.scores(layer).numpy(), scores, atol=1e-12)
        np.testing.assert_allclose(trace.probabilities(layer).numpy(), probabilities, atol=1e-12)


@pytest.mark.parametrize(("real_tokens", "padding", "layers", "heads"), SIZES)
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_ratio_for_all_layers(seed, keep, outputs, real_tokens, padding, layers, heads):
    trace = random_trace(seed, real_tokens, layers=layers, heads=heads, padding=padding)
    assert_agrees(trace, keep, [keep] * layers, outputs=outputs)


@pytest.mark.parametrize(("real_tokens", "padding", "layers", "heads"), SIZES)
@pytest.mark.parametrize("outputs", [0, 1])
@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0, None])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_head_that_pools_reads_all_tokens_at_first(seed, keep, outputs, real_tokens, padding, layers, heads):
    trace = random_trace(seed, real_tokens, layers=layers, heads=heads, padding=padding)
    trace = replace(trace, pools=True)
    if keep is None and not all(count % 10 == 0 for count in real_tokens):
        trace = replace(random_trace(seed, [20], layers=layers, heads=heads), pools=True)
    assert_agrees(trace, keep, None if keep is None else [keep] * layers, outputs=outputs)
    found = backtrack(trace, keep, outputs=outputs).plan.with_survivors()
    assert (found.counts > outputs).all(), "the head has something to read"
    assert torch.equal(found.alive[:, -1], found.alive[:, -2])


def test_one_token_that_the_pooled_ones_attend_to_is_kept() -> None:
    """By hand: three tokens, all of whose attention goes to the second, which is what the last layer keeps."""
    keys = torch.zeros(1, 1, 3, 2, dtype=torch.float64)
    keys[0, 0, 1, 0] = 50
    queries = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 1, 3, 2)
    trace = AttentionTrace((queries,), (keys,), torch.ones(1, 3, dtype=torch.bool), pools=True)
    found = backtrack(trace, 0.3, outputs=0)
    assert found.plan.with_survivors().lifetime.tolist() == [[0, 2, 0]]
    assert found.scored == (3,)


@pytest.mark.parametrize("outputs", [0, 2])
def test_fixed_counts_under_a_head_that_pools_begin_with_what_all_patches_attend_to(outputs) -> None:
    trace = replace(random_trace(3, [12, 12], layers=3, heads=2), pools=True)
    counts = [9, 7, 4]
    order = backtrack_fixed(trace, [*counts, outputs], outputs=outputs)
    fixed, plan = fixed_plan(order, [*counts, outputs], 12), backtrack(trace, counts, outputs=outputs).plan
    assert fixed.counts.tolist() == [[*counts, outputs]] * 2
    assert torch.equal(fixed.reads(2), plan.reads(2))


@pytest.mark.parametrize(
    "keep",
    [[0.9, 0.6, 0.3], [0.3, 0.6, 0.9], [0.25, 0.4, 0.7], [7, 4, 2], [2, 4, 7], [1, 1, 1], [50, 3, 3]],
    ids=str,
)
@pytest.mark.parametrize("real_tokens", [[10, 10], [10, 5, 3]], ids=str)
@pytest.mark.parametrize("propagation", [0.0, 0.1, 0.5, 1.0])
def test_one_ratio_or_count_a_layer(keep, real_tokens, propagation):
    assert_agrees(random_trace(7, real_tokens, scale=2.0), keep, keep, propagation)


@pytest.mark.parametrize("scale", [0.5, 4.0, 8.0, 20.0])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_dynamic_count(seed, outputs, scale):
    # 20 and 40 tokens: 0.2N and 0.95N are whole numbers, so it does not matter how the limits are rounded.
    trace = random_trace(seed, [20, 40], heads=1, scale=scale)
    assert_agrees(trace, None, None, outputs=outputs)


def test_those_dynamic_counts_reach_both_limits_and_the_range_between():
    shares = []
    for scale in (0.5, 4.0, 20.0):
        trace = random_trace(0, [20, 40], heads=1, scale=scale)
        shares += backtrack(trace, None).plan.occupancy(trace.real)[:, trace.layers - 1].tolist()
    # The class token comes on top where it is not among the counted ones: 1/20 at most.
    assert 0.199 < min(shares) < 0.251
    assert 0.949 < max(shares) <= 1.0
    assert any(0.3 < share < 0.9 for share in shares)


@EXAMPLES
@given(traces(), keeps, st.sampled_from([1, 2]))
def test_sets_are_nested_hold_the_outputs_and_no_padding(trace, keep, outputs):
    result = backtrack(trace, keep, outputs=outputs)
    result.plan.check(outputs)
    alive, last = result.plan.alive, result.plan.alive[:, -1]
    assert not (alive[:, 1:] & ~alive[:, :-1]).any()
    assert alive[:, :, :outputs].all()
    assert (last.sum(-1) == outputs).all()
    assert not (alive & ~trace.real[:, None, :]).any()


@EXAMPLES
@given(traces(), keeps)
def test_impacts_are_a_distribution_over_the_tokens_read(trace, keep):
    result = backtrack(trace, keep)
    assert (result.impacts >= 0).all()
    assert (result.impacts[~result.plan.alive[:, :-1]] == 0).all()
    torch.testing.assert_close(result.impacts.sum(-1), torch.ones_like(result.impacts[..., 0]))


@EXAMPLES
@given(traces())
def test_ratio_one_keeps_every_real_token(trace):
    alive = backtrack(trace, 1.0).plan.alive
    assert torch.equal(alive[:, :-1], trace.real[:, None, :].expand_as(alive[:, :-1]))


@EXAMPLES
@given(traces(), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_last_layer_reads_more_for_a_higher_ratio(trace, one, other):
    # Only there: below it, other rows vote, so a higher ratio may choose other tokens.
    low, high = sorted([one, other])
    small, large = (backtrack(trace, keep).plan.reads(trace.layers - 1) for keep in (low, high))
    assert not (small & ~large).any()


@EXAMPLES
@given(traces(), st.floats(0.01, 1.0))
def test_a_layer_reads_between_its_count_and_its_count_beside_the_layer_above(trace, keep):
    counts = backtrack(trace, keep).plan.alive.sum(-1)
    wanted = torch.ceil(keep * trace.real.sum(-1).double())
    assert (counts[:, :-1] >= wanted[:, None]).all()
    assert (counts[:, :-1] <= wanted[:, None] + counts[:, 1:]).all()


@EXAMPLES
@given(traces(), keeps, st.integers(1, 3), st.integers(0, 1000))
def test_padding_changes_nothing(trace, keep, padding, seed):
    garbage = random_trace(seed, [padding] * len(trace.real), layers=trace.layers, heads=trace.queries[0].shape[1])
    padded = AttentionTrace(
        queries=tuple(torch.cat([a, 9 * b], dim=2) for a, b in zip(trace.queries, garbage.queries, strict=True)),
        keys=tuple(torch.cat([a, 9 * b], dim=2) for a, b in zip(trace.keys, garbage.keys, strict=True)),
        real=torch.cat([trace.real, ~garbage.real], dim=1),
    )
    before, after = backtrack(trace, keep), backtrack(padded, keep)
    tokens = trace.real.shape[1]
    assert torch.equal(after.plan.alive[..., :tokens], before.plan.alive)
    assert not after.plan.alive[..., tokens:].any()
    torch.testing.assert_close(after.impacts[..., :tokens], before.impacts)


@EXAMPLES
@given(traces(), keeps, st.data())
def test_a_sample_does_not_depend_on_its_batch(trace, keep, data):
    order = data.draw(st.permutations(range(len(trace.real))))
    samples = data.draw(st.integers(1, len(order)))
    together = backtrack(trace, keep)
    for chosen in (order, order[:samples], order[:1]):
        part = AttentionTrace(
            queries=tuple(q[chosen] for q in trace.queries),
            keys=tuple(k[chosen] for k in trace.keys),
            real=trace.real[chosen],
        )
        result = backtrack(part, keep)
        assert torch.equal(result.plan.alive, together.plan.alive[chosen])
        torch.testing.assert_close(result.impacts, together.impacts[chosen])


@EXAMPLES
@given(traces(), keeps, st.randoms(use_true_random=False))
def test_the_order_of_the_other_tokens_does_not_matter(trace, keep, random):
    others = list(range(1, trace.real.shape[1]))
    random.shuffle(others)
    order = [0, *others]
    shuffled = AttentionTrace(
        queries=tuple(q[:, :, order] for q in trace.queries),
        keys=tuple(k[:, :, order] for k in trace.keys),
        real=trace.real[:, order],
    )
    assert torch.equal(backtrack(shuffled, keep).plan.alive, backtrack(trace, keep).plan.alive[..., order])


@pytest.mark.parametrize("keep", [None, 0.3, [0.7, 0.5, 0.3]], ids=str)
def test_single_precision_chooses_the_same_tokens(keep):
    double = backtrack(random_trace(3, [16, 9]), keep)
    single = backtrack(random_trace(3, [16, 9], dtype=torch.float32), keep)
    assert torch.equal(single.plan.alive, double.plan.alive)
    torch.testing.assert_close(single.impacts.double(), double.impacts, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.5, [0.5, 0.5], [0.5] * 4, [0.5, 0.5, 0.0], [0.5, 1.2, 0.5]], ids=str)
def test_a_wrong_keep_is_an_error(keep):
    with pytest.raises(ValueError, match=r"a keep ratio lies in \(0, 1\]|keep has \d entries for 3 layers"):
        backtrack(random_trace(0, [5]), keep)
