"""Linear layers of which a part of the outputs is wanted, and gates."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from sttabt.backbones.repeated import has_hooks

PLAIN = (Tensor, nn.Parameter, FakeTensor)  # the last stands for the others where torch.export makes a graph


def linear(layer: Any, rows: Tensor, part: slice) -> Tensor:
    """The layer's outputs `part` of rows (..., D). What is no plain linear layer computes all of them."""
    if not is_sliceable(layer):
        return layer(rows)[..., part]
    bias = None if layer.bias is None else layer.bias[part]
    return F.linear(rows, layer.weight[part], bias)


def is_sliceable(layer: nn.Module) -> bool:
    """Whether a slice of its weight computes a slice of its outputs: no hooks, LoRA, parametrization, quantization."""
    if type(layer) is not nn.Linear or has_hooks(layer):
        return False
    return all(type(x) in PLAIN for x in layer._parameters.values() if x is not None)


def gated(rows: Tensor, gate: Tensor | None) -> Tensor:
    """`rows` (..., D) times the gate (..., 1), where there is one."""
    return rows if gate is None else rows * gate
