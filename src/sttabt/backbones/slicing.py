"""Linear layers and what stands around them: by a kernel of sttabt.native in one call, or by torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sttabt import native


def linear(
    layer: nn.Linear,
    rows: Tensor,
    part: slice = slice(None),
    residual: Tensor | None = None,
    norm: nn.LayerNorm | None = None,
) -> Tensor:
    """The layer's outputs `part` of norm(rows), (..., D), and the residual added, where there is one."""
    if _is_native(layer, rows, norm, residual):
        numbers = None if norm is None else native.norm_numbers(norm)
        return native.linear(rows, layer.weight, layer.bias, part, residual, norm=numbers)
    rows = rows if norm is None else norm(rows)
    bias = None if layer.bias is None else layer.bias[part]
    found = layer(rows) if part == slice(None) else F.linear(rows, layer.weight[part], bias)
    return found if residual is None else residual + found


def linear_activated(
    layer: nn.Linear, activation: nn.Module, rows: Tensor, gate: Tensor | None, norm: nn.LayerNorm | None = None
) -> Tensor:
    """activation(gate * layer(norm(rows))), where there is a gate and a norm."""
    if gate is None and native.is_exact_gelu(activation) and _is_native(layer, rows, norm):
        numbers = None if norm is None else native.norm_numbers(norm)
        return native.linear(rows, layer.weight, layer.bias, gelu=True, norm=numbers)
    rows = rows if norm is None else norm(rows)
    return activation(gated(layer(rows), gate))


def deferred(norm: nn.LayerNorm, layer: nn.Linear, rows: Tensor) -> tuple[Tensor, nn.LayerNorm | None]:
    """Rows and the norm that `linear` shall apply to them; where no kernel does both at once, it is applied here."""
    return (rows, norm) if _is_native(layer, rows, norm) else (norm(rows), None)


def gated(rows: Tensor, gate: Tensor | None) -> Tensor:
    """`rows` (..., D) times the gate (..., 1), where there is one."""
    return rows if gate is None else rows * gate


def _is_native(layer: nn.Linear, rows: Tensor, norm: nn.LayerNorm | None, residual: Tensor | None = None) -> bool:
    """Not under torch.compile, which joins a layer with what follows by itself, nor past somebody's hooks."""
    if torch.compiler.is_compiling() or not native.fits(rows):
        return False
    modules = (layer,) if norm is None else (layer, norm)
    return all(map(native.is_plain, modules)) and native.fits(
        *(tensor for module in modules for tensor in module._parameters.values() if tensor is not None),
        *(() if residual is None else (residual,)),
    )
