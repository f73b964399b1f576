"""One file a source of data; the file's name is its name in configs. Imports no torch.

An installed package adds its own by an entry point of the group `sttabt.sources`: NAME = "package.module:Class".
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import EntryPoint, entry_points

from sttabt.data.source import COMMON, Source
from sttabt.errors import UserError, nearest
from sttabt.settings import DatasetSettings

GROUP = "sttabt.sources"


def source_names() -> list[str]:
    """Every source there is: the modules of this package, and what installed packages add."""
    return sorted({*_own(), *_added()})


def find_source(name: str) -> Source:
    """The source of that name. Raises UserError with the nearest one, or naming a package whose source is none."""
    if name in _own():
        module = importlib.import_module(f"{__name__}.{name}")
        (found,) = (kind for _, kind in inspect.getmembers(module, _is_source) if kind.__module__ == module.__name__)
        return found()
    added = _added()
    if name not in added:
        raise UserError(f"dataset.source={name} is unknown: {nearest(name, source_names())}")
    kind = added[name].load()
    if not _is_source(kind):
        raise UserError(
            f"dataset.source={name}: {added[name].value} is no subclass of sttabt.data.source.Source: correct the"
            " entry point of the package that has it"
        )
    return kind()


def unused_settings(dataset: DatasetSettings) -> dict[str, str]:
    """The settings of a data set that its source does not read, each with the reason."""
    source = find_source(dataset.source)
    names = [field.name for field in fields(DatasetSettings) if field.name not in (*COMMON, *source.reads)]
    return {name: _belonging(name, dataset.source) for name in names} | source.unused(dataset)


def _belonging(setting: str, source: str) -> str:
    """To what a setting belongs that `source` does not read."""
    readers = {name: found for name in _own() if setting in (found := find_source(name)).reads}
    kinds = {reader.holds for reader in readers.values()}
    if len(readers) > 1 and kinds != {find_source(source).holds}:
        return f"it is a setting of {kinds.pop()}" if len(kinds) == 1 else f"source {source} has none"
    return f"it is for source {' or '.join(readers)}"


def _own() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _added() -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _is_source(kind: object) -> bool:
    return inspect.isclass(kind) and issubclass(kind, Source) and not inspect.isabstract(kind)
