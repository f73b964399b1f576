"""Linear layers with the norm before and the bias, activation and residual after them, in one call."""

from __future__ import annotations

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
    width, depth = last - first, weight.shape[1]
    bias = None if bias is None else bias[part]
    residual = None if residual is None else residual.contiguous()
    finish = address(bias), address(residual)  # both live until the end
    if not _can_pack(weight, first, last):
        rows = rows if norm is None else torch.layer_norm(rows, (depth,), *norm)
        product = rows @ weight[part].t()
        LIBRARY.sttabt_finish_rows(product.data_ptr(), *finish, product.numel() // width, width, gelu)  # type: ignore[union-attr]
        return product
    rows = rows.contiguous()
    scale, shift, epsilon = norm or (None, None, 0.0)
    product = rows.new_empty(*rows.shape[:-1], width)
    LIBRARY.sttabt_multiply(  # type: ignore[union-attr]
        rows.data_ptr(), rows.numel() // depth, depth, address(scale), address(shift), epsilon,
        _packed(weight).data_ptr(), first, width, *finish, gelu, product.data_ptr(),
    )  # fmt: skip
    return product


@dataclass(frozen=True)
class _Packing:
    """source keeps the memory of the weight, so that no other weight is found at its address."""

    values: Tensor
    source: torch.UntypedStorage
    place: int
    version: int
    panel: int


_packings = WeakTensorKeyDictionary()


def _can_pack(weight: Tensor, first: int, last: int) -> bool:
    whole = first % UNIT == 0 and last % UNIT == 0
    # Tensors made in inference mode do not count their changes.
    return whole and weight.is_contiguous() and not weight.is_inference() and _panel() >= LEAST_PANEL


def _packed(weight: Tensor) -> Tensor:
    """The weight as the kernels read it, packed when it is new or has changed."""
    found: _Packing | None = _packings.get(weight)
    panel, (outputs, depth) = _panel(), weight.shape
    if (
        found is not None
        and (found.place, found.version, found.panel) == (weight.data_ptr(), weight._version, panel)
        and LIBRARY.sttabt_is_packed(weight.data_ptr(), outputs, depth, found.values.data_ptr())  # type: ignore[union-attr]
    ):
        return found.values
    values = torch.empty(-(-outputs // panel) * panel * depth)
    LIBRARY.sttabt_pack(weight.data_ptr(), outputs, depth, values.data_ptr())  # type: ignore[union-attr]
    _packings[weight] = _Packing(values, weight.untyped_storage(), weight.data_ptr(), weight._version, panel)
    return values


def _panel() -> int:
    return LIBRARY.sttabt_panel()  # type: ignore[union-attr]
