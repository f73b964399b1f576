"""A device that is not there: tensors say that they are on CUDA, their numbers lie on the CPU, and it counts whenever a
program waits for it, as torch.cuda.set_sync_debug_mode does on a card.

What it cannot show is a kernel of CUDA's own. Attention and the planner's sums are computed by their references.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from sttabt.core.concrete import weighted_percentile
from sttabt.core.trace import AttentionTrace

CUDA = torch.device("cuda", 0)
aten: Any = torch.ops.aten
# Operators whose result has a shape, or is a number, that the host must know.
WAITING = {
    aten._local_scalar_dense, aten.item, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.bincount,
    aten._unique2, aten.unique_dim, aten.unique_consecutive,
}  # fmt: skip


def _importance(
    queries: Tensor, keys: Tensor, places: Tensor, weight: Tensor, counts: Tensor, real: Tensor, scale: float, cdf: bool
) -> Tensor:
    """What native.importance computes, by the references."""
    read = torch.arange(weight.shape[1]) < counts[:, None]
    rows = torch.zeros(real.shape).scatter(1, places, weight.float() * read)
    queries, keys = queries.float(), keys.float()
    if cdf:
        return weighted_percentile(queries, keys, rows, real)
    return AttentionTrace((queries,), (keys,), real, scale).received(0, rows)


KERNELS = {torch.ops.sttabt.importance: _importance}


class OnDevice(Tensor):
    """`own`: where its numbers are."""

    own: Tensor

    @staticmethod
    def __new__(cls, own: Tensor) -> OnDevice:
        return Tensor._make_wrapper_subclass(
            cls, own.shape, own.stride(), own.storage_offset(), dtype=own.dtype, device=CUDA,
            requires_grad=own.requires_grad,
        )  # fmt: skip

    def __init__(self, own: Tensor) -> None:
        self.own = own

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} outside of the pretended device")


class _Functions(TorchFunctionMode):
    """What chooses a kernel by the device, or reads numbers, before it is dispatched."""

    def __init__(self, device: _Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.tolist and isinstance(args[0], OnDevice):
            self.device.wait(function)
            return args[0].own.tolist()
        if function in (torch.tensor, torch.as_tensor) and _is_cuda(kwargs.get("device")):
            self.device.wait(function)  # made on the CPU, and copied
            self.device.copies.append(_named(function))
            return OnDevice(function(*args, **{**kwargs, "device": "cpu"}))
        if function is F.scaled_dot_product_attention and isinstance(args[0], OnDevice):
            return tree_map(_wrapped, function(*tree_map(_own, args), **tree_map(_own, kwargs)))
        return function(*args, **kwargs)


class _Device(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.copies: list[str] = []  # that the host made to it, waited for or not: no graph can have them

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = [*_tensors(args), *_tensors(kwargs)]
        target = kwargs.get("device")
        here = any(isinstance(each, OnDevice) for each in flat)
        there = _is_cuda(target)
        packet = function.overloadpacket
        if packet is aten.to:  # arrives whole in inference mode
            with self:
                return function.decompose(*args, **kwargs)
        if not here and not there:
            return function(*args, **kwargs)
        if packet is aten._to_copy or packet is aten.copy_:
            away = target is not None and not there
            arrives = not here or (packet is aten.copy_ and not isinstance(flat[-1], OnDevice))
            # A copy to the device waits, too, unless it was told not to.
            if away or (arrives and not kwargs.get("non_blocking")):
                self.wait(function)
            if arrives:
                self.copies.append(_named(function))
        elif packet in WAITING or (packet in (aten.index, aten.index_put, aten.index_put_) and _by_mask(args[1])):
            self.wait(function)
        elif here:
            wrong = [each for each in flat if not isinstance(each, OnDevice) and each.dim()]
            assert not wrong, f"{function} reads a tensor of the device and one of the CPU"
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        function = KERNELS.get(packet, function)
        found = function(*tree_map(_own, args), **tree_map(_own, kwargs))
        if packet is aten._to_copy and target is not None and not there:
            return found
        if (
            packet not in KERNELS
            and function._schema.is_mutable
            and flat
            and isinstance(flat[0], OnDevice)
            and found is flat[0].own
        ):
            return flat[0]
        return tree_map(_wrapped, found)

    def wait(self, function: Any) -> None:
        self.waits.append(_named(function))


@contextmanager
def pretended_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Device]:
    """`waits` of what it gives says what waited for the device, and where; `copies` what was copied to it."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", _varlen)
    torch._C._ensureCUDADeviceGuardSet()  # as torch's own fake tensors of a device that is not there
    with (device := _Device()), _Functions(device):
        yield device


def to_device(x: Any) -> Any:
    """A tensor, or whatever holds tensors (a Text), or a module, in place."""
    if isinstance(x, nn.Module):
        for module in x.modules():
            for held in (module._parameters, module._buffers):
                for name, value in held.items():
                    if value is not None:
                        own = OnDevice(value.detach())
                        held[name] = nn.Parameter(own, requires_grad=False) if held is module._parameters else own
        return x
    return tree_map(_wrapped, x)


def from_device(x: Any) -> Any:
    """The numbers, without waiting."""
    return tree_map(_own, x)


def _named(function: Any) -> str:
    """With the line of the package that called it."""
    place = [line for line in traceback.format_stack() if "/sttabt/" in line and "/testing/" not in line]
    return f"{function} {place[-1].strip() if place else ''}"


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _own(x: Any) -> Any:
    return x.own if isinstance(x, OnDevice) else x


def _wrapped(x: Any) -> Any:
    return OnDevice(x) if isinstance(x, Tensor) and not isinstance(x, OnDevice) else x


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, dict):
        yield from _tensors(tuple(x.values()))
    elif isinstance(x, Sequence) and not isinstance(x, str):
        for each in x:
            yield from _tensors(each)


def _by_mask(index: Sequence[Any]) -> bool:
    return any(isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in index)


def _varlen(q: Tensor, k: Tensor, v: Tensor, written: Tensor, seen: Tensor, most_q: int, most_k: int) -> Tensor:
    """torch's flash attention of ragged rows, slowly; what stands behind the last sample is left as it was: NaN."""
    assert written.dtype == seen.dtype == torch.int32
    q, k, v, written, seen = from_device((q, k, v, written, seen))
    found = torch.full_like(q, torch.nan)
    for sample in range(len(written) - 1):
        rows, keys = (slice(*starts[sample : sample + 2].tolist()) for starts in (written, seen))
        assert rows.stop - rows.start <= most_q and keys.stop - keys.start <= most_k
        one = (of.transpose(0, 1)[None] for of in (q[rows], k[keys], v[keys]))
        found[rows] = F.scaled_dot_product_attention(*one)[0].transpose(0, 1)
    return OnDevice(found)
