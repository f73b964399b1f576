"""DiffRate's formulas by hand and against loops; its soft run against its hard one; what learns and what stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conftest import make_backbone, make_inputs
from sttabt.cli.composition import compose_settings
from sttabt.core.cost import Architecture, encoder_macs
from sttabt.core.diffrate import compress, expected_shares, kept_counts, kept_probability, start_logits
from sttabt.core.plan import output_tokens
from sttabt.data.task import Task
from sttabt.engine.merging_soft import SoftMerging, SoftRows, run_merging_soft
from sttabt.errors import UserError
from sttabt.lit.modules import Pruning
from sttabt.methods.base import dense_macs
from sttabt.methods.diffrate import share_of_macs
from sttabt.models.frozen import freeze
from sttabt.models.pruned import PrunedModel
from sttabt.settings.methods.diffrate import DiffRateSettings
from sttabt.settings.training import TrainingSettings
from sttabt.testing.models import make_example, make_pruned


def _model(backbone: str = "digits", **settings: object) -> PrunedModel:
    return make_pruned(make_example(backbone), "diffrate", **settings)


# --- formulas


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_the_start_expects_its_share(share: float) -> None:
    assert float(expected_shares(start_logits(share, 20))) == pytest.approx(share, abs=1e-5)


def test_equal_probabilities_are_the_share_in_the_middle() -> None:
    assert start_logits((20 + 1) / 40, 20).abs().max() < 1e-3


def test_probabilities_of_being_kept_by_hand() -> None:
    """Candidates 1/4 .. 1; of 4 tokens they keep 1, 2, 3, 4, of 8 tokens twice as many, of 2 tokens 1, 1, 2, 2."""
    chances = torch.tensor([0.1, 0.2, 0.3, 0.4])
    rank = torch.arange(8).expand(3, 8)
    found = kept_probability(chances.log(), rank, torch.tensor([4, 8, 2]))
    assert found[0, :4].tolist() == pytest.approx([1.0, 0.9, 0.7, 0.4])
    assert found[1].tolist() == pytest.approx([1.0, 1.0, 0.9, 0.9, 0.7, 0.7, 0.4, 0.4])
    assert found[2, :2].tolist() == pytest.approx([1.0, 0.7])


def test_the_probabilities_sum_to_the_tokens_that_are_expected() -> None:
    """With a candidate a token, as in the paper."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0))
    found = kept_probability(logits, torch.arange(12)[None], torch.tensor([12])).sum()
    assert float(found) == pytest.approx(12 * float(expected_shares(logits)), rel=1e-5)


def test_counts_by_hand() -> None:
    assert kept_counts(0.3, [11, 11, 5, 2, 1], [11, 3, 5, 2, 1], outputs=1) == [4, 3, 3, 2, 1]
    assert kept_counts(0.01, [11, 2], [11, 2], outputs=1) == [2, 2], "one token is left"
    assert kept_counts(1.0, [11], [7], outputs=2) == [7]


def slow_compress(x: Tensor, importance: list[float], pruned_to: int, merged_to: int, outputs: int) -> list[int]:
    order = sorted(range(outputs, len(x)), key=lambda row: -importance[row])
    kept, merging = order[: merged_to - outputs], order[merged_to - outputs : pruned_to - outputs]
    target = [row if row < outputs or row in kept else -1 for row in range(len(x))]
    for row in merging:
        target[row] = max(kept, key=lambda other, row=row: float(torch.cosine_similarity(x[row], x[other], dim=0)))
    return target


@pytest.mark.parametrize(("pruned_to", "merged_to"), [([9, 6, 3], [5, 6, 2]), ([7, 4, 4], [6, 2, 4]), ([8, 7, 4],) * 2])
@pytest.mark.parametrize("outputs", [1, 2])
def test_compressing_is_that_of_loops(pruned_to: list[int], merged_to: list[int], outputs: int) -> None:
    generator, counts = torch.Generator().manual_seed(0), [9, 7, 4]
    x, importance = torch.randn(3, 9, 5, generator=generator), torch.rand(3, 9, generator=generator)
    merged_to = [max(kept, outputs + 1) for kept in merged_to]
    pruned_to = [max(kept, each) for kept, each in zip(pruned_to, merged_to, strict=True)]
    alive = torch.arange(9) < torch.tensor(counts)[:, None]
    target = compress(x, importance, alive, pruned_to, merged_to, outputs).target
    for sample, rows in enumerate(counts):
        each = importance[sample].tolist(), pruned_to[sample], merged_to[sample], outputs
        assert target[sample, :rows].tolist() == slow_compress(x[sample, :rows], *each)


# --- runs


@torch.inference_mode()
def test_keeping_all_is_the_dense_model(class_token_name: str) -> None:
    model, inputs = _model(class_token_name, pruned_to=1.0, merged_to=1.0), make_inputs(class_token_name)
    for logits in (model.run(inputs).logits, model.soft(inputs).logits):
        torch.testing.assert_close(logits, model.base(inputs), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_soft_run_gives_the_logits_of_the_hard_one(class_token_name: str) -> None:
    """The mask is discrete on the way there, and soft on the way back alone."""
    model, inputs = _model(class_token_name, pruned_to=0.7, merged_to=0.7), make_inputs(class_token_name)
    run = model.run(inputs)
    assert (run.plan.counts[:, 1] < run.plan.counts[:, 0]).any()
    torch.testing.assert_close(model.soft(inputs).logits, run.logits, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_layers_keep_the_shares_that_were_found() -> None:
    """Each text of its own tokens, 8, 1, 12 and 5 behind the class token."""
    model, text = _model("bert"), make_inputs("bert")
    found = [torch.stack([start_logits(share, 64) for share in pair]) for pair in ((0.8, 0.6), (0.9, 0.25))]
    model.method.logits.copy_(torch.stack(found))
    for each in (model, freeze(model)):
        counts = each.run(text).plan.counts.tolist()
        assert counts == [[9, 6, 3, 1], [2, 2, 2, 1], [13, 9, 4, 1], [6, 4, 3, 1]]


def test_the_gradient_of_a_mask_is_what_a_little_of_the_row_would_change() -> None:
    """Of a row that was dropped, by finite differences in double precision."""
    base = make_backbone("digits").double()
    images = make_inputs("digits").double()

    def logits(factor: Tensor) -> Tensor:
        def rule(layer: int, rows: SoftRows) -> SoftMerging:
            target = torch.arange(rows.alive.shape[1]).repeat(len(images), 1)
            if layer == 0:
                target[:, 5] = -1
                return SoftMerging(
                    target, torch.ones_like(rows.of_class).index_put((torch.arange(4), torch.full((4,), 5)), factor)
                )
            return SoftMerging(target, torch.ones_like(rows.of_class))

        return run_merging_soft(base, images, rule)

    factor = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (logits(factor) * direction).sum().backward()
    with torch.no_grad():
        for sample in range(4):
            step = torch.zeros(4, dtype=torch.float64)
            step[sample] = 1e-6
            changed = ((logits(step) - logits(torch.zeros_like(step))) * direction).sum() / 1e-6
            assert float(factor.grad[sample]) == pytest.approx(float(changed), rel=1e-4, abs=1e-9)


@torch.inference_mode()
@pytest.mark.parametrize("backbone", ["digits", "lvvit_auxiliary", "bert"])
def test_the_target_counts_what_the_model_is_said_to_cost(backbone: str) -> None:
    """Without what deciding costs, where counts are whole."""
    model, inputs = _model(backbone), make_inputs(backbone)
    base = model.base
    if backbone == "bert":  # equally long
        inputs = type(inputs)(*(field[2:3] for field in inputs))
    patches = int(base.real(inputs)[0].sum()) - base.outputs
    shares = torch.tensor([[0.75, 0.5], [0.5, 0.25]])[: base.layers - 1] * (patches // 4 * 4 / patches)
    model.method.logits.copy_(torch.stack([torch.stack([start_logits(float(s), 64) for s in pair]) for pair in shares]))
    macs = model.macs(model.run(inputs))
    dense = sum(dense_macs(base, base.real(inputs)).values())
    found = share_of_macs(base, expected_shares(model.method.logits), base.real(inputs))
    assert float(found) == pytest.approx((sum(macs.values()) - macs["planning"]) / dense, rel=1e-5)


# Kept after pruning and after merging in each layer of DeiT-S, and the GFLOPs of that, as the authors released them.
PUBLISHED = {
    2.3: ([197, 192, 168, 143, 121, 105, 92, 74, 62, 45, 33, 3], [197, 180, 156, 127, 109, 98, 80, 66, 52, 37, 31, 3]),
    2.9: (
        [197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3],
        [197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3],
    ),
}


@pytest.mark.parametrize("gflops", PUBLISHED)
def test_published_counts_cost_what_is_published(gflops: float) -> None:
    pruned, merged = PUBLISHED[gflops]
    counts, whole = [197], [197] * 12
    for layer, kept in enumerate(merged):
        (first,) = kept_counts((pruned[layer] - 1) / 196, [197], counts[-1:], 1)
        assert first == min(pruned[layer], counts[-1])
        counts += kept_counts((kept - 1) / 196, [197], [first], 1)
    assert counts[1:] == merged
    deit = Architecture(layers=12, width=384, heads=6, feed_forward=1536, classes=1000, patch_inputs=768)
    assert sum(encoder_macs(deit, whole, whole, 196).values()) / 1e9 == pytest.approx(4.6, abs=0.05)
    macs = sum(encoder_macs(deit, counts[:-1], counts[1:], 196, counts[:-1], counts[:-1]).values())
    assert macs / 1e9 == pytest.approx(gflops, abs=0.05)


# --- training


def test_both_shares_learn_from_the_target_whichever_is_the_least() -> None:
    model, images = _model(macs=0.1, pruned_to=0.9, merged_to=0.6), make_inputs("digits")
    shares = expected_shares(model.method.logits).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(share_of_macs(model.base, shares, model.base.real(images)), shares)
    assert (gradient > 0).all() and torch.equal(gradient[:, 0], gradient[:, 1])


def test_the_target_is_reached_by_steps_on_its_term() -> None:
    model, images = _model(macs=0.45, pruned_to=0.9, merged_to=0.9), make_inputs("digits")
    optimizer = torch.optim.Adam([model.method.logits], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        model.soft(images).terms["macs"].backward()
        optimizer.step()
    shares = expected_shares(model.method.logits.detach())
    found = float(share_of_macs(model.base, shares, model.base.real(images)))
    assert found == pytest.approx(0.45, abs=0.01)


def test_the_task_teaches_pruning_and_merging() -> None:
    model, images = _model(pruned_to=0.7, merged_to=0.7), make_inputs("digits")
    model.soft(images).logits.square().sum().backward()
    gradient = model.method.logits.grad
    assert gradient.isfinite().all() and (gradient.abs().sum(-1) > 0).all()


def test_the_weights_stay_as_they_are() -> None:
    """Nor do a stem's statistics move, whatever mode training sets."""
    training = TrainingSettings(epochs=1, learning_rate=0.1)
    settings = DiffRateSettings(method="diffrate", training=training)
    model = _model("lvvit", pruned_to=0.7, merged_to=0.7)
    module = Pruning(model, make_backbone("lvvit"), settings, Task("accuracy", 5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    module.train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert learning == [model.method.logits] and not model.base.training and model.method.training
    optimizer = torch.optim.SGD(learning, lr=1.0)
    run = model.soft(make_inputs("lvvit"))
    (run.logits.sum() + run.terms["macs"]).backward()
    optimizer.step()
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == ["method.logits"]


def test_the_weights_learn_where_they_are_tuned() -> None:
    """Under masks, beside the rates; on the hard run alone."""
    training = TrainingSettings(epochs=2, learning_rate=0.1)
    settings = DiffRateSettings(method="diffrate", tuned=True, hard_from=0.5, training=training)
    assert settings.label == "DiffRate, fine-tuned"
    model = _model("digits", pruned_to=0.7, merged_to=0.7, tuned=True, hard_from=0.5)
    module = Pruning(model, make_backbone("digits"), settings, Task("accuracy", 10))
    module.train()
    assert model.base.training
    learning = {name for name, parameter in model.base.named_parameters() if parameter.requires_grad}
    kept = {id(each) for each in model.base.embeddings()}
    assert learning == {name for name, parameter in model.base.named_parameters() if id(parameter) not in kept}
    images = make_inputs("digits")
    run = model.soft(images)
    (run.logits.square().sum() + run.terms["macs"]).backward()
    assert all(_gradient(parameter) for name, parameter in model.base.named_parameters() if name in learning)
    assert _gradient(model.method.logits)
    model.zero_grad()
    model.run(images).logits.square().sum().backward()
    assert model.method.logits.grad is None, "frozen where tokens are gone"
    assert all(_gradient(parameter) for name, parameter in model.base.named_parameters() if name in learning)


def _gradient(parameter: torch.nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)


def test_training_on_the_hard_run_is_refused() -> None:
    given = ["name=test", "model=digits_vit", "sparsity=diffrate", "sparsity.hard_from=0.5"]
    with pytest.raises(UserError, match=r"sparsity.hard_from=0.5 .*nothing could learn"):
        compose_settings(given, output="out")
    assert compose_settings([*given, "sparsity.tuned=true"], output="out").sparsity.hard_from == 0.5


def test_a_model_without_a_class_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"DiffRate scores tokens by the attention of a class token.* reads none"):
        make_pruned(make_example("mean_of_patches"), "diffrate")


def test_rows_are_alive_until_they_merge() -> None:
    """What merges away is no longer among the rows of the next layer, and the output tokens always are."""
    model, images = _model(pruned_to=0.8, merged_to=0.5), make_inputs("digits")
    seen: list[Tensor] = []
    rule = model.method._soft_rule(model.base.real(images))

    def watched(layer: int, rows: SoftRows) -> SoftMerging:
        seen.append(rows.alive)
        return rule(layer, rows)

    run_merging_soft(model.base, images, watched)
    hard = model.run(images).plan.alive
    for layer, alive in enumerate(seen):
        assert torch.equal(alive, hard[:, layer])
        assert (alive | ~output_tokens(alive, 1)).all()
