"""EViT against a slow forward of the library's own modules, and cases worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import make_backbone, make_images, make_inputs
from sttabt.core.evit import fuse_inattentive, kept_rows
from sttabt.errors import UserError
from sttabt.models.frozen import freeze
from sttabt.models.pruned import PrunedModel
from sttabt.settings.methods.evit import EvitSettings
from sttabt.testing.models import make_example, make_pruned
from test_rivals_class_attention import Headless, slow_block


def test_a_case_by_hand() -> None:
    """Five rows behind the class token, of which 0.6 stay: those of attention 5, 3 and 2; 1 and 0.5 are fused."""
    attention = torch.tensor([[9.0, 1.0, 5.0, 0.5, 3.0, 2.0], [9.0, 1.0, 5.0, 0.5, 0.0, 0.0]])
    merging = fuse_inattentive(attention, [6, 4], 0.6)
    assert merging.place.tolist() == [[0, 4, 1, 4, 2, 3], [0, 1, 2, 3, -1, -1]], "one row alone is not fused"
    assert merging.stays.tolist()[0] == [True, False, True, False, True, True]
    assert list(merging.left) == [5, 4]
    assert merging.weight is not None
    weight = merging.weight[0]
    assert float(weight[1] / weight[3]) == pytest.approx(2.0) and bool((weight > 0).all())


def test_how_many_are_not_fused() -> None:
    """196 patches at 0.7: 138 stay beside the class token. Nothing is fused where one at the most would be."""
    rows = torch.tensor([197, 11, 2, 1, 5])
    assert kept_rows(rows, 0.7).tolist() == [139, 8, 2, 1, 5]
    assert kept_rows(rows, 1.0).tolist() == rows.tolist()
    assert kept_rows(rows, 0.3, outputs=2).tolist() == [61, 5, 2, 1, 3]


def test_rows_that_receive_nothing_are_averaged_alike() -> None:
    merging = fuse_inattentive(torch.tensor([[1.0, 0.5, 0.0, 0.0, 0.0]]), [5], 0.25)
    assert merging.weight is not None and len(set(merging.weight[0, 2:].tolist())) == 1


def slow_logits(base: Any, image: Tensor, keep: float, layers: list[int]) -> tuple[Tensor, list[int]]:
    """Logits of one image, and the rows of each boundary but the last."""
    x, rows = base.embed(image)[0], []
    for number, block in enumerate(base.model.blocks):
        rows.append(len(x))
        probabilities, added = slow_block(block, x)
        x = x + added
        if number in layers:
            score = [float(probabilities[:, : base.architecture.classifiers, place].mean()) for place in range(len(x))]
            ranked = sorted(range(base.outputs, len(x)), key=lambda place: -score[place])
            kept = math.ceil(keep * len(ranked))
            others = ranked[kept:]
            total = sum(score[place] for place in others)
            fused = [sum(score[place] * x[place] for place in others) / total] if others else []
            x = torch.stack([*x[: base.outputs], *x[sorted(ranked[:kept])], *fused])
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return base.head(x[None]), rows


@pytest.mark.parametrize("backbone", ["digits", "test_vit", "distilled", "layer_scale_registers"])
@pytest.mark.parametrize("layers", [[], [0]])
@torch.inference_mode()
def test_a_slow_forward_agrees(backbone: str, layers: list[int]) -> None:
    """Rows that were fused take part later, as others do; they may be kept, or fused again."""
    model = make_pruned(make_example(backbone), "evit", keep_ratio=0.6, layers=layers)
    images = make_images(backbone)
    run, frozen = model.run(images), freeze(model).run(images)
    for sample in range(4):
        logits, rows = slow_logits(model.base, images[sample : sample + 1], 0.6, layers or model.method.deciding)
        assert run.plan.counts[sample, :-1].tolist() == rows
        torch.testing.assert_close(run.logits[sample], logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(frozen.logits[sample], logits[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_record_tells_fused_rows_from_tokens() -> None:
    model = make_pruned(make_example("test_vit"), "evit", keep_ratio=0.5, layers=[2])
    plan: Any = model.run(make_images("test_vit")).plan
    assert plan.counts[0].tolist() == [17, 17, 17, 10, 10, 10, 1]
    assert plan.fused[0].tolist() == [0, 0, 0, 1, 1, 1, 0]
    assert plan.alive.sum(-1)[0].tolist() == [17, 17, 17, 9, 9, 9, 1]


@torch.inference_mode()
def test_keeping_all_is_the_dense_model(class_token_name: str) -> None:
    model, inputs = make_pruned(make_example(class_token_name), "evit", keep_ratio=1.0), make_inputs(class_token_name)
    torch.testing.assert_close(model.run(inputs).logits, model.base(inputs), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_tokens_that_are_the_same_fuse_into_themselves() -> None:
    """What is fused is the mean: of equal rows it is the row, which a sum would not be."""
    base = make_backbone("digits")
    images = make_images("digits")
    images[:] = images[..., :1, :1]  # every patch the same
    base.model.pos_embed[:, 1:] = base.model.pos_embed[:, 1:2]
    model = PrunedModel(base, make_pruned(make_example("digits"), "evit", keep_ratio=0.5, layers=[0]).method)
    run = model.run(images)
    alike = make_pruned(make_example("digits"), "class_attention", keep_ratio=26 / 49, layers=[0]).method
    torch.testing.assert_close(run.logits, PrunedModel(base, alike).run(images).logits, atol=1e-5, rtol=1e-5)


def test_training_reaches_the_weights_through_what_is_fused() -> None:
    model, images = make_pruned(make_example("digits"), "evit", keep_ratio=0.3), make_images("digits").requires_grad_()
    alive = model.run(images).plan.alive
    soft = model.soft(images)
    assert soft.terms == {} and model.method.rates() == [] and model.forms() == {}
    soft.logits.square().sum().backward()
    assert model.base.model.blocks[0].attn.qkv.weight.grad.any()
    gone = ~alive[:, -2, 1:]
    assert images.grad is not None and gone.any()
    patches = (
        images.grad[:, 0].unflatten(1, (7, 4)).unflatten(3, (7, 4)).permute(0, 1, 3, 2, 4).flatten(3).abs().sum(-1)
    )
    assert (patches.flatten(1)[gone] > 0).all()


def test_a_model_without_a_class_token_is_refused() -> None:
    method = make_pruned(make_example("digits"), "evit").method
    with pytest.raises(UserError, match="EViT scores tokens by the attention of a class token"):
        PrunedModel(Headless(make_backbone("digits").model), method)


def test_layers_that_cannot_decide_are_refused() -> None:
    with pytest.raises(UserError, match="and 5 cannot"):
        EvitSettings(method="evit", layers=[3, 5]).check_model(6)
