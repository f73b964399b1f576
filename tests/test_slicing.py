"""Parts of a fused projection: a plain linear layer is sliced, anything more is called whole."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from conftest import make_approx, make_backbone, make_inputs
from sttabt.backbones.base import Backbone
from sttabt.backbones.slicing import is_sliceable, linear
from sttabt.methods import find_method
from sttabt.models.pruned import PrunedModel
from sttabt.settings import method_settings


class Lora(nn.Linear):
    """A linear layer with more: as peft's, which keep a weight that is not all."""

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows) + 0.3 * rows.sum(-1, keepdim=True)


def hooked() -> nn.Linear:
    layer = nn.Linear(48, 144)
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    return layer


def parametrized() -> nn.Linear:
    return nn.utils.parametrizations.weight_norm(nn.Linear(48, 144))


def replaced() -> nn.Linear:
    layer = nn.Linear(48, 144)
    layer.forward = lambda rows: rows.repeat_interleave(3, -1)
    return layer


MORE = [hooked, parametrized, replaced, lambda: Lora(48, 144)]


@pytest.mark.parametrize("make", MORE)
@torch.no_grad()
def test_a_part_is_a_part_of_what_the_layer_computes(make: Callable[[], nn.Module]) -> None:
    layer, rows = make(), torch.randn(2, 5, 48)
    assert not is_sliceable(layer) and is_sliceable(nn.Linear(48, 144))
    for part in (slice(48), slice(48, None), slice(20, 70)):
        torch.testing.assert_close(linear(layer, rows, part), layer(rows)[..., part])
        plain = nn.Linear(48, 144, bias=part.stop is None)
        torch.testing.assert_close(linear(plain, rows, part), plain(rows)[..., part], rtol=1e-5, atol=1e-5)


def pruned(base: Backbone, attention: str) -> PrunedModel:
    method = find_method("backtracking")(
        method_settings("backtracking")(method="backtracking", keep_ratio=0.4, attention=attention), base.layers, 1
    )
    return PrunedModel(base, method, make_approx(base, "digits") if attention == "approximate" else None).eval()


@pytest.mark.parametrize("attention", ["approximate", "actual"])
@pytest.mark.parametrize("make", MORE)
@torch.no_grad()
def test_what_runs_whole_is_counted_whole(make: Callable[[], nn.Module], attention: str) -> None:
    base, images = make_backbone("digits"), make_inputs("digits")
    model = pruned(base, attention)
    for block in base.model.blocks:
        block.attn.qkv = make()
    assert base.projects_whole
    run = model.run(images)
    torch.testing.assert_close(run.logits, model.forms()["masked"](images).logits, rtol=1e-4, atol=1e-4)
    if make is replaced:
        return  # computes nothing that could be counted
    one = images[:1]
    run = model.run(one)
    with FlopCounterMode(display=False) as counter:
        model.run(one)
    assert sum(model.macs(run).values()) == pytest.approx(counter.get_total_flops() / 2, rel=1e-6)
