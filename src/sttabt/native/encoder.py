"""All layers of an encoder in one call, whichever rows go on: with few rows, calls take longer than arithmetic."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sttabt.native.library import LIBRARY, fits, integers
from sttabt.native.modules import Layer, norm_numbers
from sttabt.native.product import CNorm, CProduct, c_norm, c_product, can_pack, forget, pack, panel_outputs


class CLayer(ctypes.Structure):
    """A layer as C reads it (kernels.cpp)."""

    _fields_ = (
        *((name, CProduct) for name in ("query", "key", "value", "join", "widen", "narrow")),
        ("first", CNorm),
        ("second", CNorm),
        ("norm_first", ctypes.c_int64),
    )


class Encoder:
    """Layers whose weights are packed. Made by make_encoder."""

    def __init__(self, layers: Sequence[Layer], state: list[Any]) -> None:
        self.layers, self.state = list(layers), state
        self._describe()

    def encode(self, x: Tensor, heads: int, counts: Sequence[Sequence[int]]) -> Tensor:
        """What the last layer writes, (sum of counts[-1], D), of packed rows x (sum of counts[0], D).

        counts: (L+1, B), rows of each sample before and after each layer, which writes the first of those that it
        reads. Raises ValueError where they rise, or do not begin with the rows of x.
        """
        out = x.new_empty(sum(counts[-1]), x.shape[-1])
        self._run(x, heads, counts, None, out.data_ptr())
        return out

    def trace(self, x: Tensor, heads: int, counts: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Queries and keys of each layer, (T, D) each, where no layer drops a row; the last stops there.

        x: packed rows (T, D); counts: (B,), those of each sample.
        """
        width = x.shape[-1]
        kept = [x.new_empty(len(x), 3 * width) for _ in self.layers]
        places = integers([rows.data_ptr() for rows in kept])
        self._run(x, heads, [counts] * (len(kept) + 1), places, None)
        return [(rows[:, :width], rows[:, width : 2 * width]) for rows in kept]

    def _describe(self) -> None:
        parts = [list(layer.parts()) for layer in self.layers]
        packed = [[pack(weight) for weight, *_ in layer] for layer in parts]
        table = (CLayer * len(parts))(*map(_c_layer, self.layers, parts, packed))
        # Whatever has its address in the table lives as long as it does.
        self._made = table, packed, [list(layer.tensors()) for layer in self.layers]

    def _run(
        self, x: Tensor, heads: int, counts: Sequence[Sequence[int]], kept: ctypes.Array | None, out: int | None
    ) -> None:
        _check(counts, len(x))
        x, flat = x.contiguous(), integers(list(chain.from_iterable(counts)))
        scratch = x.new_empty(LIBRARY.sttabt_encoder_room(self._made[0], len(x)))  # type: ignore[union-attr]
        sizes, places = (len(self.layers), heads, len(counts[0])), (flat, kept, scratch.data_ptr(), out)
        for _ in range(2):
            made = self._made  # lives until the call is over, whatever other threads do
            if LIBRARY.sttabt_encode(x.data_ptr(), made[0], *sizes, *places):  # type: ignore[union-attr]
                return
            forget(weight for layer in self.layers for weight, *_ in layer.parts())
            self._describe()
        raise RuntimeError("a weight changed while it was in use")


def make_encoder(owner: nn.Module, layers: Sequence[Layer]) -> Encoder | None:
    """The layers of `owner`, packed and kept until they change; None where the kernels lack something.

    That is: other modules or activations than they know, somebody's hooks, odd widths, and what `fits` refuses.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for layer in layers for tensor in layer.tensors()):
        return None
    state = [panel_outputs(), *(layer.state() for layer in layers)]
    found = _encoders.get(owner)
    if found is None or found.state != state:
        if not all(_can_encode(layer) for layer in layers) or len({layer.sizes() for layer in layers}) > 1:
            return None
        found = _encoders[owner] = Encoder(layers, state)
    return found


_encoders: WeakKeyDictionary[nn.Module, Encoder] = WeakKeyDictionary()


def _can_encode(layer: Layer) -> bool:
    if not layer.is_known() or not fits(*layer.tensors()) or layer.sizes() is None:
        return False
    return all(can_pack(weight, first, last) for weight, _, first, last in layer.parts())


def _c_layer(layer: Layer, parts: Sequence[tuple[Tensor, Tensor | None, int, int]], packed: Sequence[Tensor]) -> CLayer:
    products = (c_product(part[0], values, *part[1:]) for part, values in zip(parts, packed, strict=True))
    norms = (c_norm(norm_numbers(norm)) for norm in (layer.first, layer.second))
    return CLayer(*products, *norms, layer.norm_first)


def _check(counts: Sequence[Sequence[int]], rows: int) -> None:
    falling = all(a >= b >= 0 for before, after in pairwise(counts) for a, b in zip(before, after, strict=True))
    if sum(counts[0]) != rows or not falling:
        raise ValueError(
            f"counts {[list(count) for count in counts]} do not fall from layer to layer, from {rows} rows on"
        )
