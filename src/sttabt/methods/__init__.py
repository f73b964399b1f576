"""One file a pruning method; the file's name is the method's name in configs and rows."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from sttabt.errors import UserError, nearest
from sttabt.methods.base import Method


def method_names() -> list[str]:
    """Every method there is, found by walking this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def find_method(name: str) -> type[Method]:
    """The method of that name; raises UserError with the nearest one."""
    if name not in method_names():
        raise UserError(f"sparsity.method={name} is unknown: {nearest(name, method_names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    own = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Method) and member.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} must define exactly one method, it defines {[cls.__name__ for cls in own]}")
    return own[0]
