"""Fixed counts: the order against a slow search, and one graph for torch.compile."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from conftest import make_approx, make_backbone, make_images
from reference import random_trace, trace_probabilities
from sttabt.core.backtrack import backtrack, backtrack_fixed
from sttabt.core.concrete import concrete_fixed
from sttabt.core.counts import fixed_plan, mean_counts
from sttabt.core.trace import AttentionTrace
from sttabt.errors import UserError
from sttabt.methods.backtracking import Backtracking
from sttabt.models.fixed import FixedModel
from sttabt.models.pruned import PrunedModel
from sttabt.settings.methods.backtracking import BacktrackingSettings


def slow_order(probabilities: list[np.ndarray], counts: list[int], propagation: float) -> list[list[int]]:
    """Token by token, sample by sample: the most important token that is not there yet, until the count is reached."""
    orders = []
    for sample in range(len(probabilities[0])):
        order, impact = list(range(counts[-1])), dict.fromkeys(range(counts[-1]), 1 / counts[-1])
        for layer in reversed(range(len(probabilities))):
            rows = probabilities[layer][sample].mean(0)
            drawn = sum((propagation * impact[q] + 1 - propagation) * rows[q] for q in list(order)) / len(order)
            while len(order) < counts[layer]:
                order.append(max((k for k in range(len(drawn)) if k not in order), key=lambda k: drawn[k]))
            impact = {token: drawn[token] / sum(drawn[k] for k in order) for token in order}
        orders.append(order)
    return orders


@pytest.mark.parametrize("counts", [[9, 6, 4, 1], [5, 5, 2, 2], [1, 1, 1, 1]])
@pytest.mark.parametrize("propagation", [0.1, 1.0])
def test_order_is_the_slow_one(counts: list[int], propagation: float) -> None:
    trace = random_trace(3, [9, 9], layers=3, heads=2)
    found = backtrack_fixed(trace, counts, propagation, outputs=counts[-1])
    assert found.tolist() == slow_order(trace_probabilities(trace), counts, propagation)


def test_counts_of_a_plan_that_needs_no_union_give_that_plan() -> None:
    traces = [random_trace(seed, [12], layers=1, heads=2) for seed in range(8)]
    plans = [(trace, backtrack(trace, keep=[6]).plan) for trace in traces]
    alike = [(trace, plan) for trace, plan in plans if plan.alive[0, 0].sum() == 6]  # the class token was among them
    assert alike
    for trace, plan in alike:
        assert torch.equal(fixed_plan(backtrack_fixed(trace, [6, 1]), [6, 1], 12).alive, plan.alive)


def test_mean_counts_of_a_plan_with_these_counts() -> None:
    order = torch.stack([torch.randperm(8) for _ in range(3)])
    plan = fixed_plan(order[:, :6], [6, 3, 1], 8)
    assert plan.alive.sum(-1).tolist() == [[6, 3, 1]] * 3
    assert mean_counts(plan, outputs=1) == [6, 3, 1]


@pytest.mark.parametrize("counts", [[9, 6, 1], [9, 6, 7, 1], [10, 6, 4, 1], [9, 6, 4, 2]])
def test_counts_that_do_not_fit_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="counts"):
        backtrack_fixed(random_trace(0, [9], layers=3, heads=1), counts)


@pytest.mark.parametrize("find", [backtrack_fixed, concrete_fixed])
def test_a_sample_with_fewer_tokens_has_them_in_front_of_its_padding(find: Callable[..., torch.Tensor]) -> None:
    trace, lengths = random_trace(5, [9, 4, 6], layers=3, heads=2), [9, 4, 6]
    found = find(trace, [8, 5, 3, 1])
    for sample, length in enumerate(lengths):
        parts = [tuple(each[sample : sample + 1, :, :length] for each in kind) for kind in (trace.queries, trace.keys)]
        alone = AttentionTrace(parts[0], parts[1], torch.ones(1, length, dtype=torch.bool), trace.scale)
        counts = [min(count, length) for count in (8, 5, 3)]
        assert found[sample, : counts[0]].tolist() == find(alone, [*counts, 1])[0].tolist()
        assert all(token >= length for token in found[sample, counts[0] :].tolist())


def slow_concrete_order(trace: AttentionTrace, counts: list[int], propagation: float) -> list[list[int]]:
    """Percentile by percentile: the normal CDF of a score among its row's. Under a pooling head the first step weighs
    all tokens but the first."""
    orders, tokens = [], trace.real.shape[1]
    for sample in range(len(trace.real)):
        order, important = [0], dict.fromkeys(range(1, tokens) if trace.pools else [0], 1.0)
        for layer in reversed(range(trace.layers)):
            scores = (trace.queries[layer][sample] @ trace.keys[layer][sample].transpose(-1, -2)).double().numpy()
            standard = (scores - scores.mean(-1, keepdims=True)) / scores.std(-1, keepdims=True)
            rows = (0.5 * (1 + np.vectorize(math.erf)(standard / math.sqrt(2)))).mean(0)
            drawn = sum((propagation * impact + 1 - propagation) * rows[q] for q, impact in important.items())
            drawn = 0.01 + 0.99 * np.minimum(drawn / (drawn[1:] if trace.pools else drawn).max(), 1)
            while len(order) < counts[layer]:
                order.append(max((k for k in range(len(drawn)) if k not in order), key=lambda k: drawn[k]))
            important = {token: drawn[token] for token in order}
        orders.append(order)
    return orders


@pytest.mark.parametrize("counts", [[9, 6, 4, 1], [5, 5, 2, 1], [1, 1, 1, 1]])
@pytest.mark.parametrize("propagation", [0.1, 1.0])
@pytest.mark.parametrize("pools", [False, True])
def test_order_of_concrete_masks_is_the_slow_one(counts: list[int], propagation: float, pools: bool) -> None:
    trace = replace(random_trace(4, [9, 9], layers=3, heads=2), pools=pools)
    assert concrete_fixed(trace, counts, propagation).tolist() == slow_concrete_order(trace, counts, propagation)


def fixed_model(backbone_name: str, attention: str = "approximate") -> PrunedModel:
    base = make_backbone(backbone_name)
    counts = np.linspace(base.tokens, base.outputs, base.layers + 1).astype(int)[:-1].tolist()
    method = Backtracking(
        BacktrackingSettings(method="backtracking", counts=counts, attention=attention), base.layers, base.outputs
    )
    return PrunedModel(base, method, make_approx(base, backbone_name)).eval()


@pytest.mark.parametrize("attention", ["approximate", "actual"])
@torch.inference_mode()
def test_fixed_model_is_the_pruned_model(vision_name: str, attention: str) -> None:
    pruned, images = fixed_model(vision_name, attention), make_images(vision_name)
    expected = pruned.forms()["masked"](images)
    counts = pruned.method.counts
    if pruned.base.reads_survivors:
        counts = [*counts[:-1], counts[-2]]
    assert expected.plan.alive.sum(-1).tolist() == [counts] * len(images)
    torch.testing.assert_close(FixedModel(pruned)(images), expected.logits, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_torch_compile_takes_the_whole_model_without_graph_breaks(vision_name: str) -> None:
    """fullgraph raises at the first break; eager as backend needs no compiler on this machine."""
    model, images = FixedModel(fixed_model(vision_name)), make_images(vision_name)
    torch._dynamo.reset()  # other models' graphs count against the same limit
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["approximate", "actual"])
def test_any_batch_size_is_one_graph(vision_name: str, attention: str) -> None:
    """torch.export with a dynamic batch dimension, and torch.compile that never compiles twice."""
    model, images = FixedModel(fixed_model(vision_name, attention)), make_images(vision_name)
    torch._dynamo.reset()  # other models' graphs count against the same limit
    with torch.no_grad():
        exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=(graphs := CompileCounter()))
        for batch in (2, 3, 5, 7, 11):
            others = make_images(vision_name, batch)
            expected = model(others)
            torch.testing.assert_close(exported.module()(others), expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(compiled(others), expected, atol=1e-5, rtol=1e-5)
    assert graphs.frame_count == 1


def test_a_method_whose_counts_follow_the_image_is_refused() -> None:
    base = make_backbone("digits")
    method = Backtracking(BacktrackingSettings(method="backtracking"), base.layers, base.outputs)
    with pytest.raises(UserError, match=r"sparsity\.counts"):
        FixedModel(PrunedModel(base, method, make_approx(base, "digits")))
