"""All layers of an encoder in one call, whichever rows go on: with few rows, calls take longer than arithmetic."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain
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
        reads.
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
        # The packed weights live as long as their addresses are in the table.
        self._packed = [pack(part[0]) for layer in self.layers for part in layer.parts()]
        self._table = (CLayer * len(self.layers))(*map(_c_layer, self.layers))

    def _run(
        self, x: Tensor, heads: int, counts: Sequence[Sequence[int]], kept: ctypes.Array | None, out: int | None
    ) -> None:
        x, flat = x.contiguous(), integers(list(chain.from_iterable(counts)))
        scratch = x.new_empty(LIBRARY.sttabt_encoder_room(self._table, len(x)))  # type: ignore[union-attr]
        sizes, places = (len(self.layers), heads, len(counts[0])), (flat, kept, scratch.data_ptr(), out)
        while not LIBRARY.sttabt_encode(x.data_ptr(), self._table, *sizes, *places):  # type: ignore[union-attr]
            forget(part[0] for layer in self.layers for part in layer.parts())
            self._describe()


def make_encoder(owner: nn.Module, layers: Sequence[Layer]) -> Encoder | None:
    """The layers of `owner`, packed and kept until they change; None where the kernels lack something.

    That is: other modules or activations than they know, somebody's hooks, odd widths, and what `fits` refuses.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for layer in layers for tensor in layer.tensors()):
        return None
    state = [panel_outputs(), *(layer.state() for layer in layers)]
    found = _encoders.get(owner)
    if found is None or found.state != state:
        if not all(_can_encode(layer) for layer in layers):
            return None
        found = _encoders[owner] = Encoder(layers, state)
    return found


_encoders: WeakKeyDictionary[nn.Module, Encoder] = WeakKeyDictionary()


def _can_encode(layer: Layer) -> bool:
    if not layer.is_known() or not fits(*layer.tensors()):
        return False
    return all(can_pack(weight, first, last) for weight, _, first, last in layer.parts())


def _c_layer(layer: Layer) -> CLayer:
    norms = (c_norm(norm_numbers(norm)) for norm in (layer.first, layer.second))
    return CLayer(*(c_product(*part) for part in layer.parts()), *norms, layer.norm_first)
