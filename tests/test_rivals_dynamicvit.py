"""DynamicViT against loops, cases worked by hand, and what the paper says of its counts, masks and losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import make_images, make_inputs
from sttabt.core.distill import token_divergence
from sttabt.core.dynamicvit import attend_to_kept, decide, kept_tokens, ratio_loss
from sttabt.data.base import Batch
from sttabt.data.task import Task
from sttabt.engine.dense import run_dense
from sttabt.engine.entering import run_entering, run_entering_masked, run_entering_soft
from sttabt.errors import UserError
from sttabt.lit.modules import Pruning
from sttabt.methods.dynamicvit import Predictor, predictor_macs
from sttabt.models.frozen import freeze
from sttabt.models.pruned import PrunedModel
from sttabt.settings import TrainingSettings
from sttabt.settings.methods.dynamicvit import DynamicVitSettings
from sttabt.testing.models import make_example, make_pruned


def _model(backbone: str = "test_vit", **settings: Any) -> PrunedModel:
    return make_pruned(make_example(backbone), "dynamicvit", **settings)


# --- formulas


def test_stages_keep_r_r2_r3_of_the_patches() -> None:
    """DeiT-S with r = 0.7: 137, 96 and 67 of 196 patches."""
    tokens = torch.tensor([196, 10, 1, 0])
    assert [kept_tokens(0.7, stage, tokens).tolist() for stage in (1, 2, 3)] == [
        [137, 7, 1, 1],
        [96, 4, 1, 1],
        [67, 3, 1, 1],
    ]
    assert kept_tokens(1.0, 3, tokens).tolist() == [196, 10, 1, 1]
    assert kept_tokens(0.9, 2, torch.tensor([100])).tolist() == [81], "0.9 * 0.9 * 100 is 81.00000000000001 or less"


def test_a_token_sees_those_that_are_kept_and_itself() -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    decision = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    real = torch.tensor([[True, True, True, False]])
    found = attend_to_kept(scores, decision, real)
    for head in range(2):
        for query in range(3):
            seen = sorted({0, 2, query})
            weight = {key: math.exp(float(scores[0, head, query, key])) for key in seen}
            for key in range(4):
                expected = weight.get(key, 0.0) / sum(weight.values())
                assert float(found[0, head, query, key]) == pytest.approx(expected)
    everything = attend_to_kept(scores, torch.ones_like(decision), torch.ones_like(real))
    torch.testing.assert_close(everything, scores.softmax(-1))


def test_the_gradient_of_a_dropped_token_is_what_seeing_it_would_change() -> None:
    """Equation 11 is a quotient: its derivative at a decision of 0, by differences."""
    torch.manual_seed(1)
    scores, value = torch.randn(1, 1, 3, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    real = torch.ones(1, 3, dtype=torch.bool)

    def output(dropped: Tensor) -> Tensor:
        decision = torch.stack([torch.ones_like(dropped), dropped, torch.ones_like(dropped)])[None]
        return (attend_to_kept(scores, decision, real)[0, 0, 0] @ value).sum()

    at_zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(output(at_zero), at_zero)
    step = 1e-6
    difference = (
        output(torch.tensor(step, dtype=torch.float64)) - output(torch.tensor(0.0, dtype=torch.float64))
    ) / step
    assert float(found) == pytest.approx(float(difference), rel=1e-4) and float(found) != 0


def test_decisions_are_hard_nested_and_drawn_as_the_probabilities_say() -> None:
    torch.manual_seed(2)
    logits = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [9.0, 0.0]]]).expand(20000, -1, -1).clone().requires_grad_()
    before = torch.tensor([1.0, 1.0, 0.0])
    drawn = decide(logits.log_softmax(-1), before, noisy=True)
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and not drawn[:, 2].any()
    assert drawn.mean(0).tolist()[:2] == pytest.approx([0.5, 1 / (1 + math.exp(-2))], abs=0.02)
    drawn.sum().backward()
    assert logits.grad is not None and (logits.grad[:, :2, 0] > 0).all() and not logits.grad[:, 2].any()
    sure = decide(logits.log_softmax(-1), before, noisy=False)
    assert sure[0].tolist() == [1.0, 1.0, 0.0]
    (slope,) = torch.autograd.grad(sure.sum(), logits)
    assert slope[0, 0, 0] == pytest.approx(0.25), "the derivative of the probability, 0.5 * 0.5"


def test_losses_by_hand() -> None:
    """Two stages at r = 0.5. The first keeps 3/4 and 1/2 of what may go, the second 1/4 and 0."""
    among = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()
    first = torch.tensor([[1.0, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    second = torch.tensor([[1.0, 0, 0, 1, 0], [1, 0, 0, 0, 0]])
    expected = ((0.75 - 0.5) ** 2 + 0 + 0 + (0 - 0.25) ** 2) / 4
    assert float(ratio_loss([first, second], among, 0.5)) == pytest.approx(expected)


def test_token_distillation_counts_kept_rows_whatever_their_scale() -> None:
    torch.manual_seed(3)
    student, teacher = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    rows = torch.tensor([[0, 1, 1], [0, 0, 1]])
    total = 0.0
    for sample, row in ((0, 1), (0, 2), (1, 2)):
        one, other = (
            (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() for x in (student[sample, row], teacher[sample, row])
        )
        total += float((one - other).square().mean()) / 3
    assert float(token_divergence(student, teacher, rows)) == pytest.approx(total, rel=1e-5)
    assert float(token_divergence(5 * teacher, teacher, rows)) == pytest.approx(0, abs=1e-4)


def test_a_module_reads_a_token_beside_the_mean_of_those_that_are_kept() -> None:
    torch.manual_seed(4)
    module, x = Predictor(12), torch.randn(2, 5, 12)
    kept = torch.tensor([[1.0, 1, 0, 0, 1], [1, 0, 0, 0, 0]])
    found = module(x, kept)
    norm, widen, _ = module.features
    for sample in range(2):
        hidden = [F.gelu(widen(norm(row))) for row in x[sample]]
        mean = sum(row[6:] for row, own in zip(hidden, kept[sample], strict=True) if own) / kept[sample].sum()
        for place, row in enumerate(hidden):
            expected = module.score(torch.cat([row[:6], mean])).softmax(-1).log()
            torch.testing.assert_close(found[sample, place], expected)
    assert predictor_macs(10, 12) == 10 * (12 * 12 + 12 * 6 + 6 * 3 + 3 * 2)


# --- runs


@torch.inference_mode()
def test_counts_fall_in_front_of_the_deciding_layers() -> None:
    """16 patches: 11, 7 and 5 of them enter the layers 1, 3 and 4 of 6."""
    counts = _model().run(make_images("test_vit")).plan.counts.tolist()
    assert counts == [[17, 12, 12, 8, 6, 6, 1]] * 4


@torch.inference_mode()
def test_what_is_likeliest_to_be_kept_is_kept() -> None:
    model, images = _model(layers=[2], keep_ratio=0.5), make_images("test_vit")
    states = run_dense(model.base, images).hidden[2]
    (module,) = model.method.predictors
    likely = module(states[:, 1:], torch.ones(4, 16))[..., 0]
    best = likely.topk(8).indices + 1
    found = model.run(images).plan.alive[:, 2]
    for sample in range(4):
        assert set(found[sample].nonzero().flatten().tolist()) == {0, *best[sample].tolist()}


@torch.inference_mode()
def test_keeping_all_is_the_dense_model(backbone_name: str) -> None:
    model, inputs = _model(backbone_name, keep_ratio=1.0), make_inputs(backbone_name)
    torch.testing.assert_close(model.run(inputs).logits, model.base(inputs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(freeze(model).run(inputs).logits, model.base(inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["test_vit", "distilled", "lvvit_auxiliary", "bert"])
@torch.inference_mode()
def test_a_masked_training_run_is_the_run_that_drops(backbone: str) -> None:
    """Section 3.3: what is masked in training has no influence on what is kept."""
    model, inputs = _model(backbone), make_inputs(backbone)
    base, deciding = model.base, model.method.deciding
    prepared = base.prepare(inputs)
    rule = model.method._rule(base.real(prepared))
    soft = run_entering_soft(base, prepared, lambda layer, x, before: rule(layer, x, before > 0).to(x.dtype), deciding)
    hard = run_entering(base, prepared, rule, deciding)
    masked = run_entering_masked(base, prepared, rule, deciding)
    for stage, layer in enumerate(deciding):
        assert torch.equal(soft.decisions[stage] > 0, hard.plan.alive[:, layer])
    torch.testing.assert_close(soft.logits, hard.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(masked.logits, hard.logits, atol=1e-5, rtol=1e-5)


def test_modules_start_alike_whatever_was_drawn_before() -> None:
    torch.manual_seed(5)
    first = _model().method.state_dict()
    torch.rand(3)
    example = make_example("test_vit")
    torch.rand(7)
    other = make_pruned(example, "dynamicvit").method.state_dict()
    assert first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)


# --- training


def test_every_loss_reaches_the_modules_or_the_weights() -> None:
    model = _model(training=TrainingSettings(epochs=2, learning_rate=0.01)).train()
    images = make_images("test_vit")
    torch.manual_seed(6)
    pruning = Pruning(model, model.base, model.method.settings, Task("accuracy", 5))
    terms = pruning.terms(Batch(images, torch.arange(4)))
    assert set(terms) == {"task", "ratio", "distillation", "tokens"}
    modules, weight = list(model.method.predictors.parameters()), model.base.model.blocks[0].attn.qkv.weight
    for name, term in terms.items():
        grads = torch.autograd.grad(term, [*modules, weight], retain_graph=True, allow_unused=True)
        reached = [grad is not None and bool(grad.any()) for grad in grads]
        assert reached[-1], f"{name} trains the base weights"
        assert any(reached[:-1]), f"{name} trains the modules"


def test_the_ratio_is_learned() -> None:
    """From any start the share that is drawn comes near r^s."""
    model = _model(keep_ratio=0.3).train()
    images = make_images("test_vit", 16)
    optimizer = torch.optim.Adam(model.method.predictors.parameters(), lr=5e-3)
    torch.manual_seed(7)
    losses = []
    for _ in range(60):
        loss = model.soft(images).terms["ratio"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) / 10 < 0.3 * losses[0]


@pytest.mark.parametrize(("layers", "message"), [([0, 2], "and 0 cannot"), ([3, 2], "must rise")])
def test_layers_that_cannot_decide_are_refused(layers: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DynamicVitSettings(method="dynamicvit", layers=layers).check_model(6)
