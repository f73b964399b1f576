"""Kernels for CPUs (kernels.cpp): attention of narrow heads and ragged batches, sums over its rows, linear layers of
few rows with what stands around them.

Used in single precision where no gradient is asked for; everywhere else, and where the package was installed without a
C++ compiler, torch's own operations compute the same (to rounding). Calls go through ctypes, which costs a few
microseconds. T rows, D width, H heads.
"""

from sttabt.native.attention import attend, sum_rows
from sttabt.native.library import fits, limited_to, loaded, switched_off
from sttabt.native.product import Norm, linear

__all__ = ["Norm", "attend", "fits", "limited_to", "linear", "loaded", "sum_rows", "switched_off"]
