"""Rivals in plain torch, as the benchmark times them: they compute what the engines do, and cost what is counted."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import make_backbone, make_images
from sttabt.bench.rivals import masks_macs, plain_tome_macs, run_plain_tome
from sttabt.bench.variants import make_model, make_variants
from sttabt.methods.dynamicvit import DynamicVit
from sttabt.settings import BenchSettings

near = torch.testing.assert_close


@pytest.mark.parametrize("merged", [0, 1, 7, 40])
@pytest.mark.parametrize("backbone", ["digits", "distilled", "lvvit", "lvvit_auxiliary", "mean_of_patches", "siglip"])
@torch.inference_mode()
def test_plain_tome_is_the_engines(backbone: str, merged: int) -> None:
    base, images = make_backbone(backbone), make_images(backbone)
    model = make_model("tome", base, merged=merged)
    near(run_plain_tome(base, images, merged), model.run(images).logits, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_merging_changes_what_plain_tome_computes() -> None:
    base, images = make_backbone("digits"), make_images("digits")
    assert (run_plain_tome(base, images, 7) - base(images)).abs().max() > 1e-3


@pytest.mark.parametrize("backbone", ["digits", "lvvit", "siglip"])
@torch.inference_mode()
def test_masks_are_those_that_dynamicvit_trains_with(backbone: str) -> None:
    """Drawn from the same seed."""
    base, images = make_backbone(backbone), make_images(backbone)
    settings = BenchSettings(image_sizes=[28], keeps=[0.4], factors=[4], merged=[8])
    masks = make_variants(base, [], images, settings)[-1]
    torch.manual_seed(0)
    found = masks.run()
    torch.manual_seed(0)
    model = make_model("dynamicvit", base)
    model.method.train()
    near(found, model.soft(images).logits)
    torch.manual_seed(1)
    assert not torch.equal(found, masks.run()), "decisions are drawn"


@pytest.mark.parametrize("merged", [0, 7, 40])
@torch.inference_mode()
def test_multiply_adds_are_those_that_run(merged: int) -> None:
    base, images = make_backbone("digits"), make_images("digits")
    method = make_model("dynamicvit", base).method
    assert isinstance(method, DynamicVit)
    for run, macs in (
        (lambda: run_plain_tome(base, images, merged), plain_tome_macs(base, merged)),
        (lambda: method.soft(base, images, None), masks_macs(base, method)),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        assert counter.get_total_flops() == 2 * macs * len(images)
