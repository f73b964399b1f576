"""The compiled functions (cpp/kernels.cpp): whether they are there, and which vectors they use."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from sttabt.native.sources import digest

log = logging.getLogger(__name__)

MISSING = "the kernels are missing: sttabt was installed without a C++ compiler"
OTHERS = "the kernels were built from other sources than are here: `make setup`, or pip install -e ., builds them again"


def _load() -> tuple[Any, str | None]:
    """The library, and None; where there is none that can be used None, and why."""
    found = find_spec("sttabt.native._cpu")
    if found is None or found.origin is None:
        return None, MISSING
    library = ctypes.CDLL(found.origin)  # torch comes first: both then share one OpenMP runtime, and its threads
    if (here := digest()) and here != _built_from(library):
        return None, OTHERS
    address, whole, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    arguments: dict[str, list[Any]] = {
        "limit": [whole],
        "panel": [],
        "offsets": [address] * 2,
        "counts_fit": [address, *[whole] * 4],
        "encode": [*[address] * 3, whole, *[address] * 3, whole],
        "layer": [*[address] * 2, whole, *[address] * 2, whole, whole, address, whole],
        "layer_attend": [*[address] * 3, whole, whole, *[address] * 3, whole],
        "plan": [*[address] * 3, whole, address, whole, address, whole, address, address, whole],
        "select": [*[address] * 3, whole, *[address] * 3, whole, whole, *[address] * 3, whole],
        "merge": [*[address] * 3, whole, address, whole, address, whole, whole, address, whole, address, whole],
        "attend": [*[address, whole] * 3, *[address] * 2, *[whole] * 3, address, address, whole],
        "sum_rows": [*[address] * 6, *[whole] * 4, real, real, whole, whole],
    }
    for name, types in arguments.items():
        function = getattr(library, f"sttabt_{name}")
        function.argtypes, function.restype = types, whole
    return library, None


def _built_from(library: ctypes.CDLL) -> str | None:
    """None of a library that is older than this question."""
    if not hasattr(library, "sttabt_sources"):
        return None
    library.sttabt_sources.restype = ctypes.c_char_p
    return library.sttabt_sources().decode()


LIBRARY, PROBLEM = _load()


def is_built() -> bool:
    """Whether the kernels can be used: where there was a C++ compiler, and they are of the sources that are here."""
    return PROBLEM is None


def problem() -> str | None:
    """Why the kernels cannot be used; None where they can."""
    return PROBLEM


def panel_outputs() -> int:
    """Outputs that a packed weight holds next to each other, by the vectors in use."""
    return LIBRARY.sttabt_panel()


def vector_floats() -> int:
    """Numbers of the widest vectors in use: 16 (AVX-512), 8 (AVX2) or 4."""
    return LIBRARY.sttabt_limit(_limit)


_limit = 16


@contextmanager
def limited_to(floats: int) -> Iterator[int]:
    """Vectors of at most `floats` (4, 8 or 16) numbers, as on a lesser machine; gives the number in use.

    An encoder has to be packed and used under the same limit.
    """
    global _limit
    before, _limit = _limit, floats
    try:
        yield vector_floats()
    finally:
        _limit = before
        vector_floats()
