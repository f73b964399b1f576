"""Adapters are found by class, and compute what the library's model does: sizes, dropout, dtypes, calls; or refuse."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib.metadata import EntryPoint
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

import sttabt
from conftest import (
    BERT,
    TEXTS,
    make_approx,
    make_backbone,
    make_bert,
    make_inputs,
    make_text,
    make_text_model,
    set_dropouts,
)
from sttabt.backbones import adapt, registry
from sttabt.backbones.base import Backbone
from sttabt.backbones.bert import Bert
from sttabt.backbones.bert_family import BertFamily
from sttabt.backbones.distilbert import DistilBert
from sttabt.backbones.vit import ViT
from sttabt.core.plan import keep_all
from sttabt.core.text import Text
from sttabt.engine.dense import run_dense, trace_attention
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.errors import UserError
from sttabt.pretrained.huggingface_text import build_text
from sttabt.settings import method_names
from sttabt.testing.models import pad_text

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


def timm_vit(name: str = "vit_tiny_patch16_224", **arguments: Any) -> VisionTransformer:
    """Random weights far from zero, in evaluation mode."""
    torch.manual_seed(7)
    model = timm.create_model(name, **{**SMALL, "img_size": 32, **arguments})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def images_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


# --- found by class


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        (timm_vit(), ViT),
        (timm_vit("deit_tiny_distilled_patch16_224"), ViT),
        (BertForSequenceClassification(BertConfig(**BERT)), Bert),
        (
            DistilBertForSequenceClassification(DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=32)),
            DistilBert,
        ),
    ],
    ids=["vit", "deit", "bert", "distilbert"],
)
def test_a_model_finds_its_adapter_by_its_class(model: nn.Module, adapter: type[Backbone]) -> None:
    base = adapt(model)
    assert type(base) is adapter and base.model is model
    assert adapt(base) is base

    class Users(type(model)):  # type: ignore[misc]
        def mine(self) -> None: ...

    copied = copy.deepcopy(model)
    copied.__class__ = Users
    assert type(adapt(copied)) is adapter


def test_an_unknown_class_is_refused_with_what_is_served() -> None:
    class VisionTransformers(nn.Module): ...

    with pytest.raises(
        UserError, match=r"a Linear cannot be pruned: give one of timm's VisionTransformer.*; transformers's BertFor"
    ):
        adapt(nn.Linear(2, 2))
    with pytest.raises(
        UserError, match=r"a VisionTransformers cannot be pruned \(did you mean 'VisionTransformer'\?\)"
    ):
        adapt(VisionTransformers())


def test_another_package_adds_an_adapter_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [EntryPoint("own", f"{__name__}:OwnAdapter", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == registry.GROUP else [])
    registry.served.cache_clear()
    try:
        base = adapt(OwnModel(**{**SMALL, "img_size": 32}))
        assert type(base) is OwnAdapter
        for wrong, what in (("Missing", "cannot be imported"), ("OwnModel", "which is no Backbone")):
            found[:] = [EntryPoint("own", f"{__name__}:{wrong}", registry.GROUP)]
            registry.served.cache_clear()
            with pytest.raises(UserError, match=f"the backbone own .*{what}"):
                adapt(nn.Linear(2, 2))
    finally:
        registry.served.cache_clear()


class OwnModel(VisionTransformer): ...


class OwnAdapter(ViT):
    serves = (f"{__name__}.OwnModel",)


class Roberta(BertFamily):
    """What a family of transformers takes that is a BERT but for its positions."""

    serves = ("transformers.models.roberta.modeling_roberta.RobertaForSequenceClassification",)
    model_type = "roberta"
    pretraining_heads = ("lm_head.",)

    @property
    def first_position(self) -> int:
        return self.model.config.pad_token_id + 1


def test_a_family_of_another_package_comes_from_files_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = [EntryPoint("roberta", f"{__name__}:Roberta", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    registry.served.cache_clear()
    try:
        config = RobertaConfig(**{**BERT, "pad_token_id": 0, "type_vocab_size": 2})
        RobertaForMaskedLM(config).save_pretrained(tmp_path / "encoder")
        assert build_text(str(tmp_path / "encoder"), 3, pretrained=True).new_head
        RobertaForSequenceClassification(config).save_pretrained(tmp_path / "whole")
        built = build_text(str(tmp_path / "whole"), 5, pretrained=True)
    finally:
        registry.served.cache_clear()
    base, text = built.base.eval(), make_text()
    assert type(base) is Roberta and not built.new_head and base.tokens == BERT["max_position_embeddings"] - 1
    with torch.inference_mode():
        expected = base.model(input_ids=text.ids, attention_mask=text.real, token_type_ids=text.types).logits
        found_logits = sttabt.prune(base, "backtracking", keep_ratio=1.0, approx=4)(text).logits
    torch.testing.assert_close(found_logits, expected, atol=1e-5, rtol=1e-5)


def test_only_the_library_of_a_model_is_imported() -> None:
    code = """
import sys
from sttabt.backbones.registry import adapt, served
served()
assert not {"timm", "transformers", "huggingface_hub", "sttabt.pretrained", "sttabt.store"} & set(sys.modules)
import timm
model = timm.create_model("test_vit", patch_size=8, img_size=32, num_classes=5)
adapt(model).narrow(2)
assert "transformers" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- what would not run


class Other(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class OtherMlp(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def _hook(name: str, kind: str) -> Any:
    return lambda model: getattr(model.get_submodule(name), f"register_forward_{kind}")(lambda *_: None)


def _replace_forward(model: Any) -> None:
    model.blocks[2].attn.forward = lambda x, **_: x


def _wrap(model: Any) -> None:
    model.blocks[1] = Other(model.blocks[1])


def _subclass(model: Any) -> None:
    model.blocks[2].mlp = OtherMlp(32, 128)


def _another_norm(model: Any) -> None:
    model.blocks[2].attn.q_norm = nn.LayerNorm(16)


def _wider(model: Any) -> None:
    model.blocks[1].mlp = Mlp(32, 64)


VIT = [
    (_hook("blocks.2.attn", "hook"), "blocks.2.attn has a forward hook, which would not run: remove it"),
    (_hook("blocks.1", "pre_hook"), "blocks.1 has a forward pre-hook, which would not run: remove it"),
    (_hook("blocks", "hook"), "blocks has a forward hook"),
    (_hook("", "hook"), "the model has a forward hook"),
    (_replace_forward, "blocks.2.attn has a replaced forward, which would not run: remove it"),
    (_wrap, "blocks.1 is a Other, whose forward would not run: it must be a Block"),
    (_subclass, "blocks.2.mlp is a OtherMlp, whose forward would not run: it must be a Mlp"),
    (_another_norm, "it has query and key norms unlike the first block (blocks.2)"),
    (_wider, "it has a feed-forward of another width (blocks.1)"),
]
TEXT = [
    (_hook("bert.encoder.layer.2.attention", "hook"), "bert.encoder.layer.2.attention has a forward hook"),
    (_hook("bert.encoder.layer.1.intermediate", "pre_hook"), "layer.1.intermediate has a forward pre-hook"),
    (_hook("bert.embeddings", "hook"), "bert.embeddings has a forward hook"),
]


@pytest.mark.parametrize(("change", "message"), VIT, ids=[message[:40] for _, message in VIT])
def test_every_block_of_a_vit_is_looked_at(change: Any, message: str) -> None:
    model = timm_vit()
    change(model)
    with pytest.raises(UserError) as error:
        adapt(model)
    assert message in str(error.value)


@pytest.mark.parametrize(("change", "message"), TEXT, ids=[message[:40] for _, message in TEXT])
def test_every_layer_of_a_bert_is_looked_at(change: Any, message: str) -> None:
    model = make_bert().model
    change(model)
    with pytest.raises(UserError) as error:
        adapt(model)
    assert message in str(error.value)


def test_a_subclass_of_the_model_that_computes_otherwise_is_refused() -> None:
    class Users(VisionTransformer):
        def forward_features(self, x: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
            return x

    with pytest.raises(UserError, match="the model is a Users, whose forward would not run"):
        adapt(Users(**SMALL, img_size=32))


def test_a_hook_that_comes_later_is_refused_by_the_next_call() -> None:
    for base, given in ((adapt(timm_vit()), images_of(2, 3, 32, 32)), (make_bert().eval(), make_text().ids)):
        base.read_call(given)
        name, module = next((name, module) for name, module in base.model.named_modules() if name.endswith(".1"))
        handle = module.register_forward_hook(lambda *_: None)
        with pytest.raises(UserError, match=f"{name} has a forward hook"):
            base.read_call(given)
        handle.remove()
        base.read_call(given)


def test_the_librarys_own_recording_is_no_hook_of_a_user() -> None:
    base = make_backbone("bert")
    text = make_text()
    states = base.model(text.ids, text.real, text.types, output_hidden_states=True).hidden_states
    assert len(states) == base.layers + 1
    base.check()
    base.read_call(text)


@torch.inference_mode()
def test_modules_that_are_called_keep_their_hooks(backbone_name: str) -> None:
    """Doubled outputs of norms, dropouts, activations, tables and projections change both alike."""
    base, inputs = make_backbone(backbone_name), make_inputs(backbone_name)
    repeated = {id(module) for _, module, _ in base.repeated()}
    kinds = (nn.LayerNorm, nn.Dropout, nn.Embedding, nn.GELU, nn.Conv2d, nn.Tanh)
    called = [m for m in base.model.modules() if isinstance(m, kinds) and id(m) not in repeated]
    assert len(called) > 5
    plain = base(inputs)
    for module in called:
        module.register_forward_hook(lambda module, given, output: 1.1 * output)
    base.check()
    assert (base(inputs) - plain).abs().max() > 1e-3
    everything = keep_all(base.real(inputs), base.layers, base.outputs)
    dense = run_dense(base, inputs)
    for logits in (dense.logits, run_dropped(base, inputs, everything), run_masked(base, inputs, everything)):
        torch.testing.assert_close(logits, base(inputs), atol=1e-4, rtol=1e-4)
    traced, real = trace_attention(base, base.prepare(inputs)), base.real(inputs)
    for layer in range(base.layers):
        found, expected = traced.probabilities(layer), dense.trace.probabilities(layer)
        rows = real[:, None, :, None].expand_as(expected)
        torch.testing.assert_close(found[rows], expected[rows], atol=1e-4, rtol=1e-4)


# --- dropout at work

RATES = {"proj_drop_rate": 0.3, "attn_drop_rate": 0.4, "pos_drop_rate": 0.2, "drop_rate": 0.1, "drop_path_rate": 0.2}


def _same_draws(base: Backbone, inputs: Any) -> None:
    torch.manual_seed(11)
    expected = base(inputs)
    torch.manual_seed(11)
    torch.testing.assert_close(run_dense(base, inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert (base(inputs) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("which", ["all", "dropouts"])
@torch.no_grad()
def test_dropout_of_a_vit_is_timms(which: str, fused: bool) -> None:
    """The same draws in the same order give the same logits, in training and with dropouts alone at work."""
    model = timm_vit(**RATES)
    for block in model.blocks:
        block.attn.fused_attn = fused
    for module in model.modules():
        module.train(which == "all" or isinstance(module, nn.Dropout))
    base = adapt(model)
    _same_draws(base, images_of(4, 3, 32, 32))
    for layer in range(base.layers):
        assert base.attention_dropout(layer) == (0.4 if which == "all" or not fused else 0.0)


@pytest.mark.parametrize("name", TEXTS)
@torch.no_grad()
def test_dropouts_alone_at_work_are_the_librarys(name: str) -> None:
    base = make_text_model(name).eval()
    set_dropouts(base)
    for module in base.modules():
        module.train(isinstance(module, nn.Dropout))
    _same_draws(base, make_text())


@pytest.mark.parametrize("name", ["proj_drop", "pos_drop", "drop1"])
@torch.no_grad()
def test_a_single_dropout_acts_in_every_engine(name: str) -> None:
    model = timm_vit(**RATES)
    base, images = adapt(model), images_of(2, 3, 32, 32)
    everything = keep_all(base.real(images), base.layers, base.outputs)
    engines = [lambda run=run: run(base, images, everything) for run in (run_dropped, run_masked)]
    engines += [lambda: run_dense(base, images).logits, lambda: trace_attention(base, images).queries[-1]]
    assert all(torch.equal(run(), run()) for run in engines)
    next(module for path, module in model.named_modules() if path.endswith(name)).train()
    assert all((run() - run()).abs().max() > 1e-4 for run in engines)


@torch.no_grad()
def test_pos_drop_drops_numbers_of_the_sum_of_patch_and_position() -> None:
    model = timm_vit(pos_drop_rate=0.5)
    model.pos_drop.train()
    base, images = adapt(model), images_of(64, 3, 32, 32)
    token = torch.arange(17).repeat(64)
    rows = base.embed_tokens(images, torch.arange(64).repeat_interleave(17), token).unflatten(0, (64, 17))
    gone = rows == 0
    assert gone.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(gone[0], gone[1]), "each image has a draw of its own"
    model.pos_drop.eval()
    torch.testing.assert_close(rows[~gone], 2 * base.embed(images)[~gone], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    "arguments",
    [
        {"global_pool": "avg"},
        {"global_pool": "avg", "fc_norm": False},
        {"global_pool": "avg", "class_token": False, "reg_tokens": 2},
        {"global_pool": "map", "class_token": False, "no_embed_class": True},
        {"global_pool": "map", "reg_tokens": 1, "qk_norm": True},
    ],
    ids=str,
)
def test_a_head_that_pools_reads_the_patches_that_are_left(arguments: dict[str, Any]) -> None:
    model = timm_vit(**arguments)
    base, images = adapt(model), images_of(3, 3, 32, 32)
    real = base.real(images)
    assert base.pools and base.outputs == model.num_prefix_tokens
    everything = keep_all(real, base.layers, base.outputs)
    for logits in (run_dense(base, images).logits, run_dropped(base, images, everything)):
        torch.testing.assert_close(logits, model(images), atol=1e-5, rtol=1e-5)
    states, alive = run_dense(base, images).states, torch.rand(real.shape) < 0.5
    alive[:, 5] = True
    for sample in range(3):
        left = torch.cat(
            [states[sample, : base.outputs], states[sample, base.outputs :][alive[sample, base.outputs :]]]
        )
        expected = model.forward_head(model.norm(left[None]))
        torch.testing.assert_close(base.head(states, alive)[sample, None], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="this model's head reads none, but pools tokens: choose another method"):
        sttabt.prune(model, "class_attention")


@torch.inference_mode()
def test_norms_of_queries_and_keys_are_left_to_torch_by_the_kernels() -> None:
    model, images = timm_vit(qk_norm=True), images_of(3, 3, 32, 32)
    for method in ("backtracking", "forward_topk", "tome", "class_attention"):
        pruned = sttabt.prune(model, method, approx=2)
        with pytest.raises(UserError, match="has layers that the kernels do not know"):
            sttabt.freeze(pruned)
        found, expected = sttabt.freeze(pruned, strict=False).run(images), pruned.run(images)
        assert torch.equal(found.plan.alive, expected.plan.alive)
        torch.testing.assert_close(found.logits, expected.logits)
    pruned = sttabt.prune(model, "backtracking", approx=2, keep_ratio=0.5)
    torch.testing.assert_close(pruned.forms()["masked"](images).logits, pruned(images), atol=1e-5, rtol=1e-5)
    assert isinstance(pruned.approx.backbone.model.blocks[0].attn.q_norm, nn.LayerNorm)


def test_patch_dropout_is_idle_in_evaluation_alone() -> None:
    base, images = adapt(timm_vit(patch_drop_rate=0.5)), images_of(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(run_dense(base, images).logits, base.model(images), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=r"patch_drop drops patches at random in training: set model\.patch_drop"):
        run_dense(base.train(), images)


def test_every_vision_transformer_of_timm_is_taken_or_refused_in_a_line() -> None:
    """Two layers of each, on no device: what is taken has its own class, what is refused its reason."""
    taken, refused = [], {}
    modules = ("vision_transformer", "vision_transformer_hybrid", "deit")
    for name in [name for module in modules for name in timm.list_models(module=module)]:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=2, depth=2)
        if isinstance(model, VisionTransformer):
            try:
                taken.append(adapt(model))
            except UserError as error:
                refused[name] = str(error)
    assert len(taken) >= 140 and sum(base.pools for base in taken) >= 50
    assert all("\n" not in reason and len(reason) < 200 for reason in refused.values())
    assert "HybridEmbed instead of PatchEmbed" in refused["vit_base_r50_s16_224"]
    assert "ParallelScalingBlock" in refused["vit_pwee_patch16_reg1_gap_256"]


# --- other image sizes


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"no_embed_class": True, "reg_tokens": 2}),
        ("vit_tiny_patch16_224", {"reg_tokens": 1}),
        ("vit_tiny_patch16_224", {"dynamic_img_pad": True}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
    ids=["vit", "no_embed_class", "registers", "padded", "distilled"],
)
@torch.inference_mode()
def test_a_dynamic_vit_takes_another_grid(name: str, arguments: dict) -> None:
    base = adapt(timm_vit(name, dynamic_img_size=True, **arguments))
    network = make_approx(base, "test_vit")
    sizes = [(32, 32), (16, 64), (48, 24)] + ([(37, 50)] if arguments.get("dynamic_img_pad") else [])
    for height, width in sizes:
        images, grid = images_of(2, 3, height, width), (-(-height // 8), -(-width // 8))
        assert base.grid_of(images) == grid
        real = base.real(images)
        assert real.shape == (2, grid[0] * grid[1] + base.outputs)
        expected, everything = base(images), keep_all(real, base.layers, base.outputs)
        for logits in (run_dense(base, images).logits, run_dropped(base, images, everything)):
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        assert trace_attention(network.backbone, images).real.shape == real.shape
    assert (base.grid, base.tokens) == ((4, 4), 16 + base.outputs)


@pytest.mark.parametrize("name", ["vit", "lvvit"])
@torch.inference_mode()
def test_images_of_another_size_are_refused_though_they_have_as_many_tokens(name: str) -> None:
    base, images = adapt(timm_vit()) if name == "vit" else make_backbone(name), images_of(2, 3, 16, 64)
    sample, token = torch.tensor([0, 1]), torch.tensor([0, 3])
    for run in (base.real, base.embed, base.grid_of, lambda given: base.embed_tokens(given, sample, token)):
        with pytest.raises(UserError, match="images are 16x64 pixels, but the model reads 32x32"):
            run(images)
    with pytest.raises((UserError, AssertionError), match="16"):  # timm's own words, or this package's
        base(images)


def test_parts_of_patches_are_refused() -> None:
    with pytest.raises(UserError, match="images are 36x32 pixels, which patches of 8x8 do not divide"):
        adapt(timm_vit(dynamic_img_size=True)).real(images_of(1, 3, 36, 32))


def test_a_model_whose_size_changes_is_followed() -> None:
    model = timm_vit()
    base, images = adapt(model), images_of(2, 3, 48, 16)
    model.set_input_size((48, 16))
    assert (base.grid, base.tokens) == ((6, 2), 13)
    with torch.inference_mode():
        torch.testing.assert_close(run_dense(base, images).logits, model(images), atol=1e-5, rtol=1e-5)


# --- dtypes, empty batches, strides


def as_dtype(inputs: Any, dtype: torch.dtype) -> Any:
    return inputs if isinstance(inputs, Text) else inputs.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_steps_follow_the_models_dtype(backbone_name: str, dtype: torch.dtype) -> None:
    base = make_backbone(backbone_name).to(dtype)
    inputs = as_dtype(make_inputs(backbone_name), dtype)
    run = run_dense(base, inputs)
    expected = base(inputs)
    assert run.logits.dtype == expected.dtype == dtype
    assert {state.dtype for state in run.hidden} == {dtype}
    error = (run.logits - expected).abs().max() / expected.abs().max()
    assert error < (1e-12 if dtype == torch.float64 else 0.05)
    everything = keep_all(base.real(inputs), base.layers, base.outputs)
    assert run_masked(base, inputs, everything).dtype == dtype
    narrow = base.narrow(2)
    assert {parameter.dtype for parameter in narrow.parameters()} == {dtype}
    assert run_dense(narrow, inputs).logits.dtype == dtype


@torch.inference_mode()
def test_an_empty_batch_has_no_logits(backbone_name: str) -> None:
    base, inputs = make_backbone(backbone_name), make_inputs(backbone_name)
    none = Text(*(field[:0] for field in inputs)) if isinstance(inputs, Text) else inputs[:0]
    assert base.real(none).shape == (0, base.real(inputs).shape[1])
    assert run_dense(base, none).logits.shape == (0, base.architecture.classes)
    nobody = torch.zeros(0, dtype=torch.long)
    assert base.embed_tokens(none, nobody, nobody).shape == (0, base.architecture.width)


@torch.inference_mode()
def test_strides_of_the_inputs_do_not_matter(backbone_name: str) -> None:
    base, inputs = make_backbone(backbone_name), make_inputs(backbone_name)
    if isinstance(inputs, Text):
        strided = Text(*(field.t().contiguous().t() for field in inputs))
    else:
        strided = inputs.transpose(1, 3).contiguous().transpose(1, 3)
    sample, token = torch.tensor([0, 2, 2]), torch.tensor([0, 1, 5])
    torch.testing.assert_close(base.embed(strided), base.embed(inputs), atol=1e-5, rtol=1e-5)
    found, expected = (base.embed_tokens(given, sample, token) for given in (strided, inputs))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# --- calls


@torch.inference_mode()
def test_a_vit_is_called_as_timm_calls_it() -> None:
    base, images = adapt(timm_vit()), images_of(2, 3, 32, 32)
    for inputs, finish in (base.read_call(images), base.read_call(x=images), base.read_call(images, attn_mask=None)):
        assert inputs is images
        assert torch.equal(finish(base(inputs)), base.model(images))
    for wrong in ({"attn_mask": torch.ones(1)}, {"is_causal": True}, {"mask": torch.ones(1)}):
        with pytest.raises(UserError, match=f"a pruned model does not take {next(iter(wrong))}"):
            base.read_call(images, **wrong)
    for arguments in ((), (images, None, False, 1)):
        with pytest.raises(UserError, match="is called with images"):
            base.read_call(*arguments)
    with pytest.raises(UserError, match="alone, by position"):
        base.read_call(pixel_values=images)


@pytest.mark.parametrize("name", [name for name in TEXTS if not make_backbone(name).embeds])
@pytest.mark.parametrize("problem", ["one", "regression", "single", "multi"])
@pytest.mark.parametrize("how", ["names", "positions", "tuple", "text"])
@torch.inference_mode()
def test_a_text_model_answers_as_the_library_does(name: str, problem: str, how: str) -> None:
    classes = 1 if problem == "one" else 5
    config = {"num_labels": classes} | ({"problem_type": "regression"} if problem == "regression" else {})
    base, other = make_text_model(name, **config).eval(), make_text_model(name, **config).eval()
    text = make_text()
    labels = torch.arange(4) if problem == "single" else torch.rand(4, *([classes] if classes > 1 else []))
    given: dict[str, Any] = {"input_ids": text.ids, "attention_mask": text.real.long(), "labels": labels}
    given |= {"token_type_ids": text.types} if "token_type_ids" in signature(base.model.forward).parameters else {}
    args: tuple[Any, ...] = ()
    if how == "positions":
        args = given.pop("input_ids"), given.pop("attention_mask")
    if how == "tuple":
        given |= {"return_dict": False}
    expected = other.model(*args, **given)
    if how == "text":
        args, given = (text,), {"labels": labels}
    inputs, finish = base.read_call(*args, **given)
    found = finish(base(inputs))
    assert type(found) is type(expected) and len(found) == len(expected) == 2
    for ours, theirs in (
        zip(found, expected, strict=True) if how == "tuple" else ((found[k], expected[k]) for k in found)
    ):
        torch.testing.assert_close(ours, theirs)
    assert base.model.config.problem_type == other.model.config.problem_type


@torch.inference_mode()
def test_a_text_model_answers_without_labels_mask_and_types() -> None:
    base, ids = make_backbone("bert"), make_text().ids
    inputs, finish = base.read_call(ids)
    found, expected = finish(base(inputs)), base.model(ids)
    assert found.loss is None and list(found) == list(expected) == ["logits"]
    torch.testing.assert_close(found.logits, expected.logits)
    inputs, finish = base.read_call(input_ids=ids, return_dict=False, output_attentions=False, position_ids=None)
    (logits,) = finish(base(inputs))
    torch.testing.assert_close(logits, expected.logits)


def test_a_call_of_a_text_model_that_cannot_be_read_is_refused() -> None:
    base, text = make_backbone("bert"), pad_text(make_text(), 2)
    holes = text.real.clone()
    holes[2, 3] = False
    ids = {"input_ids": text.ids}
    cases: list[tuple[dict[str, Any], str]] = [
        (ids | {"attention_mask": text.real.flip(1)}, "padding in front of a text: set tokenizer.padding_side='right'"),
        (ids | {"attention_mask": holes}, "attention_mask has holes"),
        (ids | {"attention_mask": text.real[:, None]}, "attention_mask has the shape (4, 1, 15), not (4, 15)"),
        (ids | {"inputs_embeds": torch.zeros(4, 15, 32)}, "a pruned model does not take inputs_embeds: leave it out"),
        (ids | {"output_attentions": True}, "a pruned model does not take output_attentions"),
        (ids | {"position_ids": text.ids}, "a pruned model does not take position_ids"),
        (ids | {"atention_mask": text.real}, "a pruned model does not take atention_mask"),
        ({"attention_mask": text.real}, "reads input_ids"),
        ({"input_ids": text, "attention_mask": text.real}, "input_ids is a Text"),
    ]
    for given, message in cases:
        with pytest.raises(UserError) as error:
            base.read_call(**given)
        assert message in str(error.value)
    with pytest.raises(UserError, match="input_ids is given twice"):
        base.read_call(text.ids, input_ids=text.ids)
    base.model.config.output_hidden_states = True
    with pytest.raises(UserError, match=r"does not take config\.output_hidden_states"):
        base.read_call(text.ids)


# --- pruned


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_a_pruned_vit_follows_dtype_and_image_size(method: str, dtype: torch.dtype) -> None:
    model = timm_vit(dynamic_img_size=True).to(dtype)
    pruned = sttabt.prune(model, method, approx=2)
    for shape in ((2, 3, 32, 32), (3, 3, 16, 64), (1, 3, 48, 24)):
        images = images_of(*shape).to(dtype)
        found, run = pruned(images), pruned.run(images)
        assert found.dtype == model(images).dtype == dtype and found.isfinite().all()
        assert torch.equal(found, run.logits) and run.plan.alive.shape[2] == base_tokens(shape)


def base_tokens(shape: tuple[int, ...]) -> int:
    return shape[2] * shape[3] // 64 + 1


@torch.inference_mode()
def test_a_pruned_bert_is_called_as_the_library_calls_it() -> None:
    model, text = make_backbone("bert").model, make_text()
    pruned = sttabt.prune(model, "backtracking", keep_ratio=1.0, approx=4)
    given = {"input_ids": text.ids, "attention_mask": text.real.long(), "token_type_ids": text.types}
    found, expected = (each(**given, labels=torch.arange(4)) for each in (pruned, model))
    assert type(found) is type(expected)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="does not take output_attentions"):
        pruned(**given, output_attentions=True)
