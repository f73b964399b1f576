"""What every method on every backbone must do. Methods are found by walking the package."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import TEXTS, make_approx, make_backbone, make_inputs, one_by_one, pad_text, pick
from sttabt.backbones.lvvit import Stemmed
from sttabt.core.plan import keep_all, output_tokens
from sttabt.core.text import Text
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.errors import UserError
from sttabt.methods import find_method
from sttabt.methods.base import MergingMethod, TrainedMethod
from sttabt.models.pruned import PrunedModel
from sttabt.settings import TrainedSettings, method_names, method_settings

VARIANTS = [
    {},
    {"keep_ratio": 0.3},
    {"keep_ratio": 1.0},
    {"p_logit": -1.5},
    {"p_logit": 1.0},
    {"attention": "actual"},
    {"dynamic": True},
    {"propagation": 0.7},
    {"merged": 3},
]
CASES = [
    (name, variant)
    for name in method_names()
    for variant in VARIANTS
    if all(hasattr(method_settings(name), key) for key in variant)
]


def make_model(backbone_name: str, method: str, variant: dict) -> PrunedModel:
    base = make_backbone(backbone_name)
    settings = replace(method_settings(method)(method=method), **variant)
    built = find_method(method)(settings, base.layers, base.outputs)
    approx = make_approx(base, backbone_name) if built.attention == "approximate" else None
    return PrunedModel(base, built, approx).eval()


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())]))
def model(request: pytest.FixtureRequest, backbone_name: str) -> PrunedModel:
    if backbone_name in TEXTS and request.param[0] == "tome":
        pytest.skip("merging does not run on text: see test_merging_of_text_is_refused")
    return make_model(backbone_name, *request.param)


def test_every_method_says_what_it_is() -> None:
    assert len(set(method_names())) == len(method_names()) > 6
    for name in method_names():
        settings = method_settings(name)
        kind = find_method(name)
        assert settings.title and settings.source and settings.implementation == f"{kind.__module__}:{kind.__name__}"
        built = kind(settings(method=name), 2, 1)
        assert built.title == settings.title
        assert settings(method=name).reads_approximation == (built.attention == "approximate")
        assert issubclass(settings, TrainedSettings) == issubclass(kind, TrainedMethod)


@torch.inference_mode()
def test_masked_equals_dropped(model: PrunedModel, backbone_name: str) -> None:
    if isinstance(model.method, MergingMethod):
        pytest.skip("merging has no masked form: tests/test_merge.py compares it with a slow reference")
    inputs = make_inputs(backbone_name)
    dropped, masked = model.run(inputs), model.forms()["masked"](inputs)
    assert torch.equal(dropped.plan.alive, masked.plan.alive)
    torch.testing.assert_close(dropped.logits, masked.logits, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_plans_are_nested_and_keep_the_output_tokens(model: PrunedModel, backbone_name: str) -> None:
    run = model.run(make_inputs(backbone_name))
    alive, outputs = run.plan.alive, output_tokens(run.real, model.base.outputs)
    assert alive.shape == (4, model.base.layers + 1, run.real.shape[1]) and run.plan.layers == model.base.layers
    assert (alive[:, 1:] <= alive[:, :-1]).all(), "what is gone stays gone"
    assert not (alive & ~run.real[:, None]).any(), "padding is never alive"
    assert (alive >= outputs[:, None]).all(), "the head reads the output tokens"
    everything = alive[:, -2]
    written = [everything] if model.base.reads_survivors else [outputs, everything]  # the library's own forward: all
    assert any(torch.equal(alive[:, -1], each) for each in written)


@torch.inference_mode()
def test_a_sample_does_not_depend_on_its_batch(model: PrunedModel, backbone_name: str) -> None:
    inputs = make_inputs(backbone_name)
    together, order = model.run(inputs), torch.tensor([2, 0, 3, 1])
    shuffled = model.run(pick(inputs, order))
    assert torch.equal(shuffled.plan.alive, together.plan.alive[order])
    torch.testing.assert_close(shuffled.logits, together.logits[order], atol=1e-5, rtol=1e-5)
    for index, sample in enumerate(one_by_one(inputs)):
        alone = model.run(sample)
        tokens = alone.real.shape[1]
        assert torch.equal(alone.plan.alive[0], together.plan.alive[index, :, :tokens])
        torch.testing.assert_close(alone.logits[0], together.logits[index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone_name", TEXTS, indirect=True)
@torch.inference_mode()
def test_padding_changes_nothing(model: PrunedModel, backbone_name: str) -> None:
    inputs = make_inputs(backbone_name)
    for run in (model.run, model.forms()["masked"]):
        tight, wide = run(inputs), run(pad_text(inputs, 5))
        assert torch.equal(wide.plan.alive[..., :-5], tight.plan.alive) and not wide.plan.alive[..., -5:].any()
        torch.testing.assert_close(wide.logits, tight.logits, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_multiply_adds_are_those_that_torch_counts(model: PrunedModel, backbone_name: str) -> None:
    # A sample at a time, as the library's own forward and online methods pad a batch of unequal counts.
    for batch in one_by_one(make_inputs(backbone_name)):
        run = model.run(batch)
        with FlopCounterMode(display=False) as counter:
            model.run(batch)
        counted = counter.get_total_flops() / 2 / len(run.real)
        assert sum(model.macs(run).values()) == pytest.approx(counted, rel=1e-3)


@torch.inference_mode()
def test_many_texts_together_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where padding would cost more than calls, attention runs a text at a time, in the trace as in the model."""
    monkeypatch.setattr("sttabt.engine.packed.MACS_A_CALL", 0)
    inputs = make_inputs("bert")
    for attention in ("approximate", "actual"):
        model = make_model("bert", "backtracking", {"keep_ratio": 0.6, "attention": attention})
        run = model.run(inputs)
        with FlopCounterMode(display=False) as counter:
            model.run(inputs)
        macs = model.macs(run)
        assert sum(macs.values()) == pytest.approx(counter.get_total_flops() / 2 / 4, rel=1e-6)
        torch.testing.assert_close(run.logits, model.forms()["masked"](inputs).logits, atol=1e-5, rtol=1e-5)
        alone = [model.macs(model.run(text)) for text in one_by_one(inputs)]
        for part in ("stem", "projections", "attention", "feed_forward", "head", "approximate_network"):
            assert macs[part] == pytest.approx(sum(each[part] for each in alone) / 4), part


@torch.inference_mode()
def test_kernels_compute_no_padding() -> None:
    """A batch costs what its texts cost alone, the longest one's padding included nowhere."""
    inputs = make_inputs("bert")
    for method, changes in (("backtracking", {"keep_ratio": 0.6}), ("concrete", {"p_logit": -0.5})):
        model = make_model("bert", method, changes)
        run = model.run(inputs)
        alone = [model.macs(model.run(text)) for text in one_by_one(inputs)]
        for part, macs in model.macs(run).items():
            if part != "planning":  # is counted as if every sample had the longest one's keys
                assert macs == pytest.approx(sum(each[part] for each in alone) / len(alone)), part


@torch.inference_mode()
def test_keeping_everything_is_the_dense_model(backbone_name: str) -> None:
    base, inputs = make_backbone(backbone_name), make_inputs(backbone_name)
    everything = keep_all(base.real(inputs), base.layers, base.outputs)
    dense = base(inputs)
    for run in (run_dropped, run_masked):
        torch.testing.assert_close(run(base, inputs, everything), dense, atol=1e-5, rtol=1e-5)
    samples = one_by_one(inputs)
    with FlopCounterMode(display=False) as counter:
        for sample in samples:
            base(sample)
    macs = make_model(backbone_name, "dense", {}).dense_macs(base.real(inputs))
    assert sum(macs.values()) == pytest.approx(counter.get_total_flops() / 2 / len(samples), rel=1e-3)


@pytest.mark.parametrize("method", ["backtracking", "random"])
@torch.inference_mode()
def test_keep_ratio_one_is_the_dense_model(backbone_name: str, method: str) -> None:
    model, inputs = make_model(backbone_name, method, {"keep_ratio": 1.0}), make_inputs(backbone_name)
    torch.testing.assert_close(model.run(inputs).logits, model.base(inputs), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_more_is_kept_when_more_is_asked_for(backbone_name: str) -> None:
    inputs = make_inputs(backbone_name)
    for method, setting, values in [
        ("backtracking", "keep_ratio", (0.2, 0.5, 0.9)),
        ("random", "keep_ratio", (0.2, 0.5, 0.9)),
        ("forward_topk", "keep_ratio", (0.2, 0.5, 0.9)),
        ("concrete", "p_logit", (-3.0, -1.0, 1.0)),
    ]:
        kept = [
            make_model(backbone_name, method, {setting: value}).run(inputs).plan.occupancy().mean() for value in values
        ]
        assert kept[0] < kept[1] < kept[2], method


@torch.inference_mode()
def test_what_is_dropped_is_not_read(vision_name: str) -> None:
    """With the plan fixed, the pixels of a patch that no layer reads change nothing: it is not embedded.

    Behind a convolutional stem, which sees across patches, that goes for its output.
    """
    model, images = make_model(vision_name, "random", {"keep_ratio": 0.3}), make_inputs(vision_name)
    plan, prepared = model.plan(images), model.base.prepare(images)
    pixels = prepared.features if isinstance(prepared, Stemmed) else prepared
    rows, columns = model.base.grid
    gone = ~plan.alive[:, 0, model.base.outputs :].unflatten(1, (rows, columns))
    gone = gone.repeat_interleave(pixels.shape[-2] // rows, 1).repeat_interleave(pixels.shape[-1] // columns, 2)
    changed = pixels.masked_fill(gone[:, None], 1e6)
    assert not torch.equal(changed, pixels)
    changed = prepared._replace(features=changed) if isinstance(prepared, Stemmed) else changed
    torch.testing.assert_close(run_dropped(model.base, changed, plan), run_dropped(model.base, images, plan))


@torch.inference_mode()
def test_words_that_are_dropped_are_not_read() -> None:
    model, text = make_model("bert", "random", {"keep_ratio": 0.3}), make_inputs("bert")
    plan = model.plan(text)
    nowhere = text.ids.masked_fill(~plan.alive[:, 0], 10**6)  # outside the vocabulary: looking it up would fail
    changed = Text(nowhere, text.types, text.real)
    torch.testing.assert_close(run_dropped(model.base, changed, plan), run_dropped(model.base, text, plan))


def test_merging_of_text_is_refused() -> None:
    with pytest.raises(UserError, match="ToMe merges patches of images"):
        make_model("bert", "tome", {})
