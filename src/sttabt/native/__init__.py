"""Kernels for CPUs (kernels.cpp): attention of narrow heads and ragged batches, sums over its rows, linear layers of
few rows with what stands around them.

Used in single precision where no gradient is asked for; everywhere else, and where the package was installed without a
C++ compiler, torch's own operations compute the same (to rounding). Calls go through ctypes, which costs a few
microseconds. T rows, D width, H heads.
"""

from sttabt.native.attention import attend, sum_rows
from sttabt.native.encoder import Encoder, make_encoder
from sttabt.native.library import fits, limited_to, loaded, switched_off
from sttabt.native.modules import Layer, is_exact_gelu, is_plain, norm_numbers
from sttabt.native.product import Norm, linear

__all__ = [
    "Encoder",
    "Layer",
    "Norm",
    "attend",
    "fits",
    "is_exact_gelu",
    "is_plain",
    "limited_to",
    "linear",
    "loaded",
    "make_encoder",
    "norm_numbers",
    "sum_rows",
    "switched_off",
]
