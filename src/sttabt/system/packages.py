"""Packages that only some settings need: all else runs on a machine that lacks them."""

from __future__ import annotations

from importlib.util import find_spec

from sttabt.errors import UserError


def need(package: str, what: str, otherwise: str = "") -> None:
    """Raises UserError where `package` is not installed; imports nothing.

    what: asks for it, `model.timm=vit_tiny`; otherwise: how the line ends, what else one may do.
    """
    found = find_spec(package)
    # A folder of that name in the current one, as W&B makes it, is found too, but without an origin.
    if found is None or found.origin is None:
        raise UserError(f"{what} needs the package {package}: pip install {package}{otherwise}")
