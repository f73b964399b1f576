"""Linear layers with the norm before and the bias, activation and residual after them, in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sttabt.native.library import LIBRARY, address

LEAST_PANEL = 16  # outputs of a panel where the machine's vectors are wide enough to beat a library's product
UNIT = 16  # outputs are computed by whole vectors


class Norm(NamedTuple):
    """A layer norm over the last dimension: weight and bias (D,)."""

    weight: Tensor
    bias: Tensor
    epsilon: float


class CNorm(ctypes.Structure):
    """A norm as C reads it (kernels.cpp)."""

    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("epsilon", ctypes.c_double))


class CProduct(ctypes.Structure):
    """Outputs `first` to `first` + `width` of a packed weight, as C reads it (kernels.cpp)."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("packed", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
    )


def linear(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    part: slice = slice(None),
    residual: Tensor | None = None,
    gelu: bool = False,
    norm: Norm | None = None,
) -> Tensor:
    """gelu(norm(rows) . weight[part]^T + bias[part]) + residual; rows (..., D), contiguous parts only.

    gelu is that by erf. The weight is packed at its first use, which takes its memory once more, and again after it
    was changed; a change that torch does not count (through `.data`) is noticed where it touches most of the weight.
    """
    first, last, _ = part.indices(len(weight))
    residual = None if residual is None else residual.contiguous()
    if not can_pack(weight, first, last):
        return _linear_of_torch(rows, weight[part], None if bias is None else bias[part], residual, gelu, norm)
    rows = rows.contiguous()
    product = rows.new_empty(*rows.shape[:-1], last - first)
    scratch = None if norm is None else torch.empty_like(rows)
    normed = None if norm is None else ctypes.byref(c_norm(norm))
    count, around = rows.numel() // weight.shape[1], (normed, address(scratch), address(residual), gelu)
    for _ in range(2):
        packed = pack(weight)  # lives until the call is over, whatever other threads do
        described = ctypes.byref(c_product(weight, packed, bias, first, last))
        if LIBRARY.sttabt_multiply(rows.data_ptr(), count, described, *around, product.data_ptr()):  # type: ignore[union-attr]
            return product
        forget([weight])
    raise RuntimeError("a weight changed while it was in use")


def can_pack(weight: Tensor, first: int, last: int) -> bool:
    """Whether the kernels compute the outputs `first` to `last` of this weight themselves."""
    whole = first % UNIT == 0 and last % UNIT == 0
    # Tensors made in inference mode do not count their changes.
    return whole and weight.is_contiguous() and not weight.is_inference() and panel_outputs() >= LEAST_PANEL


def panel_outputs() -> int:
    """Outputs of a panel of packed weights, by the vectors in use."""
    return LIBRARY.sttabt_panel()  # type: ignore[union-attr]


def c_product(weight: Tensor, packed: Tensor, bias: Tensor | None, first: int, last: int) -> CProduct:
    """Reads the memory of weight, bias and packed = pack(weight), which have to live while it is in use."""
    place = None if bias is None else bias.data_ptr() + bias.element_size() * first
    return CProduct(weight.data_ptr(), packed.data_ptr(), *weight.shape, first, last - first, place)


def c_norm(norm: Norm) -> CNorm:
    """Reads the memory of the norm's weight and bias, which has to live while it is in use."""
    return CNorm(norm.weight.data_ptr(), norm.bias.data_ptr(), norm.epsilon)


def _linear_of_torch(
    rows: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: bool, norm: Norm | None
) -> Tensor:
    """A library's product, with one pass over its result for what follows."""
    rows = rows if norm is None else torch.layer_norm(rows, rows.shape[-1:], *norm)
    product = rows @ weight.t()
    LIBRARY.sttabt_finish_rows(  # type: ignore[union-attr]
        product.data_ptr(), address(bias), address(residual), product.numel() // len(weight), len(weight), gelu
    )
    return product


@dataclass(frozen=True)
class _Packing:
    """state: address and version of the weight, outputs of a panel. source keeps the weight's memory, so that no other
    weight is found at its address.
    """

    values: Tensor
    source: torch.UntypedStorage
    state: tuple[int, int, int]


_packings = WeakTensorKeyDictionary()


def pack(weight: Tensor) -> Tensor:
    """The weight as the kernels read it, packed when it is new or has changed."""
    panel, (outputs, depth) = panel_outputs(), weight.shape
    state = weight.data_ptr(), weight._version, panel
    found: _Packing | None = _packings.get(weight)
    if found is None or found.state != state:
        found = _Packing(torch.empty(-(-outputs // panel) * panel * depth), weight.untyped_storage(), state)
        LIBRARY.sttabt_pack(weight.data_ptr(), outputs, depth, found.values.data_ptr())  # type: ignore[union-attr]
        _packings[weight] = found
    return found.values


def forget(weights: Iterable[Tensor]) -> None:
    """Let them be packed again: they were changed behind torch's back."""
    for weight in weights:
        _packings.pop(weight, None)
