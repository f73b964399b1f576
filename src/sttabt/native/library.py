"""The compiled library: whether it is there, what it can compute on, and switches for tests and comparisons."""

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
    library.sttabt_pack.argtypes = [address, whole, whole, address]
    library.sttabt_multiply.argtypes = [*rows, address, address, address, address, whole, address]
    library.sttabt_encode.argtypes = [address, address, whole, whole, whole, *[address] * 4]
    library.sttabt_encoder_room.argtypes = [address, whole]
    library.sttabt_finish_rows.argtypes = [address] * 3 + [whole] * 3
    library.sttabt_limit.argtypes = [whole]
    library.sttabt_panel.argtypes = []
    for name in ("attend", "sum_rows", "pack", "finish_rows"):
        getattr(library, f"sttabt_{name}").restype = None
    for name in ("limit", "panel", "multiply", "encoder_room", "encode"):
        getattr(library, f"sttabt_{name}").restype = whole
    return library


LIBRARY = _load()
_enabled = True


def loaded() -> bool:
    """Whether the kernels were built with the package and are not switched off."""
    return _enabled and LIBRARY is not None


def fits(*tensors: Tensor) -> bool:
    """Whether the kernels can compute on these: on a CPU, single precision, no autocast, no gradient."""
    recorded = torch.compiler.is_exporting() or torch.jit.is_tracing()  # a recording would not hold the kernels
    if not loaded() or recorded or torch.is_autocast_enabled("cpu"):
        return False
    gradients = torch.is_grad_enabled()
    return all(
        tensor.is_cpu and tensor.dtype == torch.float32 and not (gradients and tensor.requires_grad)
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
    assert LIBRARY is not None, "ask loaded() first"
    before = LIBRARY.sttabt_limit(16)
    try:
        yield LIBRARY.sttabt_limit(floats)
    finally:
        LIBRARY.sttabt_limit(before)


def address(x: Tensor | None) -> int | None:
    """Where a tensor's numbers begin, null for None. The tensor has to live while its address is in use."""
    return None if x is None else x.data_ptr()


def integers(values: Sequence[int]) -> ctypes.Array:
    """As C reads them."""
    return (ctypes.c_int64 * len(values))(*values)
