"""How many kernels a program asks a device for, counted where there is none: calls of operators that are no views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._inductor import config, scheduler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten: Any = torch.ops.aten
NO_KERNEL = {aten._unsafe_view, aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.detach}
OF_IMPORTANCE = 2  # native.importance: the kernel, and a sum over heads


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


def compiled_kernels(run: Callable[[], Any]) -> int:
    """How many kernels torch.compile leaves of a function: what its compiler would write, or call, once all is fused.

    It decides that alike for CPUs and cards, but for what it fuses with the loops of a reduction. No code is written.
    """
    counts: list[int] = []

    def count(nodes: list[Any]) -> list[Any]:
        counts.append(sum(map(_kernels_of, nodes)))
        raise _CountedError

    torch._dynamo.reset()
    try:
        with config.patch(_post_fusion_custom_pass=count, fx_graph_cache=False):
            torch.compile(run, dynamic=False, fullgraph=True)()
    except torch._dynamo.exc.BackendCompilerFailed as error:
        assert isinstance(error.inner_exception, _CountedError)
    return sum(counts)


class _CountedError(Exception):
    pass


def _kernels_of(node: Any) -> int:
    if isinstance(node, scheduler.NopKernelSchedulerNode):
        return 0
    if isinstance(node, scheduler.ExternKernelSchedulerNode):
        called = getattr(node.node, "op_overload", None)
        if called is torch.ops.sttabt.importance.default:
            return OF_IMPORTANCE
        return 0 if type(node.node).__name__ == "MultiOutput" else 1
    return 1
