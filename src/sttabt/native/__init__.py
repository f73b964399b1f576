"""Kernels as operators that torch knows: torch.ops.sttabt.NAME. None of them has gradients.

Those for CPUs are in C++ and single precision (operators.py says which there are); engine/frozen.py packs an encoder
and calls them, nothing else does. For CUDA there is one in Triton (importance.py), which engine/planner.py calls.
"""

from sttabt.native.cpu import is_built, limited_to, vector_floats
from sttabt.native.cpu import problem as kernels_problem
from sttabt.native.operators import kernels
from sttabt.native.packed import LayerWeights, Linear, Norm, PackedEncoder, Sizes, pack_encoder, unpack_encoder

__all__ = [
    "LayerWeights",
    "Linear",
    "Norm",
    "PackedEncoder",
    "Sizes",
    "is_built",
    "kernels",
    "kernels_problem",
    "limited_to",
    "pack_encoder",
    "unpack_encoder",
    "vector_floats",
]
