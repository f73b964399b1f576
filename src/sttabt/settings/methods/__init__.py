"""The settings of the pruning methods: one file a method, whose name is the method's in configs and rows.

Another package adds a method by an entry point of the group `sttabt.methods`: its name is the method's, its value
"package.module:SettingsClass".
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from sttabt.errors import UserError, nearest
from sttabt.settings.methods.base import MethodSettings

GROUP = "sttabt.methods"  # of entry points

log = logging.getLogger(__name__)


@cache
def method_names() -> tuple[str, ...]:
    """Every method there is, in the order of tables: this package's, then those of other packages by name."""
    return (*sorted(_own(), key=lambda name: _only_class(name).order), *sorted(_others()))


def method_settings(name: str) -> type[MethodSettings]:
    """The settings class of the method of that name. Raises UserError with the nearest one."""
    if name in _own():
        return _only_class(name)
    if name not in _others():
        raise UserError(f"sparsity.method={name} is unknown: {nearest(name, method_names())}")
    return _others()[name]


@cache
def _own() -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


@cache
def _others() -> dict[str, type[MethodSettings]]:
    """Of other packages. One that cannot be used is left out with a warning: the rest works without it."""
    found = {}
    for entry in entry_points(group=GROUP):
        where = f"the method '{entry.name}' of the package {entry.dist.name if entry.dist else entry.module}"
        try:
            settings = entry.load()
        except Exception as error:  # whatever another package raises at import
            log.warning("%s is left out: %s: %s", where, type(error).__name__, error)
            continue
        if not (inspect.isclass(settings) and issubclass(settings, MethodSettings)):
            log.warning("%s is left out: %s is no class of MethodSettings", where, entry.value)
        elif entry.name in _own():
            log.warning("%s is left out: sttabt has one of that name", where)
        else:
            found[entry.name] = settings
    return found


def _only_class(name: str) -> type[MethodSettings]:
    module = importlib.import_module(f"{__name__}.{name}")
    own = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, MethodSettings) and member.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} must define one class of settings, it has {[cls.__name__ for cls in own]}")
    return own[0]
