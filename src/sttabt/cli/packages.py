"""Installed packages that add to this one by entry points: where their yaml files are."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

GROUPS = ("sttabt.methods", "sttabt.sources", "sttabt.backbones")  # of entry points


def config_folders() -> dict[str, Path]:
    """By package: the folder conf/ beside the module that an entry point names, or above it. Imports no package."""
    modules = sorted({entry.module for group in GROUPS for entry in entry_points(group=group)})
    return {package: folder for module in modules for package, folder in _folders(module)}


def _folders(module: str) -> Iterator[tuple[str, Path]]:
    """The nearest one, if there is any."""
    top, *inner = module.split(".")
    spec = find_spec(top)
    for root in (spec and spec.submodule_search_locations) or ():
        for depth in range(len(inner), -1, -1):
            folder = Path(root, *inner[:depth], "conf")
            if folder.is_dir():
                yield ".".join([top, *inner[:depth]]), folder
                return
