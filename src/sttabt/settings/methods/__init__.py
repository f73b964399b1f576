"""The settings of the pruning methods: one file a method, whose name is the method's in configs and rows.

Another package adds a method by an entry point of the group `sttabt.methods`: its name is the method's, its value
"package.module:SettingsClass".
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from sttabt.errors import UserError, nearest
from sttabt.settings.methods.base import MethodSettings

GROUP = "sttabt.methods"  # of entry points


@cache
def method_names() -> tuple[str, ...]:
    """Every method there is, in the order of tables: this package's, then those of other packages by name."""
    own = sorted(_own(), key=lambda name: method_settings(name).order)
    return (*own, *sorted(_others()))


@cache
def method_settings(name: str) -> type[MethodSettings]:
    """The settings class of the method of that name.

    Raises:
        UserError: there is no such method (the nearest is named), or another package's cannot be loaded.
    """
    if name in _own():
        return _only_class(f"{__name__}.{name}")
    entry = _others().get(name)
    if entry is None:
        raise UserError(f"sparsity.method={name} is unknown: {nearest(name, [*_own(), *_others()])}")
    return _load(entry)


def _own() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"]


@cache
def _others() -> dict[str, EntryPoint]:
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    for name in found.keys() & set(_own()):
        raise UserError(f"{_package(found[name])} brings a method '{name}', which sttabt has itself: rename it")
    return found


def _only_class(module_name: str) -> type[MethodSettings]:
    module = importlib.import_module(module_name)
    own = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, MethodSettings) and member.__module__ == module_name
    ]
    if len(own) != 1:
        raise TypeError(f"{module_name} must define one class of settings, it has {[cls.__name__ for cls in own]}")
    return own[0]


def _load(entry: EntryPoint) -> type[MethodSettings]:
    try:
        found = entry.load()
    except Exception as error:  # whatever another package raises at import
        raise UserError(f"the method '{entry.name}' of {_package(entry)} cannot be loaded: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, MethodSettings)):
        raise UserError(f"the method '{entry.name}' of {_package(entry)}: {entry.value} is no class of MethodSettings")
    return found


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value
