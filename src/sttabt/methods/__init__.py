"""One file a pruning method. Its settings (sttabt.settings.methods) name the class here that runs it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sttabt.errors import UserError
from sttabt.methods.base import Method
from sttabt.settings import TrainingSettings
from sttabt.settings.methods import method_settings

if TYPE_CHECKING:
    from sttabt.backbones.base import Backbone


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


def restored_method(values: Mapping[str, Any], base: Backbone) -> Method:
    """The method of settings that were saved, for `base`. Raises UserError for a method that is not here."""
    own = dict(values)
    if "training" in own:
        own["training"] = TrainingSettings(**own["training"])
    return find_method(own["method"])(method_settings(own["method"])(**own), base.layers, base.outputs)
