"""BERT: padding takes no part, dropout acts as in the library, and files are loaded strictly or refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    DistilBertForMaskedLM,
    DistilBertModel,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraModel,
    GPT2Config,
)

from conftest import (
    BERT,
    LENGTHS,
    TEXTS,
    make_approx,
    make_backbone,
    make_bert,
    make_text,
    make_text_model,
    set_dropouts,
)
from sttabt.backbones.bert import Bert
from sttabt.backbones.distilbert import DistilBert
from sttabt.backbones.electra import Electra
from sttabt.core.backtrack import backtrack
from sttabt.core.concrete import concrete_loss, concrete_plan
from sttabt.core.forward import forward_select
from sttabt.core.plan import keep_all
from sttabt.core.text import Text
from sttabt.engine.dense import run_dense, trace_attention
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.engine.online import LayerAttention, run_online_dropped, run_online_masked
from sttabt.errors import UserError
from sttabt.models.approximate import ApproximationWeights, approximation_loss
from sttabt.pretrained.build import build_base
from sttabt.pretrained.huggingface_text import build_text
from sttabt.pretrained.names import official_state
from sttabt.settings import ModelSettings
from sttabt.testing.models import one_by_one, pad_text

TEXT = make_text()
SAMPLES = one_by_one(TEXT)


@torch.inference_mode()
def test_the_baseline_is_fused_and_leaves_padding_out() -> None:
    base = make_backbone("bert")
    assert base.model.config._attn_implementation == "sdpa"
    padded = base(pad_text(TEXT, 6))
    torch.testing.assert_close(padded, base(TEXT), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded, torch.cat([base(text) for text in SAMPLES]), atol=1e-5, rtol=1e-5)
    elsewhere = Text(TEXT.ids.masked_fill(~TEXT.real, 3), TEXT.types * TEXT.real, TEXT.real)
    torch.testing.assert_close(base(elsewhere), base(TEXT), atol=1e-6, rtol=1e-6)
    eager = BertForSequenceClassification._from_config(base.model.config, attn_implementation="eager").eval()
    eager.load_state_dict(base.model.state_dict())
    torch.testing.assert_close(Bert(eager)(TEXT), base(TEXT), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_distilberts_baseline_is_fused_and_reads_no_types() -> None:
    base = make_backbone("distilbert")
    assert base.model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(base(TEXT), torch.cat([base(text) for text in SAMPLES]), atol=1e-5, rtol=1e-5)
    for run in (base, lambda text: run_dense(base, text).logits):
        assert torch.equal(run(Text(TEXT.ids, 1 - TEXT.types, TEXT.real)), run(TEXT))
        assert (run(Text(TEXT.ids.flip(1), TEXT.types, TEXT.real)) - run(TEXT)).abs().max() > 1e-3


def test_every_input_matters() -> None:
    base = make_backbone("bert")
    for changed in (
        Text(TEXT.ids.flip(1), TEXT.types, TEXT.real),
        Text(TEXT.ids, 1 - TEXT.types, TEXT.real),
        Text(TEXT.ids, TEXT.types, torch.ones_like(TEXT.real)),
    ):
        assert (base(changed) - base(TEXT)).abs().max() > 1e-3


@pytest.mark.parametrize("name", TEXTS)
def test_dropout_in_training_is_the_librarys(name: str) -> None:
    """The same draws in the same order give the same logits: each dropout stands where the library has it."""
    base = make_text_model(name).train()
    set_dropouts(base)
    for text in (TEXT, SAMPLES[2]):
        torch.manual_seed(11)
        expected = base(text)
        torch.manual_seed(11)
        torch.testing.assert_close(run_dense(base, text).logits, expected, atol=1e-5, rtol=1e-5)
        assert (base(text) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("text", [TEXT, SAMPLES[2]], ids=["padded", "single"])
def test_attention_dropout_acts_in_every_engine(text: Text) -> None:
    base = make_bert(hidden_dropout_prob=0.0, classifier_dropout=0.0, attention_probs_dropout_prob=0.4)
    plan = keep_all(text.real, base.layers)
    engines: list[Callable[[], torch.Tensor]] = [
        lambda: run_dense(base, text).logits,
        lambda: trace_attention(base, text).queries[-1],
        lambda: run_masked(base, text, plan),
        lambda: run_dropped(base, text, plan),
        lambda: run_online_masked(base, text, lambda layer, attention, alive: alive).logits,
        lambda: run_online_dropped(base, text, lambda layer, attention, alive: alive).logits,
    ]
    with torch.no_grad():
        for run in engines:
            base.eval()
            assert torch.equal(run(), run())
            base.train()
            assert not torch.allclose(run(), run(), rtol=0, atol=1e-6)


@torch.inference_mode()
def test_tracing_computes_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    base, rows = make_backbone("bert"), []
    for layer in base.model.bert.encoder.layer:
        layer.attention.self.query.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[:-1].numel()))
    trace_attention(base, TEXT)
    assert rows == [sum(LENGTHS)] * base.layers


@torch.inference_mode()
@pytest.mark.parametrize("at_a_time", [True, False])
def test_a_packed_trace_is_that_of_each_text_alone(monkeypatch: pytest.MonkeyPatch, at_a_time: bool) -> None:
    if at_a_time:
        monkeypatch.setattr("sttabt.engine.packed.MACS_A_CALL", 0)
    base = make_backbone("bert")
    together = trace_attention(base, TEXT)
    for index, text in enumerate(SAMPLES):
        alone, tokens = trace_attention(base, text), LENGTHS[index]
        for layer in range(base.layers):
            found, expected = together.probabilities(layer)[index], alone.probabilities(layer)[0]
            torch.testing.assert_close(found[:, :tokens, :tokens], expected, atol=1e-6, rtol=1e-5)
            assert not found[..., tokens:].any()
        found, expected = (backtrack(each, 0.5).plan.alive for each in (together, alone))
        assert torch.equal(found[index, :, :tokens], expected[0])


@pytest.mark.parametrize("kind", ["kldiv", "tinybert"])
@pytest.mark.parametrize("more", [0, 4])
def test_distillation_of_a_padded_batch_is_the_mean_over_its_texts(kind: str, more: int) -> None:
    base, weights = make_backbone("bert"), ApproximationWeights(hidden=1.0, prediction=1.0)
    network = make_approx(base, "bert")

    def losses(text: Text) -> tuple[torch.Tensor, torch.Tensor]:
        network.zero_grad()
        with torch.no_grad():
            target = run_dense(base, text)
        loss = approximation_loss(network, text, target, kind, weights)
        loss.total.backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        return torch.stack([loss.attention, loss.hidden, loss.embedding, loss.prediction]).detach(), gradient

    together = losses(pad_text(TEXT, more) if more else TEXT)
    alone = [losses(text) for text in SAMPLES]
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected).mean(0), atol=1e-5, rtol=1e-4)


def test_soft_masks_of_a_padded_batch_train_as_its_texts_do() -> None:
    """Loss and gradients, of base, approximate network and p_logits: finite, and the mean over unpadded texts."""
    base = make_backbone("bert")
    network = make_approx(base, "bert")
    p_logit = torch.tensor([0.4, -0.3, 0.1], requires_grad=True)
    labels = torch.tensor([0, 3, 1, 4])

    def gradients(text: Text, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for module in (base, network):
            module.zero_grad()
        p_logit.grad = None
        plan = concrete_plan(network(text), p_logit).plan
        loss = F.cross_entropy(run_masked(base, text, plan), wanted)
        held = concrete_loss(p_logit, plan.alive, text.real, 0.0, 1e-3, 0.0)  # the keep term is no mean over texts
        (loss + held.p_logit).backward()
        found = [p.grad for module in (base, network) for p in module.parameters()]
        kept = torch.cat([grad.flatten() for grad in [*found, p_logit.grad] if grad is not None])
        return loss.detach(), kept

    loss, gradient = gradients(pad_text(TEXT, 3), labels)
    alone = [gradients(text, labels[index : index + 1]) for index, text in enumerate(SAMPLES)]
    assert gradient.isfinite().all()
    torch.testing.assert_close(loss, torch.stack([each for each, _ in alone]).mean(), atol=1e-5, rtol=1e-5)
    expected = torch.stack([each for _, each in alone]).mean(0)
    assert (gradient - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.inference_mode()
def test_online_rules_see_padding_neither_as_row_nor_as_key() -> None:
    base = make_backbone("bert")

    def rule(layer: int, attention: LayerAttention, alive: torch.Tensor) -> torch.Tensor:
        assert not attention.probabilities.masked_fill(alive[:, None, None, :], 0).any()
        return forward_select(attention.received(alive), alive, torch.tensor([4, 2, 6, 3]))

    dropped, masked = (run(base, pad_text(TEXT, 2), rule) for run in (run_online_dropped, run_online_masked))
    assert torch.equal(dropped.plan.alive, masked.plan.alive)
    assert dropped.plan.alive[:, 1].sum(-1).tolist() == [4, 2, 6, 3]
    torch.testing.assert_close(dropped.logits, masked.logits, atol=1e-5, rtol=1e-5)


def test_the_recipe_freezes_nothing_of_text() -> None:
    assert make_backbone("bert").embeddings() == []


@pytest.mark.parametrize(
    ("changes", "factor", "what"),
    [({}, 3, "approx.factor=3 does not divide the width of a head"), ({"intermediate_size": 50}, 4, "feed-forward")],
)
def test_a_factor_that_does_not_divide_is_refused(changes: dict, factor: int, what: str) -> None:
    with pytest.raises(UserError, match=what):
        make_bert(**changes).narrow(factor)


def test_a_narrow_copy_keeps_vocabulary_positions_and_dropout() -> None:
    narrow = make_bert(hidden_dropout_prob=0.3).narrow(4).model
    assert narrow.bert.embeddings.word_embeddings.weight.shape == (BERT["vocab_size"], 8)
    assert narrow.bert.embeddings.position_embeddings.weight.shape == (BERT["max_position_embeddings"], 8)
    assert narrow.config._attn_implementation == "sdpa" and narrow.dropout.p == 0.3


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"is_decoder": True, "add_cross_attention": True}, "cross attention, causal attention"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
    ],
)
def test_what_the_adapter_would_not_reproduce_is_refused(changes: dict, what: str) -> None:
    with pytest.raises(UserError, match=what):
        make_bert(**changes)


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        (DistilBertModel, "has no classifier.bias, classifier.weight, pre_classifier.bias, pre_classifier.weight"),
        (DistilBertForMaskedLM, "tensors of its pretraining head are left out"),
    ],
)
def test_a_distilbert_comes_from_files_as_a_bert_does(
    kind: Any, note: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make_backbone("distilbert")
    whole.model.save_pretrained(tmp_path / "whole")
    loaded = build_text(str(tmp_path / "whole"), 5, pretrained=True).base
    assert isinstance(loaded, DistilBert) and torch.equal(loaded.eval()(TEXT), whole(TEXT))
    torch.manual_seed(1)
    kind(whole.model.config).save_pretrained(tmp_path / "encoder")
    stored = load_file(tmp_path / "encoder" / "model.safetensors")
    stored = {name.removeprefix("distilbert."): value for name, value in stored.items()}
    with caplog.at_level(logging.INFO):
        built = build_text(str(tmp_path / "encoder"), 3, pretrained=True, arguments={"dropout": 0.0})
    loaded = built.base
    assert note in caplog.text and built.new_head and loaded.model.config.dropout == 0.0
    for name, value in official_state(loaded).items():
        assert "classifier" in name or torch.equal(value, stored[name]), name
    rewrite(tmp_path / "whole", lambda state: state.pop("pre_classifier.bias"))
    with pytest.raises(UserError, match=r"pre_classifier\.bias is missing"):
        build_text(str(tmp_path / "whole"), 5, pretrained=True)


@pytest.mark.parametrize("kind", [ElectraModel, ElectraForPreTraining, ElectraForMaskedLM])
def test_an_electra_comes_from_files_and_gets_a_head(kind: Any, tmp_path: Path) -> None:
    kind(make_backbone("electra_projected").model.config).save_pretrained(tmp_path)
    stored = {name.removeprefix("electra."): x for name, x in load_file(tmp_path / "model.safetensors").items()}
    built = build_text(str(tmp_path), 3, pretrained=True)
    assert isinstance(built.base, Electra) and built.new_head
    state = official_state(built.base)
    assert "embeddings_project.weight" in state
    for name, value in state.items():
        assert name.startswith("classifier.") or torch.equal(value, stored[name]), name


def test_narrow_embeddings_that_are_projected_become_as_much_narrower() -> None:
    narrow = make_text_model("electra_projected").narrow(4)
    assert (narrow.architecture.looked_up, narrow.architecture.width) == (4, 8)
    assert make_text_model("electra").narrow(4).architecture.looked_up == 0
    with pytest.raises(UserError, match=r"approx.factor=4 does not divide the embedding width 18"):
        make_text_model("electra_projected", embedding_size=18).narrow(4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_backbone("bert").model.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


@torch.inference_mode()
def test_a_whole_checkpoint_is_loaded_as_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(folder, lambda state: state.update({"bert.embeddings.position_ids": torch.arange(24)[None]}))
    with caplog.at_level(logging.INFO):
        loaded = build_text(str(folder), classes=5, pretrained=True).base.eval()
    assert torch.equal(loaded(TEXT), make_backbone("bert")(TEXT))
    assert not caplog.records
    fresh = build_text(str(folder), classes=5, pretrained=False).base
    assert not torch.equal(fresh.eval()(TEXT), loaded(TEXT))


def test_a_loaded_model_trains_with_dropout(folder: Path) -> None:
    for pretrained in (True, False):
        base = build_text(str(folder), classes=5, pretrained=pretrained).base
        assert all(module.training for module in base.modules()) and base.attention_dropout(0) == 0.1


def test_half_precision_files_become_single_precision(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    assert {p.dtype for p in build_text(str(folder), 5, pretrained=True).base.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "fresh", "note"),
    [
        (BertModel, ["classifier"], "has no classifier.bias, classifier.weight: it starts from random weights"),
        (BertForPreTraining, ["classifier"], "7 tensors of its pretraining head are left out"),
        (lambda config: BertModel(config, add_pooling_layer=False), ["classifier", "pooler"], "bert.pooler.dense"),
    ],
    ids=["encoder", "pretraining", "no_pooler"],
)
def test_an_encoder_gets_a_fresh_head_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Any, fresh: list[str], note: str
) -> None:
    torch.manual_seed(1)
    kind(BertConfig(**BERT)).save_pretrained(tmp_path)
    stored = {name.removeprefix("bert."): value for name, value in load_file(tmp_path / "model.safetensors").items()}
    with caplog.at_level(logging.INFO):
        loaded = build_text(str(tmp_path), classes=3, pretrained=True).base
    assert note in caplog.text
    for name, value in official_state(loaded).items():
        if not name.startswith(tuple(fresh)):
            assert torch.equal(value, stored[name]), name
    assert loaded.architecture.classes == 3


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda state: state.pop("bert.encoder.layer.1.output.dense.bias"),
            "encoder.layer.1.output.dense.bias is missing",
        ),
        (lambda state: state.update({"bert.encoder.x": torch.ones(2)}), "bert.encoder.x is unexpected"),
        (lambda state: state.pop("bert.pooler.dense.bias"), "pooler.dense.bias is missing"),
        (lambda state: state.pop("classifier.bias"), "classifier.bias is missing"),
        (
            lambda state: state.update({"bert.pooler.dense.bias": torch.ones(2)}),
            r"pooler.dense.bias has shape \(2,\), not \(32,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, change: Callable, what: str) -> None:
    rewrite(folder, change)
    with pytest.raises(UserError, match=what):
        build_text(str(folder), classes=5, pretrained=True)


def test_a_head_of_other_classes_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"classifier.weight has shape \(5, 32\), not \(2, 32\)"):
        build_text(str(folder), classes=2, pretrained=True)


def test_one_line_for_what_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    GPT2Config(n_layer=1).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "empty").mkdir()
    cases = [
        (str(tmp_path / "nowhere"), {}, "is no folder here and was not found on the hub"),
        ("nobody/has-this-model", {}, "give a local folder with config.json and model.safetensors, or load it once"),
        (str(tmp_path / "empty"), {}, "config.json is missing"),
        (str(tmp_path / "gpt2"), {}, "is a gpt2, which cannot be pruned here: choose one of .*bert, distilbert"),
        (str(folder), {"hidden_dropout": 0.0}, "did you mean 'hidden_dropout_prob'"),
        (str(folder), {"num_attention_heads": 5}, "hidden size .* is not a multiple"),
        (str(folder), {"hidden_dropout_prob": "much"}, "hidden_dropout_prob=much does not fit bert"),
    ]
    broken = folder.parent / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((folder / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:2000])
    cases.append((str(broken), {}, "it may be truncated or damaged"))
    for name, arguments, what in cases:
        with pytest.raises(UserError, match=what) as caught:
            build_text(name, 5, True, arguments)
        assert "\n" not in str(caught.value) and name in str(caught.value) + str(folder)


def test_settings_choose_the_backbone_and_must_say_what_it_is(folder: Path) -> None:
    settings = ModelSettings(name="tiny", huggingface=str(folder), width=32, depth=3, heads=4)
    settings.arguments = {"hidden_dropout_prob": 0.0}
    base = build_base(settings, classes=5, channels=0, image_size=0, pretrained=True).base
    assert isinstance(base, Bert) and base.model.dropout.p == 0.0
    settings.depth = 4
    with pytest.raises(UserError, match=r"model.depth=4, but .* has 3: set model.depth=3"):
        build_base(settings, 5, 0, 0, pretrained=False)
    for timm, huggingface in (("", ""), ("vit_tiny_patch16_224", str(folder))):
        settings.timm, settings.huggingface = timm, huggingface
        with pytest.raises(UserError, match="set one of them"):
            build_base(settings, 5, 0, 0, pretrained=False)


def test_one_output_is_a_score() -> None:
    assert make_bert(num_labels=1)(TEXT).shape == (4, 1)
