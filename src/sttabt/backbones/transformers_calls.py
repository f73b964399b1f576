"""How models of Hugging Face transformers, of text and of images, are called and answer."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from sttabt.errors import UserError


def bound_arguments(library: type[nn.Module], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call of `library` by name."""
    order = [name for name in inspect.signature(library.forward).parameters if name not in ("self", "kwargs")]
    if len(args) > len(order):
        raise UserError(f"{library.__name__} takes {len(order)} arguments by position, not {len(args)}")
    named = dict(zip(order, args, strict=False))
    for name in named.keys() & kwargs.keys():
        raise UserError(f"{name} is given twice, by position and by name")
    return named | dict(kwargs)


def refuse_others(given: Mapping[str, Any], config: Any) -> None:
    """Raises UserError naming an argument that is left in `given`, or what the configuration asks for, of no meaning
    for a pruned model.
    """
    asked = {f"config.{name}": getattr(config, name) for name in ("output_attentions", "output_hidden_states")}
    for name, value in {**given, **asked}.items():
        if value is not None and value is not False:
            raise UserError(f"a pruned model does not take {name}: leave it out")


def answer_of(answer: Any, config: Any, return_dict: bool | None) -> Any:
    """The library's output, or a tuple where the call or the configuration asks for one."""
    as_mapping = config.return_dict if return_dict is None else return_dict
    return answer if as_mapping else answer.to_tuple()


def configuration_of(model: Any) -> dict[str, Any]:
    """As transformers' config.json."""
    found: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    found.pop("_name_or_path", None)  # of the machine where it was made
    return found
