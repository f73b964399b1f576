"""The cascade: who answers a sample, what that costs, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sttabt
from sttabt.core.text import Text
from sttabt.engine.dense import run_dense
from sttabt.errors import UserError
from sttabt.methods.base import dense_macs
from sttabt.models.cascade import pick
from sttabt.models.pruned import PrunedModel
from sttabt.testing.models import make_example, make_pruned

BACKBONES = ["digits", "lvvit", "lvvit_shared_stem", "lvvit_auxiliary", "bert", "distilbert"]


def _probabilities(model: PrunedModel, inputs: Any) -> torch.Tensor:
    """What the approximate network says of each sample, by the plain engine."""
    assert model.approx is not None
    return run_dense(model.approx.backbone, model.base.prepare(inputs)).logits.softmax(-1)


def _halved(backbone: str) -> tuple[PrunedModel, Any, torch.Tensor]:
    """A cascade whose network is sure of half of four samples; and of which."""
    inputs = make_example(backbone).inputs
    model = make_pruned(make_example(backbone), "cascade")
    likeliest = _probabilities(model, inputs).amax(-1)
    threshold = float(likeliest.sort().values[1:3].mean())
    model.method.settings.sure = threshold
    return model, inputs, likeliest > threshold


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_sure_samples_have_the_networks_logits_and_the_others_those_of_back_tracking(backbone: str) -> None:
    model, inputs, sure = _halved(backbone)
    assert sure.sum() == 2
    run = model.run(inputs)
    other = make_pruned(make_example(backbone), "backtracking", keep_ratio=model.method.settings.keep_ratio)
    expected = other.run(inputs)
    torch.testing.assert_close(run.logits[sure].softmax(-1), _probabilities(model, inputs)[sure])
    torch.testing.assert_close(run.logits[~sure], expected.logits[~sure])
    assert torch.equal(run.plan.alive[~sure], expected.plan.alive[~sure])
    assert not run.plan.alive[sure].any() and torch.equal(model.plan(inputs).alive, run.plan.alive)


@pytest.mark.parametrize("backbone", ["digits", "lvvit_shared_stem"])
@torch.no_grad()
def test_what_is_answered_costs_the_network_and_the_stem_alone(backbone: str) -> None:
    model, inputs, _ = _halved(backbone)
    assert model.approx is not None
    model.method.settings.sure = 0.01
    run, network = model.run(inputs), model.approx.backbone
    spent = model.macs(run)
    stem = model.base.architecture.stem
    assert spent["stem"] == stem and spent["projections"] == spent["attention"] == spent["planning"] == 0
    whole = sum(dense_macs(network, torch.ones(1, model.base.tokens, dtype=torch.bool)).values())
    assert 0.7 * whole < spent["approximate_network"] < whole  # its last layer computes what its head reads alone
    assert sum(spent.values()) == pytest.approx(stem + spent["approximate_network"])


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_where_all_tokens_are_kept_the_rest_is_the_dense_model_and_nothing_is_planned(backbone: str) -> None:
    model, inputs, sure = _halved(backbone)
    model.method.settings.keep_ratio = 1.0
    run = model.run(inputs)
    torch.testing.assert_close(run.logits[~sure], run_dense(model.base, model.base.prepare(inputs)).logits[~sure])
    assert model.trace(inputs) is None
    spent = model.macs(run)
    model.method.settings.sure = 0.01
    asked = model.macs(model.run(inputs))
    assert spent["planning"] == 0 and spent["approximate_network"] == asked["approximate_network"]
    if backbone in ("digits", "lvvit_shared_stem"):  # of equally many tokens; of the last layer what the head reads
        layers, tokens = model.base.layers, model.base.tokens
        computed = ((layers - 1) * tokens + model.base.outputs) / (layers * tokens)
        assert spent["feed_forward"] == pytest.approx(computed / 2 * model.dense_macs(run.real)["feed_forward"])
    frozen = sttabt.freeze(model)
    frozen.method.settings.sure = model.method.settings.sure = 1.0
    torch.testing.assert_close(frozen.run(inputs).logits, model.run(inputs).logits, atol=1e-4, rtol=1e-4)


def test_no_part_is_timed_that_a_run_does_not_compute() -> None:
    model, _, _ = _halved("digits")
    assert not model.steps() and make_pruned(make_example("digits"), "backtracking").steps()


@torch.no_grad()
def test_a_plan_computes_no_layer_of_the_base_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, sure = _halved("digits")
    computed: list[int] = []
    finish = model.base.finish
    monkeypatch.setattr(model.base, "finish", lambda layer, *rest: (computed.append(layer), finish(layer, *rest))[1])
    alive = model.plan(inputs).alive
    assert not computed and torch.equal(~alive.flatten(1).any(1), sure)
    model.run(inputs)
    assert computed == list(range(model.base.layers))


@torch.no_grad()
def test_nobody_is_surer_than_1() -> None:
    model, inputs, _ = _halved("digits")
    model.method.settings.sure = 1.0
    assert model.run(inputs).plan.alive.flatten(1).any(1).all()


@pytest.mark.parametrize("backbone", ["bert_mean", "siglip_embedding"])
def test_an_encoder_without_a_classifier_is_refused(backbone: str) -> None:
    with pytest.raises(UserError, match=r"asks how sure a classifier is.*backtracking"):
        make_pruned(make_example(backbone), "cascade")


def test_export_names_what_would_serve(tmp_path: Path) -> None:
    model, _, _ = _halved("digits")
    with pytest.raises(UserError, match=r"cascade .*dense, backtracking and concrete"):
        sttabt.export(model, tmp_path / "model.onnx")


def test_pick_takes_samples_of_every_kind_of_input() -> None:
    places = [2, 0]
    images = torch.arange(6.0).view(3, 2)
    assert torch.equal(pick(images, places), images[[2, 0]])
    text = Text(torch.arange(6).view(3, 2), torch.zeros(3, 2).long(), torch.ones(3, 2).bool())
    assert isinstance(pick(text, places), Text) and torch.equal(pick(text, places).ids, text.ids[[2, 0]])
    base, inputs = make_example("lvvit_shared_stem")[:2]
    prepared: Any = base.prepare(inputs)
    few: Any = pick(prepared, places)
    assert few.stem is prepared.stem and torch.equal(few.features, prepared.features[places])


@pytest.mark.parametrize("sure", [0.01, 1.0])
def test_an_image_of_nan_is_named_whoever_would_answer_it(sure: float) -> None:
    model, inputs, _ = _halved("digits")
    model.method.settings.sure = sure
    inputs[2, 0, 3, 3] = torch.nan
    for each in (model, sttabt.freeze(model)):
        with pytest.raises(UserError, match="image 2 of the batch holds NaN or infinity"):
            each.run(inputs)


def test_a_budget_says_how_near_it_is_on_other_samples(caplog: pytest.LogCaptureFixture) -> None:
    model, inputs, _ = _halved("digits")
    sttabt.calibrate(model, 0.6, [inputs])
    run = model.run(inputs)
    went_on = int(run.plan.alive.flatten(1).any(1).sum())
    assert 0 < went_on < 4
    line = next(record.getMessage() for record in caplog.records if "go on to the base model" in record.getMessage())
    reached = model.calibration.reached if model.calibration else 0.0
    assert f"found on 4 samples, of which {went_on} go on" in line and line.endswith("; give more calibration batches")
    # The share that goes on, p, has a standard error of sqrt(p (1 - p) / n); the cost is about in proportion to p.
    share = went_on / 4
    assert f"by {reached * (share * (1 - share) / 4) ** 0.5 / share:.2g};" in line


def test_it_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    model, inputs, _ = _halved("digits")
    model.save_pretrained(tmp_path / "saved")
    again = sttabt.load(tmp_path / "saved")
    assert again.method.settings == model.method.settings
    assert torch.equal(again.run(inputs).logits, model.run(inputs).logits)
