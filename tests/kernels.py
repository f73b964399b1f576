"""How many kernels a program asks a device for, counted where there is none: calls of operators that are no views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten: Any = torch.ops.aten
NO_KERNEL = {aten._unsafe_view, aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.detach}
OF_IMPORTANCE = 4  # native.importance: zeros, the kernel, a sum, a quotient


class Kernels(TorchDispatchMode):
    """`count`: calls on a device so called; an operator may be several kernels there, and none is less than one.

    `maps`: bytes that these read and wrote of attention maps, (B, heads, n, n) or (B heads, n, n); 0 without heads.
    """

    def __init__(self, device: str, heads: int = 0) -> None:
        super().__init__()
        self.device, self.heads, self.count, self.maps = device, heads, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        packet = function.overloadpacket
        tensors = [each for each in tree_leaves((args, kwargs, found)) if isinstance(each, Tensor)]
        # A pretended device computes attention on the CPU.
        there = any(each.device.type == self.device for each in tensors) or "scaled_dot_product" in str(packet)
        if function.is_view or packet in NO_KERNEL or not there:
            return found
        self.count += OF_IMPORTANCE if packet is torch.ops.sttabt.importance else 1
        # An operator in place gives what it was given.
        unique = {id(each): each for each in tensors if self._is_map(each)}
        self.maps += sum(each.numel() * each.element_size() for each in unique.values())
        return found

    def _is_map(self, x: Tensor) -> bool:
        split = x.dim() == 4 and x.shape[1] == self.heads
        flat = x.dim() == 3 and self.heads > 0 and x.shape[0] % self.heads == 0
        return (split or flat) and x.shape[-2] == x.shape[-1]
