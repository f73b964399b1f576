"""Class-attention top-k against a slow forward of the library's own modules, and what it must refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import make_backbone, make_images, make_inputs
from sttabt.backbones.vit import ViT
from sttabt.engine.online import LayerAttention
from sttabt.errors import UserError
from sttabt.models.frozen import freeze
from sttabt.models.pruned import PrunedModel
from sttabt.settings.methods.class_attention import ClassAttentionSettings
from sttabt.testing.models import make_example, make_pruned


class Headless(ViT):
    """Says that no token of its is read by the head."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.outputs = 0


def slow_block(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of one sample (n, D): attention probabilities (H, n, n) and what attention adds, by loops over heads."""
    heads, width = block.attn.num_heads, x.shape[-1] // block.attn.num_heads
    query, key, value = block.attn.qkv(block.norm1(x)).chunk(3, -1)
    rows, summed = [], []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        rows.append((query[:, own] @ key[:, own].T / math.sqrt(width)).softmax(-1))
        summed.append(rows[-1] @ value[:, own])
    return torch.stack(rows), block.ls1(block.attn.proj(torch.cat(summed, -1)))


def slow_logits(base: Any, image: Tensor, keep: float, layers: list[int]) -> tuple[Tensor, list[list[int]]]:
    """Tokens of each boundary but the last, and the logits of one image, with tokens gone between attention and MLP."""
    x, tokens, kept = base.embed(image)[0], list(range(base.tokens)), []
    for number, block in enumerate(base.model.blocks):
        kept.append(tokens)
        probabilities, added = slow_block(block, x)
        x = x + added
        if number in layers:
            score = [float(probabilities[:, 0, place].mean()) for place in range(len(tokens))]
            best = sorted(range(base.outputs, len(tokens)), key=lambda place: -score[place])
            best = best[: math.ceil(keep * (len(tokens) - base.outputs))]
            places = [*range(base.outputs), *sorted(best)]
            x, tokens = x[places], [tokens[place] for place in places]
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return base.head(x[None]), kept


@pytest.mark.parametrize("backbone", ["digits", "test_vit", "layer_scale_registers"])
@pytest.mark.parametrize("layers", [[], [0]])
@torch.inference_mode()
def test_a_slow_forward_agrees(backbone: str, layers: list[int]) -> None:
    model = make_pruned(make_example(backbone), "class_attention", keep_ratio=0.6, layers=layers)
    images = make_images(backbone)
    run, frozen = model.run(images), freeze(model).run(images)
    for sample in range(4):
        logits, kept = slow_logits(model.base, images[sample : sample + 1], 0.6, layers or model.method.deciding)
        found = [row.nonzero().flatten().tolist() for row in run.plan.alive[sample, :-1]]
        assert found == kept
        torch.testing.assert_close(run.logits[sample], logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(frozen.logits[sample], logits[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_deciding_layers_multiply_their_shares() -> None:
    """16 patches, 0.7 of them, rounded up: 12, 9 and 7 behind the layers 1, 3 and 4 of 6."""
    model = make_pruned(make_example("test_vit"), "class_attention")
    counts = model.run(make_images("test_vit")).plan.counts[0].tolist()
    assert model.method.deciding == [1, 3, 4]
    assert counts == [17, 17, 13, 13, 10, 8, 1]


@torch.inference_mode()
def test_keeping_all_is_the_dense_model(class_token_name: str) -> None:
    model = make_pruned(make_example(class_token_name), "class_attention", keep_ratio=1.0)
    inputs = make_inputs(class_token_name)
    torch.testing.assert_close(model.run(inputs).logits, model.base(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("backbone", "rows"), [("digits", 1), ("distilled", 2), ("layer_scale_registers", 1)])
@torch.inference_mode()
def test_class_attention_is_the_mean_row_of_the_tokens_that_are_classified(backbone: str, rows: int) -> None:
    """Registers are no class tokens: the head reads the first token alone."""
    base = make_backbone(backbone)
    query, key, value = base.qkv(0, base.embed(make_images(backbone)))
    present = torch.ones(query.shape[:2], dtype=torch.bool)
    attention = LayerAttention(base, query, key, value, present)
    found = attention.of_class
    assert "probabilities" not in vars(attention), "no other row is computed"
    torch.testing.assert_close(found, attention.probabilities[:, :, :rows].mean(2))


def test_a_model_without_a_class_token_is_refused() -> None:
    base = Headless(make_backbone("digits").model)
    method = make_pruned(make_example("digits"), "class_attention").method
    with pytest.raises(UserError, match="class-attention top-k scores tokens by the attention of a class token"):
        PrunedModel(base, method)


@pytest.mark.parametrize(
    ("layers", "message"),
    [([2, 1], "must rise"), ([1, 1], "must rise"), ([1, 5], r"counted from 0.*\(0 to 4\), and 5")],
)
def test_layers_that_cannot_decide_are_refused(layers: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassAttentionSettings(method="class_attention", layers=layers).check_model(6)


def test_the_choice_is_that_of_training() -> None:
    """The base weights get the gradient of the tokens that are left, and there is no soft run beside the hard one."""
    model, images = make_pruned(make_example("digits"), "class_attention", keep_ratio=0.4), make_images("digits")
    soft = model.soft(images)
    torch.testing.assert_close(soft.logits, model.run(images).logits)
    assert soft.terms == {} and model.method.rates() == [] and set(model.forms()) == {"masked"}
    soft.logits.square().sum().backward()
    assert model.base.model.blocks[0].attn.qkv.weight.grad.any()
