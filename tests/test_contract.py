"""What every method on every backbone must do. Methods are found by walking the package."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import make_approx, make_backbone, make_images
from sttabt.core.plan import keep_all
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.methods import find_method, method_names
from sttabt.methods.base import MergingMethod, OnlineMethod, TrainedMethod
from sttabt.pruned import PrunedModel
from sttabt.settings import SPARSITY_SCHEMAS

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
    if all(hasattr(SPARSITY_SCHEMAS[name], key) for key in variant)
]


def make_model(backbone_name: str, method: str, variant: dict) -> PrunedModel:
    base = make_backbone(backbone_name)
    settings = replace(SPARSITY_SCHEMAS[method](method=method), **variant)
    built = find_method(method)(settings, base.layers, base.outputs)
    approx = make_approx(base, backbone_name) if built.attention == "approximate" else None
    return PrunedModel(base, built, approx).eval()


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())]))
def model(request: pytest.FixtureRequest, backbone_name: str) -> PrunedModel:
    return make_model(backbone_name, *request.param)


def test_every_method_has_a_schema_and_a_card() -> None:
    assert set(method_names()) == set(SPARSITY_SCHEMAS)
    for name in method_names():
        assert find_method(name).card.title and find_method(name).card.source
        assert find_method(name).card.trained == issubclass(find_method(name), TrainedMethod)


@torch.inference_mode()
def test_masked_equals_dropped(model: PrunedModel, backbone_name: str) -> None:
    if isinstance(model.method, MergingMethod):
        pytest.skip("merging has no masked form: tests/test_merge.py compares it with a slow reference")
    images = make_images(backbone_name)
    dropped, masked = model(images), model(images, masked=True)
    assert torch.equal(dropped.plan.alive, masked.plan.alive)
    torch.testing.assert_close(dropped.logits, masked.logits, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_plans_are_nested_and_keep_the_output_tokens(model: PrunedModel, backbone_name: str) -> None:
    plan = model(make_images(backbone_name)).plan
    plan.check(model.base.outputs)
    assert plan.alive.shape == (4, model.base.layers + 1, model.base.tokens)
    assert (plan.alive[:, -1].sum(-1) == model.base.outputs).all()


@torch.inference_mode()
def test_a_sample_does_not_depend_on_its_batch(model: PrunedModel, backbone_name: str) -> None:
    images = make_images(backbone_name)
    together, order = model(images), torch.tensor([2, 0, 3, 1])
    shuffled = model(images[order])
    assert torch.equal(shuffled.plan.alive, together.plan.alive[order])
    torch.testing.assert_close(shuffled.logits, together.logits[order], atol=1e-5, rtol=1e-5)
    alone = model(images[1:2])
    assert torch.equal(alone.plan.alive, together.plan.alive[1:2])
    torch.testing.assert_close(alone.logits, together.logits[1:2], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_multiply_adds_are_those_that_torch_counts(model: PrunedModel, backbone_name: str) -> None:
    # Online methods pad a batch of unequal counts, so that they are counted a sample at a time.
    for image in make_images(backbone_name).split(1 if isinstance(model.method, OnlineMethod) else 4):
        run = model(image)
        with FlopCounterMode(display=False) as counter:
            model(image)
        counted = counter.get_total_flops() / 2 / len(image)
        assert sum(model.macs(run.plan, run.real).values()) == pytest.approx(counted, rel=1e-3)


@torch.inference_mode()
def test_keeping_everything_is_the_dense_model(backbone_name: str) -> None:
    base, images = make_backbone(backbone_name), make_images(backbone_name)
    everything = keep_all(base.real(images), base.layers, base.outputs)
    dense = base(images)
    for run in (run_dropped, run_masked):
        torch.testing.assert_close(run(base, images, everything), dense, atol=1e-5, rtol=1e-5)
    with FlopCounterMode(display=False) as counter:
        base(images)
    model = make_model(backbone_name, "dense", {})
    assert sum(model.dense_macs().values()) == pytest.approx(counter.get_total_flops() / 2 / len(images), rel=1e-3)


@pytest.mark.parametrize("method", ["backtracking", "random"])
@torch.inference_mode()
def test_keep_ratio_one_is_the_dense_model(backbone_name: str, method: str) -> None:
    model, images = make_model(backbone_name, method, {"keep_ratio": 1.0}), make_images(backbone_name)
    torch.testing.assert_close(model(images).logits, model.base(images), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_more_is_kept_when_more_is_asked_for(backbone_name: str) -> None:
    images = make_images(backbone_name)
    for method, setting, values in [
        ("backtracking", "keep_ratio", (0.2, 0.5, 0.9)),
        ("random", "keep_ratio", (0.2, 0.5, 0.9)),
        ("forward_topk", "keep_ratio", (0.2, 0.5, 0.9)),
        ("concrete", "p_logit", (-3.0, -1.0, 1.0)),
    ]:
        kept = [make_model(backbone_name, method, {setting: value})(images).plan.occupancy().mean() for value in values]
        assert kept[0] < kept[1] < kept[2], method


@torch.inference_mode()
def test_what_is_dropped_is_not_read(backbone_name: str) -> None:
    """With the plan fixed, the pixels of a patch that no layer reads change nothing: it is not embedded."""
    model, images = make_model(backbone_name, "random", {"keep_ratio": 0.3}), make_images(backbone_name)
    plan = model.plan(images)
    rows, columns = model.base.grid
    gone = ~plan.alive[:, 0, model.base.outputs :].unflatten(1, (rows, columns))
    pixels = gone.repeat_interleave(images.shape[-2] // rows, 1).repeat_interleave(images.shape[-1] // columns, 2)
    changed = images.masked_fill(pixels[:, None], 1e6)
    assert not torch.equal(changed, images)
    torch.testing.assert_close(run_dropped(model.base, changed, plan), run_dropped(model.base, images, plan))
