"""A frozen model is the model that was frozen, to rounding, and stays it whatever becomes of the original."""

import copy
import gc
import io
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import sttabt
from conftest import BERT, TEXTS, VISION, make_approx, make_backbone, make_inputs, make_text
from sttabt.backbones.base import Backbone
from sttabt.core.backtrack import backtrack, plan_topk
from sttabt.core.concrete import concrete_plan, plan_concrete
from sttabt.core.plan import TokenPlan
from sttabt.core.received import AboveThreshold, MostReceived
from sttabt.core.trace import AttentionTrace
from sttabt.engine.dense import trace_attention
from sttabt.engine.dropped import run_dropped
from sttabt.engine.frozen import FrozenBackbone, FrozenTrace
from sttabt.engine.online import rule_of, run_online_dropped, run_online_masked, run_selected
from sttabt.errors import UserError
from sttabt.methods import find_method
from sttabt.methods.base import MergingMethod, OnlineMethod
from sttabt.models.fixed import FixedModel
from sttabt.models.frozen import FrozenModel, freeze
from sttabt.models.pruned import PrunedModel
from sttabt.native.cpu import MISSING, problem
from sttabt.settings import method_settings
from sttabt.testing import contract
from sttabt.testing.models import one_by_one

pytestmark = pytest.mark.skipif(problem() == MISSING, reason="built without a C++ compiler: there are no kernels")


def make_model(backbone_name: str, method: str = "backtracking", **changes: object) -> PrunedModel:
    base = make_backbone(backbone_name)
    settings = replace(method_settings(method)(method=method), **changes)
    built = find_method(method)(settings, base.layers, base.outputs)
    approx = make_approx(base, backbone_name) if built.attention == "approximate" else None
    return PrunedModel(base, built, approx).eval()


@pytest.mark.parametrize("case", contract.cases(), ids=str)
@torch.inference_mode()
def test_a_frozen_model_computes_the_same(case: contract.Case) -> None:
    """Logits and plan the contract compares; besides, nothing is left to torch, and multiply-adds are the same."""
    if refusal := case.refusal():
        pytest.skip(refusal)
    model, example = case.make()
    frozen, sample = freeze(model), one_by_one(example.inputs)[0]
    assert frozen.left_to_torch == []
    assert torch.equal(frozen.run(example.inputs).plan.counts, model.run(example.inputs).plan.counts)
    alone, same = frozen.macs(frozen.run(sample)), model.macs(model.run(sample))
    if not isinstance(model.method, OnlineMethod | MergingMethod):  # whose attention is computed otherwise
        assert alone == pytest.approx(same)


@torch.inference_mode()
def test_a_frozen_model_computes_no_padding() -> None:
    """A batch costs what its texts cost alone, the longest one's padding included nowhere."""
    inputs = make_inputs("bert")
    for method, changes in (("backtracking", {"keep_ratio": 0.6}), ("concrete", {"p_logit": -0.5}), ("ltp", {})):
        model = freeze(make_model("bert", method, **changes))
        run = model.run(inputs)
        alone = [model.macs(model.run(text)) for text in one_by_one(inputs)]
        for part, macs in model.macs(run).items():
            if part != "planning" or method == "ltp":  # is counted as if every sample had the longest one's keys
                assert macs == pytest.approx(sum(each[part] for each in alone) / len(alone)), part


@torch.inference_mode()
def test_a_dense_model_is_frozen_with_every_token(backbone_name: str) -> None:
    base, inputs = make_backbone(backbone_name), make_inputs(backbone_name)
    frozen = freeze(base)
    torch.testing.assert_close(frozen.run(inputs).logits, base(inputs), rtol=1e-4, atol=1e-4)
    assert frozen.run(inputs).plan.occupancy(base.real(inputs)).min() == 1


def test_a_library_model_is_called_as_before() -> None:
    model = timm.create_model("test_vit", num_classes=7).eval()
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(freeze(model)(images), model(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(freeze(model)(x=images), model(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_traces_are_those_of_the_original(backbone_name: str) -> None:
    base, inputs = make_backbone(backbone_name), make_inputs(backbone_name)
    inputs = base.prepare(inputs)
    found, expected = trace_attention(FrozenBackbone(base), inputs), trace_attention(base, inputs)
    assert isinstance(found, FrozenTrace) and found.layers == expected.layers
    torch.testing.assert_close(found.queries, expected.queries, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.keys, expected.keys, rtol=1e-4, atol=1e-4)
    weight = torch.rand(found.real.shape) * found.real
    torch.testing.assert_close(found.received(1, weight), expected.received(1, weight), rtol=1e-4, atol=1e-5)
    places = torch.tensor([[0, 1]]).expand(len(weight), -1)
    few = weight[:, :2]
    torch.testing.assert_close(found.received(0, few, places), expected.received(0, few, places), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "bert"])
@torch.no_grad()
def test_plans_of_a_frozen_trace_are_those_of_its_numbers(name: str) -> None:
    """The same numbers in double precision, through the formulas of core."""
    base, inputs = make_backbone(name), make_inputs(name)
    trace = trace_attention(FrozenBackbone(base), inputs)
    precise = AttentionTrace(
        tuple(rows.double() for rows in trace.queries), tuple(rows.double() for rows in trace.keys), trace.real,
        trace.scale,
    )  # fmt: skip
    mixed = [3, 0.5] + [0.9] * (base.layers - 2)
    for keep in (0.4, [0.8] * (base.layers - 1) + [0.2], [4] * base.layers, mixed, None):
        found, expected = plan_topk(trace, keep, 0.1, 1), backtrack(precise, keep, 0.1, 1)
        assert torch.equal(found.plan.lifetime, expected.plan.lifetime)
        scored = expected.plan.counts[:, 1:].double().mean(0).tolist()
        assert list(found.scored) == pytest.approx(scored)
    with pytest.raises(ValueError, match="keep has 2 entries"):
        plan_topk(trace, [0.5, 0.5], 0.1, 1)
    p_logit = torch.linspace(-1, 0, base.layers)
    hard = plan_concrete(trace, p_logit, 0.1, 0.1, 1, 1e-5).plan
    soft = concrete_plan(precise, p_logit.double(), 0.1, 0.1, 1).plan
    clear = ((soft.alive - 0.5).abs() > 0.02).all(1)
    assert torch.equal(hard.lifetime[clear], soft.harden().lifetime[clear])


@pytest.mark.parametrize("by", ["counts", "threshold"])
@torch.no_grad()
def test_a_rule_in_python_keeps_what_the_same_in_one_call_keeps(backbone_name: str, by: str) -> None:
    """Layer by layer, as any rule of one's own runs on a frozen model."""
    base, inputs = make_backbone(backbone_name), make_inputs(backbone_name)
    frozen, inputs = FrozenBackbone(base), base.prepare(inputs)
    tokens = base.real(inputs).sum(1)
    falling = torch.linspace(0.8, 0.3, base.layers - 1)[:, None]
    counts = MostReceived((falling * tokens).long().clamp_min(1))
    selection = counts if by == "counts" else AboveThreshold(torch.full((base.layers - 1,), float(1 / tokens.max())))
    rule = rule_of(selection, base.outputs)
    together, apart = run_selected(frozen, inputs, selection), run_online_dropped(frozen, inputs, rule)
    masked = run_online_masked(base, inputs, rule)
    for other in (apart, masked):
        assert torch.equal(together.plan.alive, other.plan.alive)
        torch.testing.assert_close(together.logits, other.logits, rtol=1e-4, atol=1e-4)
    assert 0 < together.plan.occupancy(base.real(inputs)).min() < 1


@torch.no_grad()
def test_plans_that_are_given_are_followed(backbone_name: str) -> None:
    """Every sample keeps another number of tokens, some layers keep all."""
    base, inputs = make_backbone(backbone_name), make_inputs(backbone_name)
    torch.manual_seed(1)
    inputs, real = base.prepare(inputs), base.real(inputs)
    lifetime = torch.randint(0, base.layers + 1, real.shape) * real
    lifetime[:, : base.outputs] = base.layers + 1
    plan = TokenPlan(lifetime, base.layers)
    found, expected = run_dropped(FrozenBackbone(base), inputs, plan), run_dropped(base, inputs, plan)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="must keep the first"):
        run_dropped(FrozenBackbone(base), inputs, TokenPlan(lifetime * 0, base.layers))


def hook(base: Backbone) -> None:
    base.model.blocks[2].mlp.fc1.register_forward_hook(lambda *_: None)


def pre_hook_on_a_norm(base: Backbone) -> None:
    base.model.blocks[0].norm2.register_forward_pre_hook(lambda *_: None)


def another_forward(base: Backbone) -> None:
    base.model.blocks[0].norm1.forward = lambda rows: rows


class Lora(nn.Linear):
    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows) + rows.sum(-1, keepdim=True)


def subclass(base: Backbone) -> None:
    width = base.architecture.width
    base.model.blocks[1].attn.qkv = Lora(width, 3 * width)


def parametrization(base: Backbone) -> None:
    nn.utils.parametrizations.weight_norm(base.model.blocks[0].mlp.fc2)


def parametrized_norm(base: Backbone) -> None:
    nn.utils.parametrize.register_parametrization(base.model.blocks[0].norm1, "weight", nn.Softplus())


def other_activation(base: Backbone) -> None:
    base.model.blocks[2].mlp.act = nn.GELU(approximate="tanh")


def unknown_activation(base: Backbone) -> None:
    base.model.blocks[2].mlp.act = nn.SiLU()


def wider_layer(base: Backbone) -> None:
    mlp, width = base.model.blocks[1].mlp, base.architecture.width
    mlp.fc1, mlp.fc2 = nn.Linear(width, 512), nn.Linear(512, width)


def dropout_at_work(base: Backbone) -> None:
    base.model.blocks[1].mlp.drop1 = nn.Dropout(0.1)


def dropout_on_the_embedding(base: Backbone) -> None:
    base.model.pos_drop = nn.Dropout(0.1)


def double(base: Backbone) -> None:
    base.double()


def half_a_layer(base: Backbone) -> None:
    base.model.blocks[0].mlp.fc1.bfloat16()


REFUSED = {
    hook: "blocks.2.mlp.fc1 has a forward hook",
    pre_hook_on_a_norm: "blocks.0.norm2 has a forward hook",
    another_forward: "blocks.0.norm1 has a forward hook or a replaced forward",
    subclass: "blocks.1.attn.qkv is a Lora",
    parametrization: "blocks.0.mlp.fc2 is a Parametrized",
    parametrized_norm: "blocks.0.norm1 is a Parametrized",
    other_activation: "blocks.2.mlp.act is a GELU.*unlike the first block's",
    unknown_activation: "blocks.2.mlp.act is a SiLU.*, not a GELU or QuickGELU",
    wider_layer: "blocks.1.mlp.fc1 has the shape",
    dropout_at_work: "blocks.1.mlp.drop1 is training",
    dropout_on_the_embedding: "pos_drop is training",
    double: r"the model is torch.float64.*copy.deepcopy\(model\).float\(\)",
    half_a_layer: "blocks.0.mlp.fc1.weight is torch.bfloat16",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_the_kernels_cannot_reproduce_is_refused_by_name(change: Callable[[Backbone], None]) -> None:
    base = make_backbone("digits")
    change(base)
    with pytest.raises(UserError, match=REFUSED[change]):
        freeze(base)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_tanh", "quick_gelu"])
def test_each_librarys_gelu_is_the_kernels(name: str) -> None:
    """Far enough from 0 that one is not the other."""
    model: Any
    if name in ("gelu_tanh", "quick_gelu"):
        sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        model = timm.models.VisionTransformer(**sizes, act_layer=timm.layers.get_act_layer(name))
        inputs = make_inputs("test_vit")
    else:
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, hidden_act=name))
        inputs = make_text()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    pruned = sttabt.prune(model, "backtracking_actual", keep_ratio=0.6)
    frozen = freeze(pruned)
    assert frozen.left_to_torch == []
    torch.testing.assert_close(frozen.run(inputs).logits, pruned.run(inputs).logits, atol=1e-4, rtol=1e-4)


def test_kernels_of_other_sources_are_not_used(tmp_path: Path) -> None:
    package = Path(sttabt.__file__).parent
    copy = shutil.copytree(package, tmp_path / "sttabt", ignore=shutil.ignore_patterns("__pycache__"))
    program = "from sttabt.native import is_built, kernels_problem; print(is_built(), kernels_problem())"

    def said() -> str:
        return subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(tmp_path)}, text=True, check=True,
            capture_output=True,
        ).stdout  # fmt: skip

    assert said() == "True None\n"
    with (copy / "native" / "cpp" / "encoder.inc").open("a", encoding="utf-8") as file:
        file.write("// changed\n")
    assert said().startswith("False the kernels were built from other sources than are here: `make setup`")


def test_what_cannot_be_frozen_is_left_to_torch_aloud(caplog: pytest.LogCaptureFixture) -> None:
    model, images = make_model("digits", keep_ratio=0.4), make_inputs("digits")
    seen: list[bool] = []
    model.base.model.blocks[2].mlp.fc1.register_forward_hook(lambda *_: seen.append(True))
    with caplog.at_level(logging.WARNING):
        frozen = freeze(model, strict=False)
    said = "the base model: blocks.2.mlp.fc1 has a forward hook or a replaced forward"
    assert frozen.left_to_torch == [said] and said in caplog.text
    torch.testing.assert_close(frozen.run(images).logits, model.run(images).logits, rtol=1e-4, atol=1e-4)
    assert len(seen) == 2
    assert isinstance(frozen._traced(), FrozenBackbone) and not isinstance(frozen.base, FrozenBackbone)


@torch.no_grad()
def test_a_layer_scale_is_part_of_the_packed_weights() -> None:
    base, images = make_backbone("layer_scale_registers"), make_inputs("layer_scale_registers")
    for block in base.model.blocks:
        block.ls1.gamma.uniform_(0.5, 2)
        block.ls2.gamma.uniform_(0.5, 2)
    torch.testing.assert_close(freeze(base).run(images).logits, base(images), rtol=1e-4, atol=1e-4)


def test_a_frozen_model_is_neither_trained_nor_moved_nor_loaded() -> None:
    model = make_model("digits")
    state = model.state_dict()
    frozen = freeze(model)
    for attempt in (
        frozen.train, frozen.double, frozen.half, lambda: frozen.to(torch.bfloat16), lambda: frozen.to("meta"),
        lambda: frozen.load_state_dict(state), lambda: frozen.soft(make_inputs("digits")),
    ):  # fmt: skip
        with pytest.raises(UserError, match="a frozen model"):
            attempt()
    assert frozen.eval() is frozen and frozen.cpu() is frozen and frozen.to(torch.float32) is frozen
    assert frozen.forms() == {} and freeze(frozen) is frozen
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with pytest.raises(UserError, match="no masked form"):
        frozen.base.project(0, torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), gate=torch.zeros(1))


@torch.no_grad()
def test_the_original_may_be_changed_and_deleted() -> None:
    model, images = make_model("digits", "concrete"), make_inputs("digits")
    frozen = freeze(model)
    expected = frozen.run(images).logits
    for parameter in model.parameters():
        parameter.data *= 1.5
    model.base.model.blocks[0].norm1.eps = 0.5
    assert torch.equal(frozen.run(images).logits, expected)
    gone = weakref.ref(model.base.model.blocks[0].mlp.fc1)
    del model, parameter
    gc.collect()
    assert gone() is None
    assert torch.equal(frozen.run(images).logits, expected)


def test_nothing_of_a_packed_layer_is_kept_twice() -> None:
    base = make_backbone("digits")
    inside = sum(parameter.numel() for parameter in base.model.blocks.parameters())
    kept = sum(parameter.numel() for parameter in FrozenBackbone(base).parameters())
    assert kept == sum(parameter.numel() for parameter in base.parameters()) - inside


@torch.no_grad()
def test_copies_pickles_and_threads() -> None:
    model, images = make_model("digits", keep_ratio=0.4), make_inputs("digits")
    frozen = freeze(model)
    expected = frozen.run(images).logits
    stored = io.BytesIO()
    torch.save(frozen, stored)
    stored.seek(0)
    for other in (
        copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen)), torch.load(stored, weights_only=False)
    ):  # fmt: skip
        assert isinstance(other, FrozenModel)
        assert torch.equal(other.run(images).logits, expected)
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(frozen.run(images).logits)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(logits, expected) for logits in found)


@pytest.mark.parametrize("place", ["blocks.1.mlp.fc1.weight", "blocks.0.attn.proj.bias", "blocks.2.norm1.weight"])
@torch.no_grad()
def test_a_model_of_nan_does_not_answer(place: str) -> None:
    model, images = make_model("digits", "dense"), make_inputs("digits")
    model.base.model.get_parameter(place).view(-1)[0] = torch.nan
    assert freeze(model).run(images).logits.isnan().all()


@pytest.mark.parametrize("name", [*VISION, *TEXTS])
@torch.no_grad()
def test_an_empty_batch(name: str) -> None:
    inputs = make_inputs(name)
    nothing = type(inputs)(*(x[:0] for x in inputs)) if isinstance(inputs, tuple) else inputs[:0]
    frozen = freeze(make_model(name, "dense"))
    assert frozen.run(nothing).logits.shape == (0, frozen.base.architecture.classes)


@torch.no_grad()
def test_fixed_counts_of_a_frozen_model() -> None:
    base = make_backbone("digits")
    counts = [*range(20, 20 - 3 * (base.layers - 1), -3), 5]
    model, images = make_model("digits", counts=counts[: base.layers]), make_inputs("digits")
    expected, frozen = FixedModel(model)(images), FixedModel(freeze(model))
    torch.testing.assert_close(frozen(images), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fixed_counts_of_a_frozen_model_are_one_graph_of_any_batch() -> None:
    base = make_backbone("digits")
    fixed = FixedModel(freeze(make_model("digits", counts=[20, 14, 5][: base.layers])))
    compiled = torch.compile(fixed, fullgraph=True, dynamic=True)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(fixed, (make_inputs("digits"),), dynamic_shapes={"inputs": {0: batch}}).module()
    for size in (2, 5):
        images = make_inputs("digits")[:1].repeat(size, 1, 1, 1) * torch.arange(1, size + 1)[:, None, None, None]
        torch.testing.assert_close(compiled(images), fixed(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(exported(images), fixed(images), rtol=1e-4, atol=1e-4)
