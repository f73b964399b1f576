"""Concrete masks and their loss against the slow reference and by their properties (method section 3)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import concrete_loss as slow_concrete_loss
from reference import concrete_masks as slow_concrete_masks
from reference import random_trace, trace_scores
from sttabt.core.concrete import concrete_loss, concrete_plan, plan_concrete
from sttabt.core.plan import SoftPlan
from sttabt.core.trace import AttentionTrace

EXAMPLES = settings(max_examples=20, deadline=None, derandomize=True)

SIZES = [  # real tokens, padding beyond the longest sample, layers, heads
    pytest.param([9], 0, 3, 2, id="one-sample"),
    pytest.param([8, 8, 8], 0, 4, 3, id="no-padding"),
    pytest.param([11, 4, 7], 2, 3, 2, id="padding"),
    pytest.param([3, 2], 1, 1, 1, id="one-layer"),
]


def concrete_masks(*arguments, **options) -> torch.Tensor:
    return concrete_plan(*arguments, **options).plan.alive


def logits(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_logits(seed: int, layers: int) -> torch.Tensor:
    return torch.randn(layers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_agrees(trace: AttentionTrace, p_logit: torch.Tensor, propagation=0.1, temperature=0.1, outputs=1) -> None:
    masks = concrete_masks(trace, p_logit, propagation, temperature, outputs)
    scores, real = trace_scores(trace), trace.real.numpy()
    expected = slow_concrete_masks(scores, real, p_logit.tolist(), propagation, temperature, outputs, trace.pools)
    assert masks.dtype == torch.float64
    for boundary in range(trace.layers + 1):
        np.testing.assert_allclose(masks[:, boundary].numpy()[real], expected[:, boundary][real], atol=1e-9)
        # The formula leaves about eps on padding, where the masks had better be zero.
        np.testing.assert_allclose(masks[:, boundary].numpy()[~real], expected[:, boundary][~real], atol=1e-6)


@st.composite
def cases(draw) -> tuple[AttentionTrace, torch.Tensor]:
    layers = draw(st.integers(1, 4))
    trace = random_trace(
        draw(st.integers(0, 10_000)),
        draw(st.lists(st.integers(2, 9), min_size=1, max_size=3)),
        layers=layers,
        heads=draw(st.integers(1, 3)),
        padding=draw(st.integers(0, 2)),
    )
    return trace, logits(*draw(st.lists(st.floats(-3, 1), min_size=layers, max_size=layers)))


@pytest.mark.parametrize(("real_tokens", "padding", "layers", "heads"), SIZES)
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("p_logit", [-1.5, -0.5, 0.25])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_p_logit_for_all_layers(seed, p_logit, outputs, real_tokens, padding, layers, heads):
    trace = random_trace(seed, real_tokens, layers=layers, heads=heads, padding=padding)
    assert_agrees(trace, logits(*[p_logit] * layers), outputs=outputs)


@pytest.mark.parametrize(("real_tokens", "padding", "layers", "heads"), SIZES)
@pytest.mark.parametrize("outputs", [0, 1])
@pytest.mark.parametrize("p_logit", [-1.5, 0.25])
def test_a_head_that_pools_reads_all_tokens_at_first(p_logit, outputs, real_tokens, padding, layers, heads):
    trace = replace(random_trace(4, real_tokens, layers=layers, heads=heads, padding=padding), pools=True)
    assert_agrees(trace, logits(*[p_logit] * layers), outputs=outputs)
    plan = concrete_plan(trace, logits(*[p_logit] * layers), outputs=outputs).plan.with_survivors().harden()
    assert (plan.counts > outputs).all(), "the head has something to read"


@pytest.mark.parametrize("p_logit", [(-2.0, -1.0, 0.5), (0.5, -1.0, -2.0), (-0.5, -0.5, -0.5)], ids=str)
@pytest.mark.parametrize("propagation", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_p_logit_propagation_and_temperature(temperature, propagation, p_logit):
    assert_agrees(random_trace(5, [12, 6]), logits(*p_logit), propagation, temperature)


@EXAMPLES
@given(cases(), st.sampled_from([1, 2]))
def test_masks_are_shares_nested_from_the_output_tokens_down(case, outputs):
    trace, p_logit = case
    masks = concrete_masks(trace, p_logit, outputs=outputs)
    assert ((masks >= 0) & (masks <= 1)).all()
    assert (masks[:, :-1] >= masks[:, 1:]).all()
    assert (masks[:, :, :outputs] == 1).all()
    assert (masks[:, -1, outputs:] == 0).all()
    SoftPlan(masks).harden().check(outputs)


@EXAMPLES
@given(cases(), st.sampled_from([0.0, 5.0, 40.0]))
def test_padding_is_never_alive(case, raised):
    trace, p_logit = case
    masks = concrete_masks(trace, p_logit + raised)
    assert (masks[~trace.real[:, None, :].expand_as(masks)] < 1e-9).all()


@EXAMPLES
@given(cases(), st.integers(1, 3), st.integers(0, 1000))
def test_padding_changes_nothing(case, padding, seed):
    trace, p_logit = case
    garbage = random_trace(seed, [padding] * len(trace.real), layers=trace.layers, heads=trace.queries[0].shape[1])
    padded = AttentionTrace(
        queries=tuple(torch.cat([a, 9 * b], dim=2) for a, b in zip(trace.queries, garbage.queries, strict=True)),
        keys=tuple(torch.cat([a, 9 * b], dim=2) for a, b in zip(trace.keys, garbage.keys, strict=True)),
        real=torch.cat([trace.real, ~garbage.real], dim=1),
    )
    before, after = concrete_masks(trace, p_logit), concrete_masks(padded, p_logit)
    torch.testing.assert_close(after[..., : trace.real.shape[1]], before, atol=1e-9, rtol=1e-9)
    losses = [concrete_loss(p_logit, m, t.real, 0.3, 1.0, 1.0).keep for m, t in ((before, trace), (after, padded))]
    torch.testing.assert_close(losses[0], losses[1])


@EXAMPLES
@given(cases(), st.data())
def test_a_sample_does_not_depend_on_its_batch(case, data):
    trace, p_logit = case
    order = data.draw(st.permutations(range(len(trace.real))))
    together = concrete_masks(trace, p_logit)
    for chosen in (order, order[:1]):
        part = AttentionTrace(
            queries=tuple(q[chosen] for q in trace.queries),
            keys=tuple(k[chosen] for k in trace.keys),
            real=trace.real[chosen],
        )
        torch.testing.assert_close(concrete_masks(part, p_logit), together[chosen], atol=1e-9, rtol=1e-9)


@EXAMPLES
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_other_tokens_does_not_matter(case, random):
    trace, p_logit = case
    others = list(range(1, trace.real.shape[1]))
    random.shuffle(others)
    order = [0, *others]
    shuffled = AttentionTrace(
        queries=tuple(q[:, :, order] for q in trace.queries),
        keys=tuple(k[:, :, order] for k in trace.keys),
        real=trace.real[:, order],
    )
    expected = concrete_masks(trace, p_logit)[..., order]
    torch.testing.assert_close(concrete_masks(shuffled, p_logit), expected, atol=1e-9, rtol=1e-9)


@EXAMPLES
@given(cases(), st.integers(0, 3), st.floats(0.0, 3.0))
def test_a_higher_p_logit_widens_its_own_layer_and_leaves_the_layers_above(case, layer, raised):
    # The layers below may lose tokens: more rows vote there, and the best score that they are measured by moves.
    trace, p_logit = case
    layer = layer % trace.layers
    higher = p_logit.clone()
    higher[layer] += raised
    before, after = concrete_masks(trace, p_logit), concrete_masks(trace, higher)
    assert (after[:, layer] >= before[:, layer] - 1e-12).all()
    assert torch.equal(after[:, layer + 1 :], before[:, layer + 1 :])
    occupancies = [SoftPlan(masks).harden().occupancy(trace.real)[:, layer] for masks in (before, after)]
    assert (occupancies[1] >= occupancies[0]).all()


@pytest.mark.parametrize("real_tokens", [[6], [5, 3]], ids=str)
@pytest.mark.parametrize("outputs", [1, 2])
def test_gradient_is_that_of_finite_differences(outputs, real_tokens):
    trace = random_trace(11, real_tokens, layers=2, width=3, padding=len(real_tokens) - 1)
    p_logit = logits(-0.6, -0.2).requires_grad_()
    tensors = [t.clone().requires_grad_() for t in (*trace.queries, *trace.keys)]

    def masks(p_logit: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return concrete_masks(AttentionTrace(tensors[:2], tensors[2:], trace.real), p_logit, 0.1, 0.5, outputs)

    # A temperature of 0.5 keeps finite differences clear of the saturated ends.
    assert torch.autograd.gradcheck(masks, (p_logit, *tensors), eps=1e-6, atol=1e-5)


def test_gradient_reaches_every_p_logit_query_and_real_key():
    trace = random_trace(2, [7, 4])
    p_logit = logits(-0.5, -0.5, -0.5).requires_grad_()
    queries = [q.clone().requires_grad_() for q in trace.queries]
    keys = [k.clone().requires_grad_() for k in trace.keys]
    masks = concrete_masks(AttentionTrace(tuple(queries), tuple(keys), trace.real), p_logit)
    masks[:, :-1].square().sum().backward()
    assert p_logit.grad is not None
    assert (p_logit.grad > 0).all()
    for tensor in (*queries, *keys):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0
        assert (tensor.grad[1, :, 4:] == 0).all(), "padding has a gradient"


@pytest.mark.parametrize("p_logit", [-1.5, 0.5])
def test_single_precision_agrees(p_logit):
    double = concrete_masks(random_trace(3, [16, 9]), logits(*[p_logit] * 3))
    single = concrete_masks(random_trace(3, [16, 9], dtype=torch.float32), torch.full((3,), p_logit))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("real_tokens", "padding", "layers", "heads"), SIZES)
@pytest.mark.parametrize(("p_init", "lambda_p", "lambda_mask"), [(0.25, 1e-3, 100.0), (-1.0, 0.1, 1e-3)])
def test_loss_is_the_slow_one(p_init, lambda_p, lambda_mask, real_tokens, padding, layers, heads):
    trace = random_trace(4, real_tokens, layers=layers, heads=heads, padding=padding)
    p_logit = random_logits(4, layers)
    masks = concrete_masks(trace, p_logit)
    loss = concrete_loss(p_logit, masks, trace.real, p_init, lambda_p, lambda_mask)
    arguments = (p_logit.tolist(), masks.numpy(), trace.real.numpy(), p_init, lambda_p, lambda_mask)
    assert (loss.p_logit.item(), loss.keep.item()) == pytest.approx(slow_concrete_loss(*arguments), rel=1e-9)


def test_loss_is_zero_where_it_aims():
    real = torch.ones(2, 4, dtype=torch.bool)
    masks = torch.full((2, 4, 4), 0.5, dtype=torch.float64)
    loss = concrete_loss(logits(0.0, 0.0, 0.0), masks, real, 0.0, 1.0, 1.0)
    assert loss.p_logit.item() == 0
    assert loss.keep.item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_negligible_rows_hardly_move_a_hard_mask(seed: int) -> None:
    """Skipping rows of weight <= delta moves an importance by at most N * delta before it is normalised."""
    trace = random_trace(seed, [40, 40, 31], layers=6, dtype=torch.float32, scale=2.0)
    p_logit = torch.linspace(-1.0, 0.5, 6)
    full, skipped = (concrete_plan(trace, p_logit, negligible=delta) for delta in (None, 1e-5))
    assert sum(skipped.scored) < sum(full.scored), "some rows were skipped"
    assert (full.plan.alive - skipped.plan.alive).abs().max() < 40 * 1e-5 / 0.1 * 10
    assert (full.plan.harden().alive == skipped.plan.harden().alive).float().mean() >= 0.999


@pytest.mark.parametrize("outputs", [0, 2])
def test_under_a_head_that_pools_one_token_behind_the_outputs_lives_however_low_the_logits_are(outputs: int) -> None:
    trace = replace(random_trace(4, [7, 5], layers=3, heads=2, padding=2), pools=True)
    p_logit = torch.full((3,), -60.0)
    plan = plan_concrete(trace, p_logit, 0.1, 0.1, outputs, 1e-5).plan
    last = concrete_plan(trace, p_logit, outputs=outputs).plan.alive[:, -2, outputs:]
    alive = plan.alive[:, -2, outputs:]
    assert torch.equal(alive.sum(-1), torch.ones(len(alive))) and torch.equal(alive.int().argmax(-1), last.argmax(-1))
