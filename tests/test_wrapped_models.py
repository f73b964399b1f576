"""Models as people hold them: wrapped, compiled, traced, quantised, parametrised. Taken, or refused with what to do."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations

import sttabt
from conftest import BERT
from sttabt.backbones import adapt
from sttabt.errors import UserError

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def vit() -> Any:
    torch.manual_seed(4)
    return timm.create_model("test_vit", patch_size=8, img_size=32, num_classes=5).eval()


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(vit(), {nn.Linear}, dtype=torch.qint8)


def parametrised() -> nn.Module:
    model = vit()
    parametrizations.weight_norm(model.blocks[0].mlp.fc1)
    parametrizations.spectral_norm(model.blocks[1].attn.qkv)
    return model.eval()


class Own(nn.Module):
    """As people write them: an encoder, and what is done with its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"encoder": vit(), "head": nn.Linear(5, 2)})


def compiled_block() -> nn.Module:
    model = vit()
    model.blocks[1] = torch.compile(model.blocks[1])
    return model


WRAPPED: list[tuple[Callable[[], Any], str]] = [
    (lambda: nn.DataParallel(vit()), "a DataParallel cannot be pruned: prune what it holds, its .module"),
    (lambda: torch.optim.swa_utils.AveragedModel(vit()), "an AveragedModel cannot be pruned: prune what it holds"),
    (lambda: torch.compile(vit()), "prune what was compiled, its ._orig_mod, and compile the result"),
    (lambda: torch.jit.trace(vit(), IMAGES), "prune the model that it was made of"),
    (lambda: torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())), "prune the model that it was made of"),
    (lambda: nn.Sequential(vit()), "prune the encoder in it"),
    (lambda: "vit_small_patch16_224", "it is a name: give the model"),
    (lambda: sttabt.prune(timm.create_model("test_vit"), "tome"), "it is pruned already: prune the model that it was"),
    (lambda: timm.create_model("eva02_tiny_patch14_224", depth=1), "an Eva cannot be pruned: it has rotary positions"),
    (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "it attends in windows of a grid"),
    (lambda: timm.create_model("resnet18"), "it is no VisionTransformer of one width"),
    (lambda: small("ElectraForPreTraining", "ElectraConfig"), "give a ForSequenceClassification or the plain Model"),
    (lambda: small("AlbertForSequenceClassification", "AlbertConfig"), "its layers share their weights"),
    (lambda: small("RobertaForTokenClassification", "RobertaConfig"), "give a ForSequenceClassification"),
    (lambda: torch.export.export(vit(), (IMAGES,)), "a graph has no layers to step through"),
    (lambda: vit().state_dict(), "an OrderedDict cannot be pruned: weights say nothing of what is computed"),
    (lambda: timm.models.VisionTransformer, "it is a class: give a model of it"),
    (lambda: small("MPNetForSequenceClassification", "MPNetConfig"), "pruned: of transformers BERT, DistilBERT"),
    (lambda: Own(), "an Own cannot be pruned: it holds a VisionTransformer, its .parts.encoder: prune that"),
    (lambda: compiled_block(), "blocks.1 was compiled, which would not run: put its ._orig_mod there"),
    (lambda: print, "a builtin_function_or_method cannot be pruned: give one of timm's VisionTransformer"),
]


def small(kind: str, config: str) -> Any:
    return getattr(transformers, kind)(getattr(transformers, config)(**BERT))


@pytest.mark.parametrize(("make", "message"), WRAPPED, ids=[message[:40] for _, message in WRAPPED])
def test_what_cannot_be_pruned_says_what_would_serve(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        adapt(make())
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_model_under_distributed_data_parallel_says_what_would_serve() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(vit())
        with pytest.raises(UserError, match=r"prune what it holds, its \.module"):
            adapt(wrapped)
        assert adapt(wrapped.module).model is wrapped.module
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("make", [quantised, parametrised])
@torch.inference_mode()
def test_weights_that_are_not_plain_are_pruned_through_their_modules(make: Callable[[], nn.Module]) -> None:
    model = make()
    expected = model(IMAGES)
    for method in ("random", "backtracking_actual"):
        found = sttabt.prune(model, method, keep_ratio=1.0)(IMAGES)
        # Quantised layers scale by the largest number that they are given, of fewer rows in the last layer.
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
    with pytest.raises(UserError, match=r"is no plain weight.*merge_and_unload"):
        sttabt.prune(model, "backtracking", approx=2)


@torch.inference_mode()
def test_a_method_is_understood_as_people_type_it() -> None:
    """The names of `sparsity=` on the command line, as method and as keyword."""
    model = vit()
    expected = sttabt.prune(model, "backtracking", attention="actual")(IMAGES)
    assert torch.equal(sttabt.prune(model, method="backtracking_actual")(IMAGES), expected)
    assert sttabt.prune(model, "concrete_vision", approx=2).method.settings.method == "concrete"
    for typed, meant in (("backtracking_actal", "backtracking_actual"), ("ToMe", "tome"), ("DynamicViT", "dynamicvit")):
        with pytest.raises(UserError, match=f"method={typed} is unknown: did you mean '{meant}'"):
            sttabt.prune(model, typed)
