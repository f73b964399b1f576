"""LTP against slow references, the official implementation's vectors, and its own two runs against each other."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from conftest import make_backbone, make_images
from sttabt.backbones.vit import ViT
from sttabt.core.forward import received_attention
from sttabt.core.ltp import hard_mask, initial_thresholds, mask_loss, soft_mask
from sttabt.engine.online import run_online_dropped, run_online_masked, run_online_soft
from sttabt.methods.ltp import Ltp
from sttabt.models.pruned import PrunedModel
from sttabt.settings.methods.ltp import LtpSettings

GOLDEN = Path(__file__).parent / "golden" / "bert_tiny"


class PaddedViT(ViT):
    """A ViT whose images have patches of padding at their end, as sentences have: 10, 3, 0 and 7 of them."""

    PADDING = (10, 3, 0, 7)

    may_pad = True

    def real(self, inputs: Tensor) -> Tensor:
        padding = torch.tensor(self.PADDING[: len(inputs)])[:, None]
        return torch.arange(self.tokens) < self.tokens - padding


def _model(backbone_name: str = "digits", padded: bool = False, **settings: float) -> PrunedModel:
    """Thresholds near the scores' median, so that samples keep unequal counts."""
    base = make_backbone(backbone_name)
    base = PaddedViT(base.model).eval() if padded else base
    method = Ltp(LtpSettings(method="ltp", **settings), base.layers, base.outputs)
    with torch.no_grad():
        method.threshold.copy_(torch.linspace(0.7, 1.0, base.layers) / base.tokens)
    return PrunedModel(base, method).eval()


# --- formulas


def test_the_formulas_equal_slow_loops() -> None:
    torch.manual_seed(0)
    probabilities = torch.rand(2, 3, 5, 5).softmax(-1)
    rows = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]]).bool()
    score = received_attention(probabilities, rows)
    for b in range(2):
        for token in range(5):
            received = [float(probabilities[b, h, q, token]) for h in range(3) for q in range(5) if rows[b, q]]
            expected = sum(received) / len(received)
            assert float(score[b, token]) == pytest.approx(expected, rel=1e-5)
            soft = soft_mask(score, torch.tensor(0.21), 0.02)[b, token]
            assert float(soft) == pytest.approx(1 / (1 + math.exp(-(expected - 0.21) / 0.02)), rel=1e-4)
            assert bool(hard_mask(score, torch.tensor(0.21))[b, token]) == (expected > 0.21)
    assert initial_thresholds(4).tolist() == pytest.approx([0.0025, 0.005, 0.0075, 0.01])


def test_the_loss_counts_real_tokens() -> None:
    masks = torch.tensor([[[1.0, 0.5, 0.0, 9.0], [0.5, 0.1, 0.0, 9.0]], [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]])
    real = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    assert float(mask_loss(masks, real, 2.0)) == pytest.approx(2 * ((0.5 + 1) / 2 + (0.2 + 0.25) / 2))


def test_soft_masks_become_hard_ones_as_the_temperature_falls() -> None:
    score = torch.rand(3, 50, generator=torch.Generator().manual_seed(1))
    threshold = torch.tensor(0.4)
    assert torch.equal(soft_mask(score, threshold, 1e-7).round(decimals=3), hard_mask(score, threshold).float())


# --- the official implementation


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "vectors.safetensors")


class ReferenceBert:
    """BertForSequenceClassification by hand, from the names and tensors of a weights file."""

    def __init__(self, folder: Path) -> None:
        self.weights = load_file(folder / "base.safetensors")
        self.config = json.loads((folder / "meta.json").read_text())["config"]
        self.layers, self.heads = self.config["num_hidden_layers"], self.config["num_attention_heads"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.config["layer_norm_eps"])

    def embed(self, ids: Tensor) -> Tensor:
        stem = "bert.embeddings"
        x = self.weights[f"{stem}.word_embeddings.weight"][ids]
        x = x + self.weights[f"{stem}.position_embeddings.weight"][: ids.shape[1]]
        return self._norm(f"{stem}.LayerNorm", x + self.weights[f"{stem}.token_type_embeddings.weight"][0])

    def layer(self, index: int, x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Attention probabilities (B, H, N, N) over `keys` (B, N), and the layer's output."""
        stem = f"bert.encoder.layer.{index}"
        query, key, value = (
            self._linear(f"{stem}.attention.self.{name}", x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        probabilities = scores.masked_fill(~keys[:, None, None], -math.inf).softmax(-1)
        context = (probabilities @ value).transpose(1, 2).flatten(2)
        x = self._norm(
            f"{stem}.attention.output.LayerNorm", x + self._linear(f"{stem}.attention.output.dense", context)
        )
        hidden = F.gelu(self._linear(f"{stem}.intermediate.dense", x))
        return probabilities, self._norm(f"{stem}.output.LayerNorm", x + self._linear(f"{stem}.output.dense", hidden))

    def head(self, x: Tensor) -> Tensor:
        return self._linear("classifier", self._linear("bert.pooler.dense", x[:, 0]).tanh())


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_official_vectors_agree(kind: str, golden: dict[str, Tensor]) -> None:
    """The official code averages over all rows and counts all tokens, padding and dropped ones too, and lets the class
    token go; the formulas are the same."""
    settings = json.loads((GOLDEN / "meta.json").read_text())["ltp"]
    bert, threshold = ReferenceBert(GOLDEN), golden["ltp.threshold"]
    alive = golden["input.attention_mask"].bool()
    every = torch.ones_like(alive)
    x, masks = bert.embed(golden["input.input_ids"]), []
    for layer in range(bert.layers):
        probabilities, x = bert.layer(layer, x, alive)
        score = received_attention(probabilities, every)
        if kind == "soft":
            mask = soft_mask(score, threshold[layer], settings["temperature"])
        else:
            alive = alive & hard_mask(score, threshold[layer])
            mask = alive.float()
        x = x * mask[..., None]
        masks.append(mask)
    found, logits = torch.stack(masks, 1), bert.head(x)
    if kind == "hard":
        assert torch.equal(found, golden["ltp.hard.masks"])
    torch.testing.assert_close(found, golden[f"ltp.{kind}.masks"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, golden[f"ltp.{kind}.logits"], atol=1e-4, rtol=0)
    loss = F.cross_entropy(logits, golden["input.labels"]) + mask_loss(found, every, settings["lambda_"])
    torch.testing.assert_close(loss[None], golden[f"ltp.{kind}.loss"], atol=0, rtol=1e-3)


# --- the soft run


def test_gradients_reach_the_thresholds_and_the_weights() -> None:
    model = _model(temperature=5e-3)
    run = model.soft(make_images("digits"))
    run.logits.square().sum().backward(retain_graph=True)
    threshold, weight = model.method.threshold, model.base.model.blocks[0].attn.qkv.weight
    assert (threshold.grad[:-1] != 0).all() and threshold.grad[-1] == 0, "the last one decides nothing"
    assert (weight.grad != 0).any()
    threshold.grad = None
    run.terms["masks"].backward()
    assert (threshold.grad[:-1] < 0).all(), "a higher threshold keeps less"


def test_without_thresholds_the_soft_run_is_the_dense_model() -> None:
    model, images = _model(), make_images("digits")
    with torch.no_grad():
        model.method.threshold.fill_(-1)
        torch.testing.assert_close(model.soft(images).logits, model.base(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.run(images).logits, model.base(images), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_cold_soft_run_drops_what_the_hard_run_drops_first() -> None:
    """From the second layer on they differ: the soft run's attention goes on to see the keys of rows that are 0."""
    model, images = _model(temperature=1e-8), make_images("digits")
    soft = run_online_soft(model.base, images, model.method._soft_rule())
    assert torch.equal(soft.masks[:, 0] > 0.5, model.run(images).plan.writes(0))
    assert ((soft.masks[:, 0] < 0.01) | (soft.masks[:, 0] > 0.99)).all()


# --- the hard run, with and without padding


@pytest.mark.parametrize("padded", [False, True])
@torch.inference_mode()
def test_masked_equals_dropped_with_unequal_counts(padded: bool) -> None:
    model, images = _model(padded=padded), make_images("digits")
    dropped, masked = model.run(images), model.forms()["masked"](images)
    counts = dropped.plan.alive.sum(-1)
    assert len(set(counts[:, 1].tolist())) > 1 and (counts[:, 2] < counts[:, 1]).all(), "the test means something"
    assert torch.equal(dropped.plan.alive, masked.plan.alive)
    torch.testing.assert_close(dropped.logits, masked.logits, atol=1e-5, rtol=1e-5)
    dropped.plan.check(model.base.outputs)


@pytest.mark.parametrize("run", [run_online_dropped, run_online_masked])
@torch.inference_mode()
def test_what_stands_in_the_padding_changes_nothing(run) -> None:
    model, images = _model(padded=True), make_images("digits")
    real = model.base.real(images)
    rows, columns = model.base.grid
    padding = ~real[:, model.base.outputs :].unflatten(1, (rows, columns))
    pixels = padding.repeat_interleave(images.shape[-2] // rows, 1).repeat_interleave(images.shape[-1] // columns, 2)
    changed = images.masked_fill(pixels[:, None], 3.0)
    assert not torch.equal(changed, images)
    first, second = (run(model.base, each, model.method.rule(real)) for each in (images, changed))
    assert torch.equal(first.plan.alive, second.plan.alive)
    torch.testing.assert_close(first.logits, second.logits, atol=1e-5, rtol=1e-5)
    soft, other = model.soft(images), model.soft(changed)
    torch.testing.assert_close(soft.logits, other.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(soft.terms["masks"], other.terms["masks"])


@torch.inference_mode()
def test_multiply_adds_of_unequal_counts_are_those_that_torch_counts() -> None:
    model, images = _model(), make_images("digits")
    run = model.run(images)
    with FlopCounterMode(display=False) as counter:
        model.run(images)
    counted = counter.get_total_flops() / 2 / len(images)
    assert sum(model.macs(run).values()) == pytest.approx(counted, rel=1e-3)


def test_the_hard_run_trains_the_weights_alone() -> None:
    model = _model()
    dropped, masked = (run(make_images("digits")).logits for run in (model.run, model.forms()["masked"]))
    weight = model.base.model.blocks[0].attn.qkv.weight
    (one,) = torch.autograd.grad(dropped.square().sum(), weight)
    (other,) = torch.autograd.grad(masked.square().sum(), weight)
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    model.run(make_images("digits")).logits.sum().backward()
    assert model.method.threshold.grad is None
