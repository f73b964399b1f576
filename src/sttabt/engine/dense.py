"""All tokens through all layers, with what others want to know of it: attention, hidden states, embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from sttabt.backbones.base import Backbone
from sttabt.backbones.inputs import in_graph
from sttabt.core.dispatch import dispatched
from sttabt.core.trace import AttentionTrace
from sttabt.engine.attention import attend, split_heads
from sttabt.engine.packed import Packing, attend_packed
from sttabt.engine.planner import KernelTrace
from sttabt.native.importance import HAS_TRITON


@dataclass(frozen=True)
class DenseRun:
    """logits (B, classes); hidden: the input of each layer, L tensors (B, N, D), hidden[0] the embedding; states: what
    the last layer wrote, (B, N, D); trace.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...]
    states: Tensor
    trace: AttentionTrace


def run_dense(backbone: Backbone, inputs: Any) -> DenseRun:
    """The whole encoder, padding included; keeps every layer's input, queries and keys."""
    real = backbone.real(inputs)
    bias = padding_bias(real) if backbone.may_pad else None
    x = backbone.embed(inputs)
    hidden, queries, keys = [], [], []
    for layer in range(backbone.layers):
        hidden.append(x)
        query, key, value = backbone.qkv(layer, x)
        queries.append(split_heads(query, backbone.heads))
        keys.append(split_heads(key, backbone.heads))
        attended = attend(query, key, value, backbone.heads, bias, backbone.attention_dropout(layer))
        x = backbone.finish(layer, x, attended)
    trace = AttentionTrace(tuple(queries), tuple(keys), real, _scale(backbone), backbone.may_pad, backbone.pools)
    return DenseRun(backbone.head(x, real if backbone.may_pad else None), tuple(hidden), x, trace)


@dispatched
def trace_attention(backbone: Backbone, inputs: Any) -> AttentionTrace:
    """What every layer attends to, and nothing more: the last layer stops at its queries and keys.

    Padding has neither queries nor keys, both are 0: samples of unequal length are packed (engine.packed). In a graph,
    whose shapes follow no numbers, padding is computed and masked.
    """
    real = backbone.real(inputs)
    packing = pack_real(backbone, inputs)
    attend_layer: Callable[..., Tensor]
    if backbone.may_pad and in_graph(real):
        x, attend_layer = backbone.embed(inputs), partial(attend, bias=padding_bias(real))
    elif packing is None:
        x, attend_layer = backbone.embed(inputs), attend
    else:
        x = backbone.embed_tokens(inputs, *packing.places)
        attend_layer = partial(attend_packed, read=packing, write=packing)
    queries, keys = (
        [split_heads(rows if packing is None else _apart(rows, packing, real), backbone.heads) for rows in kind]
        for kind in zip(*_trace_layers(backbone, x, attend_layer), strict=True)
    )
    kind = KernelTrace if real.is_cuda and HAS_TRITON else AttentionTrace
    may_pad = packing is not None or (backbone.may_pad and in_graph(real))
    return kind(tuple(queries), tuple(keys), real, _scale(backbone), may_pad, backbone.pools)


def pack_real(backbone: Backbone, inputs: Any) -> Packing | None:
    """How the real tokens of texts of unequal length are packed; None in graphs, and where none is padding."""
    real = backbone.real(inputs)
    if not backbone.may_pad or in_graph(real):
        return None
    lengths = backbone.lengths(inputs)
    return None if min(lengths) == real.shape[1] else Packing.of(real.sum(-1), lengths)


def embed_packed(backbone: Backbone, inputs: Any) -> tuple[Tensor, Packing]:
    """The real tokens behind each other, (T, D), as the first layer reads them; padding is not embedded."""
    packing = pack_real(backbone, inputs)
    if packing is not None:
        return backbone.embed_tokens(inputs, *packing.places), packing
    samples, tokens = (real := backbone.real(inputs)).shape
    return backbone.embed(inputs).flatten(0, 1), Packing.alike(samples, tokens, real.device)


def padding_bias(real: Tensor) -> Tensor | None:
    """What keeps attention off padding: (B, 1, 1, N) bool, or None where there is no padding (kernels are faster).

    In a graph always the former.
    """
    return None if not in_graph(real) and bool(real.all()) else real[:, None, None, :]


def _trace_layers(
    backbone: Backbone, x: Tensor, attend_layer: Callable[..., Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Queries and keys of each layer."""
    for layer in range(backbone.layers - 1):
        query, key, value = backbone.qkv(layer, x)
        yield query, key
        attended = attend_layer(query, key, value, backbone.heads, dropout=backbone.attention_dropout(layer))
        x = backbone.finish(layer, x, attended)
    yield backbone.queries_keys(backbone.layers - 1, x)


def _apart(rows: Tensor, packing: Packing, real: Tensor) -> Tensor:
    """Packed rows (T, D) at their places, (B, N, D)."""
    return F.pad(packing.unpack(rows), (0, 0, 0, real.shape[1] - packing.longest))


def _scale(backbone: Backbone) -> float:
    return (backbone.architecture.width // backbone.heads) ** -0.5
