"""Attention, and weighted sums over its rows. Under torch.compile they are custom operators: a graph stays whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sttabt.native.library import LIBRARY, address, integers


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    read: Sequence[int],
    write: Sequence[int],
    log_weight: Tensor | None = None,
) -> Tensor:
    """Attention within each sample: (sum of `write`, D) queries over (sum of `read`, D) keys and values.

    Samples stand behind each other; nothing is padded. log_weight: (sum of `read`,), added to a key's scores.
    """
    call = torch.ops.sttabt.attend if torch.compiler.is_compiling() else _attend
    return call(_dense(query), _dense(key), _dense(value), heads, list(read), list(write), log_weight)


def sum_rows(
    queries: Tensor, keys: Tensor, weight: Tensor, real: Tensor | None, scale: float, least: float, standing: bool
) -> Tensor:
    """Weighted sum over rows of attention, mean over heads: (B, N).

    queries, keys: (B, H, N, d); weight: (B, N), rows of at most `least` are left out; real: (B, N) bool, None where
    nothing is padding. A row is its softmax of scale * q . k over the real keys, or with `standing` erf of its
    standardised scores over the square root of 2 (core.concrete).
    """
    call = torch.ops.sttabt.sum_rows if torch.compiler.is_compiling() else _sum_rows
    return call(_dense(queries), _dense(keys), weight.contiguous(), real, scale, least, standing).mean(1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, read: list[int], write: list[int], log_weight: Tensor | None
) -> Tensor:
    attended = torch.empty(query.shape, dtype=query.dtype)
    width = query.shape[-1] // heads
    log_weight = None if log_weight is None else log_weight.contiguous()
    segments, first_written, first_read = [], 0, 0
    for written, seen in zip(write, read, strict=True):
        segments += [first_written, written, first_read, seen]
        first_written, first_read = first_written + written, first_read + seen
    LIBRARY.sttabt_attend(  # type: ignore[union-attr]
        query.data_ptr(), query.stride(0), key.data_ptr(), key.stride(0), value.data_ptr(), value.stride(0),
        address(log_weight),
        attended.data_ptr(), attended.stride(0), heads, width, width**-0.5, len(read), integers(segments),
    )  # fmt: skip
    return attended


def _sum_rows(
    queries: Tensor, keys: Tensor, weight: Tensor, real: Tensor | None, scale: float, least: float, standing: bool
) -> Tensor:
    batch, heads, tokens, width = queries.shape
    sums = torch.empty(batch, heads, tokens, dtype=queries.dtype)
    real = None if real is None else real.contiguous()
    strides = integers([*queries.stride()[:3], *keys.stride()[:3]])
    LIBRARY.sttabt_sum_rows(  # type: ignore[union-attr]
        queries.data_ptr(), keys.data_ptr(), strides, weight.data_ptr(),
        address(real),
        sums.data_ptr(), batch, heads, tokens, width, scale, least, standing,
    )  # fmt: skip
    return sums


def _dense(x: Tensor) -> Tensor:
    """The kernels take any strides but the last."""
    return x if x.stride(-1) == 1 else x.contiguous()


_ops = torch.library.Library("sttabt", "FRAGMENT")
_ops.define(
    "attend(Tensor query, Tensor key, Tensor value, int heads, int[] read, int[] write, Tensor? log_weight) -> Tensor"
)
_ops.define(
    "sum_rows(Tensor queries, Tensor keys, Tensor weight, Tensor? real, float scale, float least, bool standing)"
    " -> Tensor"
)
_ops.impl("attend", _attend, "CPU")
_ops.impl("sum_rows", _sum_rows, "CPU")


@torch.library.register_fake("sttabt::attend")
def _(
    query: Tensor, key: Tensor, value: Tensor, heads: int, read: list, write: list, log_weight: Tensor | None
) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.register_fake("sttabt::sum_rows")
def _(
    queries: Tensor, keys: Tensor, weight: Tensor, real: Tensor | None, scale: float, least: float, standing: bool
) -> Tensor:
    return queries.new_empty(queries.shape[:3])
