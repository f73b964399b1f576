"""Which adapter serves a library's model: those of this package, and those of installed packages.

Another package adds an adapter by an entry point of the group "sttabt.backbones", `NAME = "package.module:Class"`.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from torch import nn

from sttabt.backbones.base import Backbone
from sttabt.backbones.refusals import refusal
from sttabt.errors import UserError

GROUP = "sttabt.backbones"


def adapt(model: nn.Module) -> Backbone:
    """A library's model as a backbone: wrapped, not copied; a Backbone as it is.

    Raises UserError for a class that no adapter serves, and where the adapter would not compute what the model does.
    """
    if isinstance(model, Backbone):
        return model
    kind, adapters = type(model), served()
    for base in kind.__mro__:
        if adapter := adapters.get(f"{base.__module__}.{base.__qualname__}"):
            return adapter(model)
    raise UserError(refusal(model, adapters))


def adapters() -> tuple[type[Backbone], ...]:
    """Every adapter: this package's, then those of other packages."""
    modules = [import_module(f"{__package__}.{found.name}") for found in pkgutil.iter_modules([str(_FOLDER)])]
    ours = [value for module in modules for value in vars(module).values() if _is_adapter(value)]
    theirs = [_load(point) for point in entry_points(group=GROUP)]
    return tuple(dict.fromkeys((*ours, *theirs)))


@cache
def served() -> dict[str, type[Backbone]]:
    """Adapters by the qualified name of the class that they serve; those of other packages replace our own."""
    return {name: adapter for adapter in adapters() for name in adapter.serves}


_FOLDER = Path(__file__).parent


def _is_adapter(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Backbone)


def _load(point: EntryPoint) -> type[Backbone]:
    try:
        adapter = point.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"the backbone {point.name} cannot be imported from {point.value}: {error}") from error
    if not _is_adapter(adapter):
        raise UserError(f"the backbone {point.name} is {point.value}, which is no Backbone")
    return adapter
