"""Weights of an encoder in one buffer, as the kernels read them. L layers, D width, F feed-forward width, H heads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sttabt.native.cpu import LIBRARY, panel_outputs

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")  # by erf, by tanh, x * sigmoid(1.702 * x); as C++ numbers them
UNIT = 16  # rows, and outputs of a weight, are filled up with zeros to a multiple of it


class Linear(NamedTuple):
    """weight (outputs, inputs), bias (outputs,) or None."""

    weight: Tensor
    bias: Tensor | None


class Norm(NamedTuple):
    """A layer norm over D; weight and bias (D,), None for ones and zeros."""

    weight: Tensor | None
    bias: Tensor | None
    epsilon: float


class LayerWeights(NamedTuple):
    """A transformer layer: query, key, value, join (D, D), widen (F, D), narrow (D, F), two norms.

    first stands at the attention, second at the feed-forward.
    """

    query: Linear
    key: Linear
    value: Linear
    join: Linear
    widen: Linear
    narrow: Linear
    first: Norm
    second: Norm


class Sizes(NamedTuple):
    """panel: outputs that stand next to each other in a packed weight, which the machine's vectors decide.

    norm_first: 1 where a norm stands before its branch, 0 where it stands after its sum. activation: a place in
    ACTIVATIONS.
    """

    panel: int
    layers: int
    width: int
    wide: int
    heads: int
    norm_first: int
    activation: int

    @property
    def stride(self) -> int:
        """The width that rows have in the kernels."""
        return padded(self.width)

    @property
    def numbers(self) -> int:
        """Length of the buffer."""
        return self.layers * _offsets(self)[-1]


@dataclass(frozen=True)
class PackedEncoder:
    """All weights of an encoder: `buffer` (float32, on the CPU) holds copies, so that nothing of the model is needed.

    A plain value: copies and pickles as its two fields. Unpickled on a machine of other vectors it is packed again.
    """

    buffer: Tensor
    sizes: Sizes

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.sizes.panel != panel_outputs():
            sizes = self.sizes
            layers = unpack_encoder(self)
            again = pack_encoder(layers, sizes.heads, bool(sizes.norm_first), ACTIVATIONS[sizes.activation])
            self.__dict__.update(again.__dict__)


def pack_encoder(
    layers: Sequence[LayerWeights], heads: int, norm_first: bool, activation: str = "gelu"
) -> PackedEncoder:
    """Copies of all weights, packed; activation: one of ACTIVATIONS.

    Raises ValueError where they do not fit together or are not float32 on the CPU.
    """
    if not layers:
        raise ValueError("an encoder has at least one layer")
    wide, width = layers[0].widen.weight.shape
    sizes = Sizes(panel_outputs(), len(layers), width, wide, heads, int(norm_first), ACTIVATIONS.index(activation))
    if width % heads:
        raise ValueError(f"{heads} heads do not divide the width {width}")
    shapes = {"query": (width, width), "key": (width, width), "value": (width, width), "join": (width, width),
              "widen": (wide, width), "narrow": (width, wide)}  # fmt: skip
    for number, layer in enumerate(layers):
        for name, shape in shapes.items():
            _check(f"{name} of layer {number}", getattr(layer, name), shape)
        for name in ("first", "second"):
            _check(f"{name} norm of layer {number}", getattr(layer, name)[:2], (width,))
    buffer = torch.zeros(sizes.numbers, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        for layer, own in zip(layers, buffer.view(len(layers), -1), strict=True):
            for place, values in zip(_offsets(sizes), _parts(layer, sizes), strict=False):
                own[place : place + values.numel()] = values
    return PackedEncoder(buffer, sizes)


def unpack_encoder(packed: PackedEncoder) -> list[LayerWeights]:
    """What was packed; every bias and norm is given, as numbers."""
    sizes = packed.sizes
    width, wide, stride = sizes.width, sizes.wide, sizes.stride
    at = _offsets(sizes)

    def weight(own: Tensor, place: int, outputs: int, inputs: int) -> Tensor:
        panels = -(-padded(outputs) // sizes.panel)
        found = own[place : place + panels * sizes.panel * inputs].view(panels, inputs, sizes.panel)
        return found.transpose(1, 2).reshape(-1, inputs)

    def norm(own: Tensor, place: int) -> Norm:
        return Norm(own[place:][:width], own[place + stride :][:width], float(own[place + 2 * stride]))

    layers = []
    for own in packed.buffer.view(sizes.layers, -1):
        inputs, bias = weight(own, at[0], 3 * stride, width), own[at[1] :]
        queries, keys, values = (
            Linear(inputs[first : first + width], bias[first : first + width]) for first in (0, stride, 2 * stride)
        )
        join, widen, narrow = (
            Linear(weight(own, at[part], outputs, depth)[:outputs], own[at[part + 1] :][:outputs])
            for part, outputs, depth in ((2, width, width), (4, wide, width), (6, width, wide))
        )
        layers.append(LayerWeights(queries, keys, values, join, widen, narrow, norm(own, at[8]), norm(own, at[9])))
    return layers


def padded(count: int) -> int:
    """`count` rounded up to whole units."""
    return -(-count // UNIT) * UNIT


@lru_cache(maxsize=256)
def _offsets(sizes: Sizes) -> tuple[int, ...]:
    """Where in a layer's part of the buffer its numbers begin, and the length of that part: see Offsets in C++."""
    found = (ctypes.c_int64 * 11)()
    LIBRARY.sttabt_offsets((ctypes.c_int64 * 7)(*sizes), found)
    return tuple(found)


def _parts(layer: LayerWeights, sizes: Sizes) -> list[Tensor]:
    """In the order of their offsets."""
    width = sizes.width
    inputs = [layer.query, layer.key, layer.value]
    whole = Linear(
        torch.cat([_filled(part.weight, 0) for part in inputs]), torch.cat([_bias(part, width) for part in inputs])
    )
    parts = []
    for weight, bias in (whole, layer.join, layer.widen, layer.narrow):
        rows = F.pad(weight, (0, 0, 0, -len(weight) % sizes.panel))
        panels = rows.view(-1, sizes.panel, weight.shape[1]).transpose(1, 2)
        parts += [panels.reshape(-1), _bias(Linear(weight, bias), len(weight))]
    for weight_of, bias_of, epsilon in (layer.first, layer.second):
        numbers = [
            weight.new_zeros(width) + default if values is None else values
            for values, default in ((weight_of, 1), (bias_of, 0))
        ]
        parts.append(torch.cat([*(_filled(values, 0) for values in numbers), weight.new_tensor([epsilon])]))
    return parts


def _bias(linear: Linear, outputs: int) -> Tensor:
    return _filled(linear.weight.new_zeros(outputs) if linear.bias is None else linear.bias, 0)


def _filled(values: Tensor, dim: int) -> Tensor:
    """With zeros behind it up to whole units."""
    assert dim == 0
    return F.pad(values, (*(0, 0) * (values.dim() - 1), 0, -len(values) % UNIT))


def _check(name: str, linear: Sequence[Tensor | None], shape: tuple[int, ...]) -> None:
    weight, bias = linear
    for kind, values, wanted in (("weight", weight, shape), ("bias", bias, shape[:1])):
        if values is None:
            continue
        if tuple(values.shape) != wanted:
            raise ValueError(f"the {kind} of {name} has the shape {tuple(values.shape)} instead of {wanted}")
        if values.dtype != torch.float32 or not values.is_cpu:
            raise ValueError(f"the {kind} of {name} is {values.dtype} on {values.device}: float32 on cpu is needed")
