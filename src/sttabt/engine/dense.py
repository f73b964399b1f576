"""All tokens through all layers, with what others want to know of it: attention, hidden states, embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.dispatch import dispatched
from sttabt.core.trace import AttentionTrace
from sttabt.engine.attention import attend, split_heads
from sttabt.engine.packed import attend_packed, unpack


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

    Padding has neither queries nor keys, both are 0: samples of unequal length are packed (engine.packed).
    """
    real = backbone.real(inputs)
    attend_layer: Callable[..., Tensor]
    if backbone.may_pad and not bool(real.all()):
        tokens = real.sum(-1).tolist()
        x = backbone.embed_tokens(inputs, *real.nonzero(as_tuple=True))
        attend_layer = partial(attend_packed, read=tokens, write=tokens)
    else:
        x, attend_layer = backbone.embed(inputs), attend
    queries, keys = (
        [split_heads(_apart(rows, real), backbone.heads) for rows in kind]
        for kind in zip(*_trace_layers(backbone, x, attend_layer), strict=True)
    )
    return AttentionTrace(tuple(queries), tuple(keys), real, _scale(backbone), backbone.may_pad, backbone.pools)


def padding_bias(real: Tensor) -> Tensor | None:
    """What keeps attention off padding: (B, 1, 1, N) bool, or None where there is no padding (kernels are faster)."""
    return None if bool(real.all()) else real[:, None, None, :]


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


def _apart(rows: Tensor, real: Tensor) -> Tensor:
    """Packed rows (T, D) at their places, (B, N, D)."""
    return unpack(rows, real) if rows.dim() == 2 else rows


def _scale(backbone: Backbone) -> float:
    return (backbone.architecture.width // backbone.heads) ** -0.5
