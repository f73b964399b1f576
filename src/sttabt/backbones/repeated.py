"""Modules whose forward an adapter repeats step by step: it never runs, nor does what was put around it."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from sttabt.errors import UserError

HOOKS = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook"}
# Methods that compute a forward, where a class has them; a subclass may change any others.
COMPUTING = ("__call__", "forward", "feed_forward_chunk", "ff_chunk", "forward_features", "_pos_embed")
# Where a library's own recording of hidden states comes from: it does nothing unless a call asks for them.
RECORDING = "transformers.utils.output_capturing"

COMPILED = "torch._dynamo.eval_frame"  # of what torch.compile puts around a module


class Repeated(NamedTuple):
    """name: in the library's model; kinds: the classes whose forward is repeated."""

    name: str
    module: nn.Module
    kinds: tuple[type[nn.Module], ...]


def check_repeated(found: Repeated) -> None:
    """Raise UserError for a forward hook, or another forward than the one repeated. Backward hooks are allowed."""
    name, module, kinds = found
    if type(module).__module__ == COMPILED:
        raise UserError(f"{name} was compiled, which would not run: put its ._orig_mod there, and compile the result")
    if not any(_computes_as(type(module), kind) for kind in kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{name} is a {type(module).__name__}, whose forward would not run: it must be a {names}")
    if "forward" in module.__dict__:
        raise UserError(f"{name} has a replaced forward, which would not run: remove it")
    for attribute, what in HOOKS.items():
        if any(hook.__module__ != RECORDING for hook in getattr(module, attribute).values()):
            raise UserError(f"{name} has a {what}, which would not run: remove it")


def has_hooks(module: nn.Module) -> bool:
    """Whether other code runs around a module's forward, or in its place."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _computes_as(kind: type, known: type) -> bool:
    """Whether it is that class, or a subclass that leaves all computing to it."""
    return kind is known or (
        issubclass(kind, known) and all(getattr(kind, name, None) is getattr(known, name, None) for name in COMPUTING)
    )
