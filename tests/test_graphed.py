"""Models on CUDA as graphs: which shapes are captured, and that replaying them is running the model.

Without a card a graph is a function that is called again: what it reads and writes is the same memory.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import _dynamo as dynamo

import sttabt
from conftest import make_images
from pretended import from_device, pretended_device, to_device
from sttabt.core.buckets import MOST
from sttabt.errors import UserError
from sttabt.models.graphed import GraphedModel, capturing_problems, compile_whole
from sttabt.models.pruned import PrunedModel
from sttabt.testing.contract import Case
from sttabt.testing.models import make_example, make_pruned

PLANNED = ("backtracking", "concrete")
near = torch.testing.assert_close


def replayed(run: Callable[[], Any]) -> Callable[[], Any]:
    """As a graph: results lie in the same memory each time."""
    first = run()

    def again() -> Any:
        _copy(first, run())
        return first

    return again


def _copy(into: Any, found: Any) -> None:
    if isinstance(into, Tensor):
        into.copy_(found)
    elif isinstance(into, tuple):
        for own, other in zip(into, found, strict=True):
            _copy(own, other)
    elif is_dataclass(into):
        for name, value in vars(into).items():
            _copy(value, vars(found)[name])


def graphed(pruned: PrunedModel) -> GraphedModel:
    return GraphedModel(pruned, [], replayed)


@pytest.mark.parametrize("method", PLANNED)
@torch.inference_mode()
def test_what_goes_into_buckets_comes_out_as_it_was(method: str, vision_name: str) -> None:
    pruned = make_pruned(make_example(vision_name), method)
    model, kept = graphed(pruned), []
    for seed in range(4):
        images = make_images(vision_name) * (0.3 + seed)
        kept.append((model.run(images), pruned.run(images)))
    for found, expected in kept:  # after the last: results are not overwritten
        assert torch.equal(found.plan.alive, expected.plan.alive)
        near(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    captured = next(iter(model._graphs.values()))
    assert 1 <= len(captured.buckets) <= MOST + 1


@pytest.mark.parametrize("batch", [1, 3])
@torch.inference_mode()
def test_any_batch_size_has_its_graphs(batch: int) -> None:
    pruned = make_pruned(make_example("digits"), "concrete")
    model, images = graphed(pruned), make_images("digits", batch)
    near(model(images), pruned(images), atol=1e-5, rtol=1e-5)
    near(model(images[:0]), pruned(images[:0]))
    assert len(model._graphs) == 1


STATIC = (
    "dense", "tome", "pitome", "evit", "diffrate", "class_attention", "dynamicvit", "forward_topk", "power_bert",
)  # fmt: skip


@pytest.mark.parametrize("case", [
    *(Case(method, backbone) for method in STATIC for backbone in ("digits", "lvvit_auxiliary")),
    Case("tome", "digits", {"share": 0.2}), Case("backtracking", "digits", {"counts": [20, 9, 4]}),
    Case("backtracking", "lvvit_auxiliary", {"counts": [12, 9, 4]}),
], ids=str)  # fmt: skip
@torch.inference_mode()
def test_static_shapes_are_one_graph(case: Case) -> None:
    pruned, _ = case.make()
    model, first, second = graphed(pruned), make_images(case.backbone), make_images(case.backbone).flip(0, 3)
    runs = [model.run(images) for images in (first, second)]
    for found, images in zip(runs, (first, second), strict=True):
        expected = pruned.run(images)
        assert torch.equal(found.plan.alive, expected.plan.alive)
        near(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert len(model._graphs) == 1


@pytest.mark.parametrize("method", [*PLANNED, *STATIC])
@torch.inference_mode()
def test_a_replay_waits_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing that is captured waits or copies from the host, which a capture could not."""
    example = make_example("digits")
    pruned = make_pruned(example, method)
    expected, waits = pruned.run(example.inputs), list[int]()

    def capture(run: Callable[[], Any]) -> Callable[[], Any]:
        def replay() -> Any:
            before = len(device.waits), len(device.copies)
            found = run()
            assert (len(device.waits), len(device.copies)) == before, (device.waits, device.copies)
            return found

        return replay

    with pretended_device(monkeypatch) as device:
        model = GraphedModel(to_device(pruned), [], capture)
        for _ in range(2):
            before = len(device.waits)
            found = model.run(to_device(example.inputs))
            waits.append(len(device.waits) - before)
    assert waits == [int(method in PLANNED)] * 2
    near(from_device(found.logits), expected.logits, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_an_image_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    example = make_example("digits")
    example.inputs[1, 0, 0, 0] = torch.inf
    with pretended_device(monkeypatch), pytest.raises(UserError, match="image 1 of the batch holds NaN or infinity"):
        GraphedModel(to_device(make_pruned(example, "concrete")), [], lambda run: run).run(to_device(example.inputs))


def test_what_cannot_be_captured_is_said() -> None:
    for method, reason in {
        "ltp": "layer by layer",
        "ats": "layer by layer",
        "random": "on the host",
        "concrete": "",
        "evit": "",
    }.items():
        found = capturing_problems(make_pruned(make_example("digits"), method))
        assert reason in " ".join(found) and bool(found) == bool(reason)
    assert "texts differ in length" in capturing_problems(make_pruned(make_example("bert"), "concrete"))[0]


@torch.inference_mode()
def test_it_keeps_its_weights_and_copies_itself_without_graphs() -> None:
    pruned = make_pruned(make_example("digits"), "concrete")
    model, images = graphed(pruned), make_images("digits")
    expected = model(images)
    for parameter in pruned.parameters():
        parameter.zero_()
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        near(other(images), expected)
    assert not copy.deepcopy(model)._graphs
    with pytest.raises(UserError, match=r"stays in torch.float32 on cpu, not torch.bfloat16"):
        model.bfloat16()
    with pytest.raises(UserError, match="frozen model cannot be trained"):
        model.train()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match="leave autocast"):
        model(images)


@torch.inference_mode()
def test_each_shape_is_compiled_and_torch_sets_no_limit() -> None:
    """Without a card what is compiled is not captured."""
    pruned = make_pruned(make_example("digits"), "dense")
    model = GraphedModel(pruned, [], compile_whole)
    with dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1):
        for batch in (1, 2):
            images = make_images("digits", batch)
            near(model(images), pruned(images), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_what_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pruned, images = make_pruned(make_example("digits"), "evit"), make_images("digits")
    with pytest.raises(UserError, match=r"torch\.compile does not take this model: .*; leave compiled=True out"):
        GraphedModel(pruned, [], compile_whole)(images)
    with pytest.raises(UserError, match="compiled=True is for CUDA"):
        sttabt.freeze(pruned, compiled=True)
    with pytest.raises(UserError, match="frozen already"):
        sttabt.freeze(sttabt.freeze(pruned), compiled=True)
    with pretended_device(monkeypatch), pytest.raises(UserError, match="does not take EViT whole"):
        sttabt.freeze(to_device(pruned), compiled=True)


@pytest.mark.gpu
@pytest.mark.parametrize("method", [*PLANNED, "dense", "tome"])
@torch.inference_mode()
def test_compiled_graphs_on_a_card_compute_what_the_model_does(method: str) -> None:
    pruned = make_pruned(make_example("digits"), method).to("cuda")
    model, images = sttabt.freeze(pruned, compiled=True), make_images("digits").to("cuda")
    for _ in range(2):
        near(model(images), pruned(images), atol=1e-3, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", [*PLANNED, *STATIC])
@torch.inference_mode()
def test_graphs_on_a_card_compute_what_the_model_does(method: str, dtype: torch.dtype) -> None:
    pruned = make_pruned(make_example("digits"), method).to("cuda", dtype)
    model = sttabt.freeze(pruned)
    assert isinstance(model, GraphedModel)
    for seed in range(3):
        images = (make_images("digits") * (0.3 + seed)).to("cuda", dtype)
        expected, found = pruned.run(images), model.run(images)
        assert torch.equal(found.plan.alive, expected.plan.alive)
        near(found.logits, expected.logits, atol=1e-4 if dtype == torch.float32 else 0.05, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("method", [*PLANNED, "random", "ltp", *STATIC])
@torch.inference_mode()
def test_nothing_waits_on_a_card_but_the_one_copy(method: str) -> None:
    """torch's own guard, which warns of whatever waits."""
    pruned = make_pruned(make_example("digits"), method).to("cuda", torch.bfloat16)
    images = make_images("digits").to("cuda", torch.bfloat16)
    pruned.run(images)  # libraries and kernels are loaded
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            pruned.run(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waited = [str(each.message) for each in seen if "synchroniz" in str(each.message)]
    most = {"ltp": 2} | dict.fromkeys((*PLANNED, "random", "diffrate", "power_bert"), 1)
    assert len(waited) <= most.get(method, 0), waited
