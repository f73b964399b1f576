"""One file a pruning method. Its settings (sttabt.settings.methods) name the class here that runs it."""

from __future__ import annotations

import importlib

from sttabt.errors import UserError
from sttabt.methods.base import Method
from sttabt.settings.methods import method_settings


def find_method(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        UserError: there is no such method (the nearest is named), or its settings name no class of Method.
    """
    place = method_settings(name).implementation
    module, _, member = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), member)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"sparsity.method={name}: its implementation {place} cannot be loaded: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"sparsity.method={name}: {place} is no class of sttabt.methods.base.Method")
    return found
