"""Models of transformers beside BERT: called by keyword, answered as the library answers; or refused in a line."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_outputs import BaseModelOutputWithPooling

import sttabt
from conftest import BERT, make_text
from sttabt.backbones import adapt
from sttabt.errors import UserError

SIZES = {**BERT, "type_vocab_size": 2, "pad_token_id": 0, "num_labels": 5}
VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
VISION = ("ViT", "DeiT", "Dinov2", "Dinov2WithRegisters", "CLIP", "Siglip")
TEXT = ("Roberta", "XLMRoberta", "Camembert", "Electra")


def vision(family: str, **changes: Any) -> Any:
    torch.manual_seed(2)
    own = {"mlp_ratio": 2} if family.startswith("Dino") else {"intermediate_size": 48}
    sizes: dict[str, Any] = {**VIT, **own, **changes}
    if family in ("CLIP", "Siglip"):
        sizes = {"vision_config": sizes, "text_config": {"bos_token_id": 0, "eos_token_id": 1}}
    config = getattr(transformers, f"{family}Config")(**sizes, num_labels=5)
    return getattr(transformers, f"{family}ForImageClassification")(config).eval()


def text_model(family: str) -> Any:
    torch.manual_seed(2)
    config = getattr(transformers, f"{family}Config")(**SIZES)
    return getattr(transformers, f"{family}ForSequenceClassification")(config).eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*(shape or (4, 3, 32, 32)), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", VISION)
@torch.inference_mode()
def test_a_vision_model_is_called_and_answers_as_the_librarys(family: str) -> None:
    model, labels = vision(family), torch.arange(4)
    for method, settings in (("backtracking", {"approx": 2}), ("backtracking_actual", {}), ("random", {})):
        pruned = sttabt.prune(model, method, keep_ratio=1.0, **settings)
        found, expected = pruned(pixel_values=images(), labels=labels), model(pixel_values=images(), labels=labels)
        assert type(found) is type(expected)
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.loss, expected.loss)
        (logits,) = pruned(images(), return_dict=False)
        torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
    sparse = sttabt.prune(model, "backtracking_actual", keep_ratio=0.3).run(images())
    assert sparse.plan.occupancy().mean() < 0.6


@pytest.mark.parametrize("family", TEXT)
@torch.inference_mode()
def test_a_text_model_is_called_and_answers_as_the_librarys(family: str) -> None:
    model, text = text_model(family), make_text()
    pruned = sttabt.prune(model, "backtracking", keep_ratio=1.0, approx=4)
    given = {"input_ids": text.ids, "attention_mask": text.real.long(), "token_type_ids": text.types}
    found, expected = (each(**given, labels=torch.arange(4)) for each in (pruned, model))
    assert type(found) is type(expected)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss)


def test_batches_of_an_image_processor_and_the_names_of_classes() -> None:
    """A DataLoader over what transformers prepares gives dicts, and its classes are called by model.config.id2label."""
    model = vision("ViT")
    batches = [{"pixel_values": images(), "labels": torch.arange(4)}]
    pruned = sttabt.prune(model, approx=2, budget=0.7, calibration=batches)
    assert pruned.calibration == sttabt.prune(model, approx=2, budget=0.7, calibration=[images()]).calibration
    sttabt.distil(pruned, batches)
    for each in (pruned, sttabt.freeze(pruned)):
        assert each.config.id2label == model.config.id2label
    assert not hasattr(sttabt.prune(timm.create_model("test_vit"), "random"), "config")


def test_what_a_call_cannot_mean_is_refused() -> None:
    pruned = sttabt.prune(vision("DeiT"), "random")
    for given, message in (
        ({"pixel_values": images(), "output_attentions": True}, "does not take output_attentions"),
        ({"pixel_values": images(), "interpolate_pos_encoding": True}, "does not take interpolate_pos_encoding"),
        ({"labels": torch.arange(4)}, "reads pixel_values"),
        ({"pixel_values": images(2, 3, 40, 40)}, "images are 40x40 pixels, but the model reads 32x32: resize them"),
    ):
        with pytest.raises(UserError, match=message):
            pruned(**given)
    text = make_text()
    with pytest.raises(UserError, match="input_ids holds 0, the id of padding, in a text"):
        sttabt.prune(text_model("Roberta"), "random")(input_ids=torch.zeros_like(text.ids), attention_mask=text.real)


def test_what_would_not_be_reproduced_is_refused() -> None:
    with pytest.raises(UserError, match="is a Dinov2SwiGLUFFN, whose forward would not run: it must be a Dinov2MLP"):
        adapt(vision("Dinov2", use_swiglu_ffn=True))
    with pytest.raises(UserError, match="does not divide the feed-forward width 42"):
        adapt(vision("ViT", intermediate_size=42)).narrow(4)


@pytest.mark.parametrize(
    ("family", "made"),
    [
        *(("Bert", {"add_pooling_layer": pooler}) for pooler in (True, False)),
        *(("Roberta", {"add_pooling_layer": pooler}) for pooler in (True, False)),
        ("Electra", {}),
        ("DistilBert", {}),
    ],
)
@torch.inference_mode()
def test_an_encoder_of_text_gives_one_vector(family: str, made: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = getattr(transformers, f"{family}Config")(**SIZES, embedding_size=16, hidden_dim=48)
    model, text = getattr(transformers, f"{family}Model")(config, **made).eval(), make_text()
    given = {"input_ids": text.ids, "attention_mask": text.real.long()}
    if family != "DistilBert":
        given["token_type_ids"] = text.types
    answer = model(**given)
    expected = answer.get("pooler_output")
    if not made.get("add_pooling_layer"):
        rows = zip(answer.last_hidden_state, text.real, strict=True)
        expected = torch.stack([own[real].mean(0) for own, real in rows])
    pruned = sttabt.prune(model, "backtracking", keep_ratio=1.0, approx=4)
    found = pruned(**given)
    torch.testing.assert_close(found.pooler_output, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pruned.base(text), expected)
    assert isinstance(found, BaseModelOutputWithPooling) and list(found) == ["pooler_output"]
    sparse = sttabt.prune(model, "backtracking_actual", keep_ratio=0.4)
    assert sparse.run(text).plan.occupancy().mean() < 0.8
    assert (sparse(**given).pooler_output - expected).abs().max() > 1e-4
    loaded = sttabt.load(sparse.save_pretrained(tmp_path / "model"))
    assert torch.equal(loaded(**given).pooler_output, sparse(**given).pooler_output)
    assert loaded.preparation is not None and loaded.preparation.class_names == ()
    with pytest.raises(UserError, match="class_names have no effect on a model without a classifier"):
        sparse.save_pretrained(tmp_path / "named", class_names=["a"])


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("CLIPVisionModel", {}),
        ("CLIPVisionModelWithProjection", {"projection_dim": 24}),
        ("SiglipVisionModel", {}),
        ("SiglipVisionModel", {"vision_use_head": False}),
        ("ViTModel", {"pooler_output_size": 24}),
        ("ViTModel", {"add_pooling_layer": False}),
        ("DeiTModel", {}),
        ("Dinov2Model", {"mlp_ratio": 2}),
        ("Dinov2WithRegistersModel", {"mlp_ratio": 2, "num_register_tokens": 2}),
    ],
)
@torch.inference_mode()
def test_an_encoder_of_images_gives_one_vector(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(2)
    library, made = (
        getattr(transformers, family),
        {name: changes[name] for name in ("add_pooling_layer",) if name in changes},
    )
    sizes = {name: value for name, value in changes.items() if name not in made}
    model = library(library.config_class(**VIT, intermediate_size=48, **sizes), **made).eval()
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    answer, name = model(pixel_values=images()), "image_embeds" if "projection_dim" in changes else "pooler_output"
    expected = answer.get(name)
    if "vision_use_head" in changes:
        expected = answer.last_hidden_state.mean(1)
    if made:
        expected = answer.last_hidden_state[:, 0]
    pruned = sttabt.prune(model, "backtracking", keep_ratio=1.0, approx=2)
    found = pruned(pixel_values=images())
    torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pruned.base(images()), expected)
    assert isinstance(found, type(answer)) and list(found) == [name]
    sparse = sttabt.prune(model, "backtracking_actual", keep_ratio=0.3)
    run = sparse.run(images())
    assert run.plan.occupancy().mean() < 0.6 and (run.logits - expected).abs().max() > 1e-4
    torch.testing.assert_close(sparse.forms()["masked"](images()).logits, run.logits, atol=1e-5, rtol=1e-5)
    for method in (sparse, sttabt.prune(model, "dense")):
        with FlopCounterMode(display=False) as counter:
            one = method.run(images()[:1])
        assert sum(method.macs(one).values()) == counter.get_total_flops() / 2
    loaded = sttabt.load(sparse.save_pretrained(tmp_path / "model"))
    assert torch.equal(loaded(images())[name], run.logits)
    with pytest.raises(UserError, match=f"has no last_hidden_state.*read {name}, by that name"):
        _ = found.last_hidden_state
    with pytest.raises(UserError, match="has no last_hidden_state"):
        pruned(images(), return_dict=False)
    with pytest.raises(UserError, match="does not take labels: leave them out"):
        pruned(images(), labels=torch.arange(4))


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
@torch.inference_mode()
def test_an_encoder_of_images_serves_in_its_place(family: str) -> None:
    """In the model that compares images with texts."""
    torch.manual_seed(2)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {**small, "vocab_size": 60, "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1}
    config = getattr(transformers, f"{family}Config")(vision_config={**VIT, **small}, text_config=text)
    model, ids = getattr(transformers, f"{family}Model")(config).eval(), torch.randint(2, 60, (3, 9))
    expected = model(input_ids=ids, pixel_values=images()).logits_per_image
    model.vision_model = sttabt.prune(model.vision_model, "backtracking_actual", keep_ratio=1.0)
    found = model(input_ids=ids, pixel_values=images()).logits_per_image
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    model.vision_model.method.settings.keep_ratio = 0.3
    assert not torch.equal(model(input_ids=ids, pixel_values=images()).logits_per_image, found)


def test_what_an_encoder_of_text_does_not_give_is_one_line() -> None:
    text = make_text()
    pruned = sttabt.prune(transformers.BertModel(transformers.BertConfig(**BERT)), "backtracking", approx=4)
    given = {"input_ids": text.ids, "attention_mask": text.real.long(), "token_type_ids": text.types}
    answer = pruned(**given)
    for read in (lambda: answer.last_hidden_state, lambda: answer[0], lambda: answer["last_hidden_state"]):
        with pytest.raises(UserError, match="has no last_hidden_state, as dropped tokens have no row"):
            read()
    with pytest.raises(UserError, match="has no last_hidden_state"):
        pruned(**given, return_dict=False)
    with pytest.raises(UserError, match="does not take labels: leave them out"):
        pruned(**given, labels=torch.arange(4))
    assert "pooler_output" in repr(answer)
    for same in (copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
        assert type(same) is type(answer) and torch.equal(same.pooler_output, answer.pooler_output)


def test_the_approximate_network_of_an_encoder_learns_its_attention_alone() -> None:
    pruned = sttabt.prune(transformers.BertModel(transformers.BertConfig(**BERT)), "backtracking", approx=4)
    before = {name: value.clone() for name, value in pruned.approx.backbone.named_parameters()}
    sttabt.distil(pruned, [make_text()], epochs=2)
    moved = {name for name, value in pruned.approx.backbone.named_parameters() if not torch.equal(value, before[name])}
    assert any("attention.self.query" in name for name in moved) and not any("pooler" in name for name in moved)
