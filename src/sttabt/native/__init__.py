"""Kernels for CPUs (kernels.cpp): attention of narrow heads and ragged batches, sums over its rows, what follows
a linear layer.

Used in single precision where no gradient is asked for; everywhere else, and where the package was installed without a
C++ compiler, torch's own operations compute the same (to rounding). Calls go through ctypes, which costs a few
microseconds; under torch.compile they are custom operators, so that a graph stays whole. T rows, D width, H heads.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def _load() -> ctypes.CDLL | None:
    found = find_spec("sttabt.native._kernels")
    if found is None or found.origin is None:
        log.warning("installed without a C++ compiler: attention and planning on CPUs run slower, with the same result")
        return None
    library = ctypes.CDLL(found.origin)  # torch comes first: both then share one OpenMP runtime, and its threads
    address, whole, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    rows: list[Any] = [address, whole]
    library.sttabt_attend.argtypes = [*rows, *rows, *rows, address, address, *[whole] * 3, real, whole, address]
    library.sttabt_sum_rows.argtypes = [address] * 6 + [whole] * 4 + [real, real, whole]
    library.sttabt_finish_rows.argtypes = [address] * 3 + [whole] * 3
    library.sttabt_limit.argtypes, library.sttabt_limit.restype = [whole], whole
    for function in (library.sttabt_attend, library.sttabt_sum_rows, library.sttabt_finish_rows):
        function.restype = None
    return library


_LIBRARY = _load()
_enabled = True


def loaded() -> bool:
    """Whether the kernels were built with the package and are not switched off."""
    return _enabled and _LIBRARY is not None


def fits(*tensors: Tensor) -> bool:
    """Whether the kernels can compute on these: on a CPU, single precision, no autocast, no gradient."""
    recorded = torch.compiler.is_exporting() or torch.jit.is_tracing()  # a recording would not hold the kernels
    if not loaded() or recorded or torch.is_autocast_enabled("cpu"):
        return False
    gradients = torch.is_grad_enabled()
    return all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu" and not (gradients and tensor.requires_grad)
        for tensor in tensors
    )


@contextmanager
def switched_off() -> Iterator[None]:
    """Torch's own operations instead: what the kernels are compared with, and what torch's counters see."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


@contextmanager
def limited_to(floats: int) -> Iterator[int]:
    """Vectors of at most `floats` (4, 8 or 16) numbers, as on a lesser machine; gives the number in use."""
    assert _LIBRARY is not None, "ask loaded() first"
    try:
        yield _LIBRARY.sttabt_limit(floats)
    finally:
        _LIBRARY.sttabt_limit(16)


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


def linear(rows: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, gelu: bool = False) -> Tensor:
    """gelu(rows . weight^T + bias) + residual; gelu, by erf, and the residual can be left out.

    torch writes the bias down before a product and takes a pass for each of the others; here one pass follows it.
    """
    product = rows @ weight.t()
    residual = None if residual is None else residual.contiguous()  # has to live while its address is in use
    _LIBRARY.sttabt_finish_rows(  # type: ignore[union-attr]
        product.data_ptr(), bias.data_ptr(), _address(residual),
        product.numel() // product.shape[-1], product.shape[-1], gelu,
    )  # fmt: skip
    return product


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
    _LIBRARY.sttabt_attend(  # type: ignore[union-attr]
        query.data_ptr(), query.stride(0), key.data_ptr(), key.stride(0), value.data_ptr(), value.stride(0),
        _address(log_weight),
        attended.data_ptr(), attended.stride(0), heads, width, width**-0.5, len(read), _integers(segments),
    )  # fmt: skip
    return attended


def _sum_rows(
    queries: Tensor, keys: Tensor, weight: Tensor, real: Tensor | None, scale: float, least: float, standing: bool
) -> Tensor:
    batch, heads, tokens, width = queries.shape
    sums = torch.empty(batch, heads, tokens, dtype=queries.dtype)
    real = None if real is None else real.contiguous()
    strides = _integers([*queries.stride()[:3], *keys.stride()[:3]])
    _LIBRARY.sttabt_sum_rows(  # type: ignore[union-attr]
        queries.data_ptr(), keys.data_ptr(), strides, weight.data_ptr(),
        _address(real),
        sums.data_ptr(), batch, heads, tokens, width, scale, least, standing,
    )  # fmt: skip
    return sums


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _integers(values: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


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
