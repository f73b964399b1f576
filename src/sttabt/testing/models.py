"""Small models: the examples that every adapter gives, with weights whose attention differs from row to row."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sttabt.backbones.base import Example
from sttabt.backbones.registry import adapters
from sttabt.core.text import Text
from sttabt.errors import UserError, nearest
from sttabt.methods import find_method
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.pruned import PrunedModel
from sttabt.settings import method_settings


@cache
def examples() -> dict[str, Callable[[], Example]]:
    """What makes each example, by name; those of other packages' adapters are among them."""
    return {name: make for adapter in adapters() for name, make in adapter.examples().items()}


def make_example(name: str) -> Example:
    """The example of that name, in evaluation mode; its random weights are the same each time."""
    if name not in examples():
        raise UserError(f"there is no example {name}: {nearest(name, examples())}")
    torch.manual_seed(7)
    found = examples()[name]()
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for buffer in found.model.buffers():  # of batch norms: mean and variance
            if buffer.is_floating_point():
                buffer.add_(0.5 * torch.rand_like(buffer))
    found.model.eval()
    return found


def make_approx(example: Example) -> ApproximateNetwork:
    """Its approximate network at the interpolated start."""
    torch.manual_seed(8)
    network = ApproximateNetwork(example.model, example.factor, example.share_stem)
    network.start_from(example.model)
    return network.eval()


def make_pruned(example: Example, method: str, **settings: Any) -> PrunedModel:
    """The example under a method. Raises UserError where the method cannot prune it."""
    base = example.model
    built = find_method(method)(method_settings(method)(method=method, **settings), base.layers, base.outputs)
    approx = make_approx(example) if built.attention == "approximate" else None
    return PrunedModel(base, built, approx).eval()


def one_by_one(inputs: Tensor | Text) -> list[Tensor | Text]:
    """A batch a sample, without padding."""
    if not isinstance(inputs, Text):
        return list(inputs.split(1))
    return [
        Text(*(field[index : index + 1, :length] for field in inputs))
        for index, length in enumerate(inputs.real.sum(-1).tolist())
    ]


def pad_text(text: Text, more: int) -> Text:
    """`more` places of padding behind the longest text, with arbitrary ids."""
    shape = (text.ids.shape[0], more)
    return Text(
        torch.cat([text.ids, text.ids.new_full(shape, 7)], 1),
        torch.cat([text.types, text.types.new_ones(shape)], 1),
        torch.cat([text.real, text.real.new_zeros(shape)], 1),
    )
