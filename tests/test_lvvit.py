"""LV-ViT: the released sizes, its two predictions, and a stem that is computed once and counted in full."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from conftest import LVVIT, make_approx, make_backbone, make_images
from sttabt.backbones.lvvit import SIZES, LvVit
from sttabt.core.cost import encoder_macs, trace_macs
from sttabt.core.plan import TokenPlan
from sttabt.engine.dense import run_dense
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.errors import UserError
from sttabt.methods import find_method
from sttabt.models.approximate import ApproximateNetwork, ApproximationWeights, approximation_loss
from sttabt.models.pruned import PrunedModel
from sttabt.pretrained.lvvit import build_lvvit
from sttabt.settings import LVVIT_SIZES, method_settings

PUBLISHED = {"tiny": (8.53, 224), "small": (26.15, 224), "medium": (55.83, 224), "large": (150.47, 448)}  # M weights


@pytest.mark.parametrize("size", LVVIT_SIZES)
def test_a_released_size_has_as_many_weights_as_were_published(size: str) -> None:
    millions, pixels = PUBLISHED[size]
    base = build_lvvit(size, {}, 1000, 3, pixels, auxiliary=True)
    assert sum(parameter.numel() for parameter in base.parameters()) / 1e6 == pytest.approx(millions, abs=0.011)


def test_dense_lvvit_small_is_the_literature_value() -> None:
    base = build_lvvit("small", {}, 1000, 3, 224)
    every = [base.tokens] * base.layers
    parts = encoder_macs(base.architecture, every, every, base.tokens - 1)
    assert sum(parts.values()) == pytest.approx(6.6e9, rel=0.02)
    assert parts["stem"] == 112**2 * 64 * (49 * 3 + 2 * 9 * 64) + 196 * 64 * 64 * 384


def _pruned(name: str, method: str = "backtracking", **settings: object) -> PrunedModel:
    base = make_backbone(name)
    chosen = find_method(method)(method_settings(method)(method=method, **settings), base.layers, base.outputs)
    return PrunedModel(base, chosen, make_approx(base, name)).eval()


def _random_plan(base: LvVit, batch: int, fewest: int = 1) -> TokenPlan:
    """Nested sets of other counts in every sample and layer, the class token always in."""
    generator = torch.Generator().manual_seed(2)
    lives = torch.randint(0, base.layers + 1, (batch, base.tokens), generator=generator)
    lives[:, :fewest] = base.layers
    alive = torch.arange(base.layers + 1)[None, :, None] < lives[:, None]
    alive[:, -1] = torch.arange(base.tokens) == 0
    return TokenPlan.of_sets(alive)


@pytest.mark.parametrize("fewest", [1, 3])
@torch.inference_mode()
def test_the_released_prediction_is_by_the_patches_that_are_left(fewest: int) -> None:
    """Against a loop over single images, of which the tokens that are gone are cut away layer by layer."""
    base, images = make_backbone("lvvit_auxiliary"), make_images("lvvit_auxiliary")
    plan = _random_plan(base, len(images), fewest)
    plan.alive[0, -2, 1:] = False  # of the first image no patch is left: the class head decides alone
    expected = torch.stack([_one_by_one(base, image, alive) for image, alive in zip(images, plan.alive, strict=True)])
    for run in (run_dropped, run_masked):
        torch.testing.assert_close(run(base, images, plan), expected, atol=1e-5, rtol=1e-5)


def _one_by_one(base: LvVit, image: Tensor, alive: Tensor) -> Tensor:
    model, heads = base.model, base.heads
    x = model._pos_embed(model.patch_embed(image[None]))[0]
    here = torch.arange(base.tokens)
    for layer, block in enumerate(model.blocks):
        here = here[alive[layer][here]]
        query, key, value = block.attn.qkv(block.norm1(x[here])).chunk(3, -1)
        query, key, value = (rows.unflatten(-1, (heads, -1)).transpose(0, 1) for rows in (query, key, value))
        probabilities = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
        x[here] += block.attn.proj((probabilities @ value).transpose(0, 1).flatten(1))
        x[here] += block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(block.norm2(x[here]))))
    x = model.norm(x[here])
    logits = model.head(x[0])
    patches = [model.aux_head(row) for row in x[1:]]
    return logits + 0.5 * torch.stack(patches).amax(0) if patches else logits


@pytest.mark.parametrize("name", ["lvvit", "lvvit_shared_stem", "lvvit_auxiliary"])
@pytest.mark.parametrize("attention", ["approximate", "actual"])
@torch.inference_mode()
def test_every_stem_is_computed_once_and_counted_in_full(name: str, attention: str) -> None:
    model, images = _pruned(name, attention=attention, keep_ratio=0.4), make_images(name)
    calls = {"base": 0, "narrow": 0}
    stems = {"base": model.base.model.patch_embed, "narrow": model.approx.backbone.model.patch_embed}
    for which, stem in stems.items():
        if stem.own:
            stem.conv1.register_forward_hook(lambda *_, which=which: calls.__setitem__(which, calls[which] + 1))
    run = model.run(images)
    own = name != "lvvit_shared_stem" and attention == "approximate"
    assert calls == {"base": 1, "narrow": int(own)}
    with FlopCounterMode(display=False) as counter:
        model.run(images)
    macs = model.macs(run)
    assert sum(macs.values()) == pytest.approx(counter.get_total_flops() / 2 / len(images), rel=1e-9)
    assert macs["stem"] > model.base.architecture.stem > 0


def test_the_narrow_stem_and_the_shared_one_are_parts_of_the_approximate_network() -> None:
    base = build_lvvit("small", LVVIT, 5, 3, 32)
    own, shared = (ApproximateNetwork(base, 4, share).backbone for share in (False, True))
    places = 16 * 16
    assert own.architecture.stem == places * (7 * 7 * 3 * 2 + 2 * 9 * 2 * 2) and shared.architecture.stem == 0
    assert (own.architecture.patch_inputs, shared.architecture.patch_inputs) == (2 * 4 * 4, 8 * 4 * 4)
    whole, without = (trace_macs(each.architecture, 17, 16) for each in (own, shared))
    assert whole - without == own.architecture.stem + 16 * 8 * (2 - 8) * 4 * 4
    assert not any("conv" in name or "bn" in name for name in shared.state_dict())


def test_a_shared_stem_learns_through_both_networks_but_not_while_the_narrow_one_is_distilled() -> None:
    name = "lvvit_shared_stem"
    base, images = make_backbone(name), make_images(name)
    network = make_approx(base, name)
    frozen = copy.deepcopy(base).requires_grad_(False)
    inputs = frozen.prepare(images)
    target = run_dense(frozen, inputs)
    loss = approximation_loss(network, inputs, target, "kldiv", ApproximationWeights())
    loss.total.backward()
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert network.backbone.model.patch_embed.proj.weight.grad.abs().sum() > 0
    model = _pruned(name, "concrete", p_logit=0.0)
    model.soft(images).logits.sum().backward()
    assert model.base.model.patch_embed.conv1.weight.grad.abs().sum() > 0


def test_skip_lam_divides_what_ends_a_branch_from_the_start_on() -> None:
    torch.manual_seed(0)
    plain = build_lvvit("small", {**LVVIT, "skip_lam": 1.0}, 5, 3, 32).model.state_dict()
    torch.manual_seed(0)
    halved = build_lvvit("small", LVVIT, 5, 3, 32).model.state_dict()
    for name, value in plain.items():
        ends = "attn.proj.weight" in name or "mlp.fc2.weight" in name
        assert torch.equal(halved[name], value / 2 if ends else value), name


def test_what_there_is_none_of_is_said() -> None:
    with pytest.raises(UserError, match=r"model\.lvvit=smal is unknown: did you mean 'small'"):
        build_lvvit("smal", {}, 5, 3, 32)
    with pytest.raises(UserError, match=r"model\.arguments\.skip_lamb is unknown to LV-ViT: did you mean 'skip_lam'"):
        build_lvvit("small", {"skip_lamb": 1}, 5, 3, 32)
    with pytest.raises(UserError, match=r"model\.patch_size=7 is odd"):
        build_lvvit("small", {**LVVIT, "patch_size": 7}, 5, 3, 28)
    assert tuple(SIZES) == LVVIT_SIZES
