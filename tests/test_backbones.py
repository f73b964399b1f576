"""Every adapter: its steps are timm's forward, its official names go both ways, what it cannot do it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import (
    factor_of,
    make_approx,
    make_backbone,
    make_images,
    make_inputs,
    new_backbone,
)
from sttabt.backbones.patches import embed_picked
from sttabt.engine.dense import run_dense, trace_attention
from sttabt.errors import UserError
from sttabt.pretrained.names import load_official_state, official_state
from sttabt.pretrained.timm_model import build_timm


@torch.inference_mode()
def test_steps_are_the_models_own_forward(backbone_name: str) -> None:
    base, inputs = make_backbone(backbone_name), make_inputs(backbone_name)
    run = run_dense(base, inputs)
    torch.testing.assert_close(run.logits, base(inputs), atol=1e-5, rtol=1e-5)
    trace, real = trace_attention(base, inputs), base.real(inputs)
    for layer in range(base.layers):
        found, expected = (each.probabilities(layer).transpose(1, 2) for each in (trace, run.trace))
        torch.testing.assert_close(found[real], expected[real], atol=1e-6, rtol=1e-5)
        assert found[real].sum(-1).sub(1).abs().max() < 1e-5


@torch.inference_mode()
def test_selected_tokens_are_embedded_alike(backbone_name: str) -> None:
    base, inputs = make_backbone(backbone_name), make_inputs(backbone_name)
    last = base.real(inputs).shape[1] - 1
    sample, token = torch.tensor([0, 3, 1, 1, 2]), torch.tensor([0, 4, last, 1, base.outputs])
    torch.testing.assert_close(
        base.embed_tokens(inputs, sample, token), base.embed(inputs)[sample, token], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("channels", [1, 3, 8, 32])  # few are cut as patches, many are picked pixel by pixel
@pytest.mark.parametrize("patch", [(2, 2), (4, 4), (3, 5)])
@pytest.mark.parametrize("over", [0, 1])  # pixels at the edges that make no patch
def test_patches_are_projected_as_the_convolution_does(channels: int, patch: tuple[int, int], over: int) -> None:
    torch.manual_seed(0)
    projection = nn.Conv2d(channels, 6, patch, stride=patch)
    grid, places = (3, 4), torch.randn(2 + 3 * 4, 6)
    images = torch.randn(5, channels, 3 * patch[0] + over, 4 * patch[1] + over, requires_grad=True)
    sample, token = torch.tensor([4, 0, 0, 2, 3, 4]), torch.tensor([13, 0, 5, 1, 2, 9])
    found = embed_picked(images, grid, sample, token, 2, projection, places)
    whole = projection(images).flatten(2).transpose(1, 2)
    expected = torch.cat([torch.zeros(5, 2, 6), whole], 1)[sample, token] + places[token]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(found)
    own, other = (torch.autograd.grad((each * weight).sum(), images)[0] for each in (found, expected))
    torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def test_official_names_go_both_ways(backbone_name: str) -> None:
    base, inputs = make_backbone(backbone_name), make_inputs(backbone_name)
    torch.manual_seed(99)
    other = new_backbone(backbone_name).eval()
    load_official_state(other, official_state(base))
    assert torch.equal(other(inputs), base(inputs))


@torch.inference_mode()
def test_a_distilled_deit_predicts_by_the_mean_of_its_two_heads() -> None:
    base, images = make_backbone("distilled"), make_images("distilled")
    x = base.model.forward_features(images)
    expected = (base.model.head(x[:, 0]) + base.model.head_dist(x[:, 1])) / 2
    torch.testing.assert_close(run_dense(base, images).logits, expected)
    assert base.outputs == base.architecture.classifiers == 2


def test_an_interpolated_start_takes_over_no_head(backbone_name: str) -> None:
    base = make_backbone(backbone_name)
    network = make_approx(base, backbone_name)
    own, before = network.backbone.parts(), base.narrow(factor_of(backbone_name), network.share_stem)
    fresh = (*base.head_prefixes, *base.narrow_prefixes)
    taken = {name for name in own if not name.startswith(fresh)}
    assert taken == {name for name in base.parts() if not name.startswith(fresh)}
    assert before.parts().keys() == own.keys()
    # DistilBERT's pre_classifier is a pooler: it does not depend on the classes.
    # What an embedding ends in, SigLIP's "head" among it, depends on none.
    heads = () if base.embeds else ("classifier", "head", "aux_head")
    left = [name for name in own if name.startswith(heads)]
    assert (left or base.embeds) and not taken & set(left)


def test_weights_of_another_architecture_are_refused() -> None:
    base = make_backbone("digits")
    state = official_state(base)
    state["encoder.layer.9.x"] = state.pop("encoder.layer.0.output.dense.bias")
    with pytest.raises(
        UserError, match=r"encoder.layer.0.output.dense.bias is missing.*encoder.layer.9.x is unexpected"
    ):
        load_official_state(base, state)


def test_a_narrow_copy_has_the_same_depth_and_heads(backbone_name: str) -> None:
    base = make_backbone(backbone_name)
    factor = factor_of(backbone_name)
    network = make_approx(base, backbone_name)
    sizes, narrow = base.architecture, network.backbone.architecture
    assert (narrow.layers, narrow.heads) == (sizes.layers, sizes.heads)
    of_own_stem = bool(sizes.stem) and not network.share_stem  # whose channels are as much fewer
    assert narrow.patch_inputs * (factor if of_own_stem else 1) == sizes.patch_inputs
    assert bool(narrow.stem) == of_own_stem
    assert (narrow.width * factor, narrow.feed_forward * factor) == (sizes.width, sizes.feed_forward)


@pytest.mark.parametrize("factor", [0, 5, 32])
def test_a_factor_that_does_not_divide_a_head_is_refused(factor: int) -> None:
    with pytest.raises(UserError, match=f"approx.factor={factor} "):
        make_backbone("digits").narrow(factor)


@pytest.mark.parametrize(
    ("name", "arguments", "what"),
    [
        ("test_vit", {"global_pool": "max"}, "global_pool='max' instead of 'token' or 'avg' or 'map'"),
        ("test_vit", {"scale_attn_norm": True}, "a norm inside attention"),
        ("resnet18", {}, "no model of timm .* that can be pruned"),
        ("vit_unheard_of", {}, "no model of timm .* that can be pruned"),
    ],
)
def test_what_the_adapter_would_not_reproduce_is_refused(name: str, arguments: dict, what: str) -> None:
    with pytest.raises(UserError, match=what):
        build_timm(name, arguments, 5, 3, 160)
