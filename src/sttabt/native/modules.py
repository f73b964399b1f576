"""What torch's modules must be for the kernels to stand in for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from sttabt.native.product import Norm

NORMS = ("LayerNorm", "LayerNormFp32")
RESTING = ("Dropout", "DropPath")


class Layer(NamedTuple):
    """The modules of a transformer layer.

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
    idle: tuple[nn.Module, ...]  # dropouts and the like, which do nothing in evaluation
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
            (
                id(tensor),
                tensor.data_ptr(),
                -1 if tensor.is_inference() else tensor._version,
                tensor.shape,
                tensor.stride(),
            )
            for tensor in self.tensors()
        )
        modules = *self.weighty, self.activation, *self.idle
        formula = self.first.eps, self.second.eps, getattr(self.activation, "approximate", None)
        idle = tuple(map(is_idle, self.idle))
        return tuple(map(id, modules)), tuple(map(is_watched, modules)), idle, formula, tensors

    def is_known(self) -> bool:
        """Whether the kernels compute what these modules do."""
        return all(map(is_plain, self.weighty)) and is_exact_gelu(self.activation) and all(map(is_idle, self.idle))

    def sizes(self) -> tuple[int, int] | None:
        """Width and feed-forward width, None where its parts do not fit together as the kernels take for granted."""
        width, wide = self.join.weight.shape[0], self.widen.weight.shape[0]
        shapes = (self.join.weight.shape, self.widen.weight.shape, self.narrow.weight.shape)
        inputs = {layer.weight.shape for layer in self.inputs}
        norms = {norm.weight.shape for norm in (self.first, self.second)}
        fitting = shapes == ((width, width), (wide, width), (width, wide)) and norms == {(width,)}
        return (width, wide) if fitting and inputs == {(3 // len(self.inputs) * width, width)} else None


def is_exact_gelu(activation: nn.Module) -> bool:
    """Whether it is GELU by erf, as torch or as transformers writes it, with nobody's hooks."""
    exact = type(activation) is nn.GELU and activation.approximate == "none"
    return (exact or getattr(activation, "act", None) is F.gelu) and not is_watched(activation)


def is_plain(module: nn.Module) -> bool:
    """Whether it is a linear layer or a layer norm that computes what its name says, with nobody's hooks."""
    kind, numbers = type(module), [tensor for tensor in module._parameters.values() if tensor is not None]
    if isinstance(module, nn.LayerNorm):  # torch's or timm's, no class of a user or of a parametrization
        known = kind.__name__ in NORMS and kind.__module__.startswith(("torch.", "timm.")) and len(numbers) == 2
    else:
        known = kind is nn.Linear and module._parameters.get("weight") is not None
    dense = all(type(tensor) in (Tensor, nn.Parameter) and tensor.is_contiguous() for tensor in numbers)
    return known and dense and not is_watched(module)


def is_idle(module: nn.Module) -> bool:
    """Whether it does nothing now, and nobody's hooks wait for it."""
    resting = not module.training and type(module).__name__ in RESTING
    return (resting or type(module) is nn.Identity) and not is_watched(module)


def is_watched(module: Any) -> bool:
    """Whether somebody's hooks stand around it, or somebody's forward in the place of its own."""
    hooks = (getattr(module, name, None) for name in ("_forward_hooks", "_forward_pre_hooks"))
    return any(hooks) or "forward" in getattr(module, "__dict__", ())


def norm_numbers(norm: nn.LayerNorm) -> Norm:
    """What the kernels need of a plain norm."""
    return Norm(norm.weight, norm.bias, norm.eps)
