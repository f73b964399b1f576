"""What torch's modules must be for the kernels to stand in for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from sttabt.native.product import Norm


class Layer(NamedTuple):
    """The modules of a transformer layer; whatever else it has must do nothing.

    inputs: one that gives queries, keys and values, or three. norm_first: a norm stands before its branch, otherwise
    after its sum.
    """

    inputs: tuple[nn.Linear, ...]
    join: nn.Linear
    widen: nn.Linear
    activation: nn.Module
    narrow: nn.Linear
    first: nn.LayerNorm
    second: nn.LayerNorm
    norm_first: bool

    @property
    def weighty(self) -> tuple[nn.Module, ...]:
        """The modules that have weights."""
        return *self.inputs, self.join, self.widen, self.narrow, self.first, self.second

    def tensors(self) -> Iterator[Tensor]:
        """Weights and biases."""
        for module in self.weighty:
            yield from (tensor for tensor in module._parameters.values() if tensor is not None)

    def parts(self) -> Iterator[tuple[Tensor, Tensor | None, int, int]]:
        """Weight, bias, first and last output of the six products."""
        for modules, count in ((self.inputs, 3 // len(self.inputs)), ((self.join, self.widen, self.narrow), 1)):
            for module in modules:
                width = module.out_features // count
                yield from ((module.weight, module.bias, at * width, (at + 1) * width) for at in range(count))

    def state(self) -> tuple[Any, ...]:
        """Differs when a module, a weight or the numbers in it were changed, or hooks came."""
        tensors = tuple(
            (id(tensor), tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version)
            for tensor in self.tensors()
        )
        modules = *self.weighty, self.activation
        return tuple(map(id, modules)), tuple(map(is_watched, modules)), tensors

    def is_known(self) -> bool:
        """Whether the kernels compute what these modules do."""
        return all(map(is_plain, self.weighty)) and is_exact_gelu(self.activation)


def is_exact_gelu(activation: nn.Module) -> bool:
    """Whether it is GELU by erf, as torch or as transformers writes it, with nobody's hooks."""
    exact = isinstance(activation, nn.GELU) and activation.approximate == "none"
    return (exact or getattr(activation, "act", None) is F.gelu) and not is_watched(activation)


def is_plain(module: nn.Module) -> bool:
    """Whether it is a linear layer or a layer norm that computes what its name says, with nobody's hooks."""
    if isinstance(module, nn.LayerNorm):
        return module.weight is not None and module.bias is not None and not is_watched(module)
    return type(module) is nn.Linear and not is_watched(module)


def is_watched(module: nn.Module) -> bool:
    """Whether somebody's hooks stand around it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def norm_numbers(norm: nn.LayerNorm) -> Norm:
    """What the kernels need of a plain norm."""
    return Norm(norm.weight, norm.bias, norm.eps)
