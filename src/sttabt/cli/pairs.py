"""Arguments of commands that read no Hydra configuration: key=value pairs, and for some names beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from sttabt.errors import UserError, nearest


def read_pairs(arguments: Sequence[str], keys: Collection[str], value: str = "VALUE") -> dict[str, str]:
    """The values by their keys, each given once at most. value: what a message calls one. Raises UserError."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if key.startswith("--") and key[2:] in keys:
            raise UserError(f"{argument}: settings are written without dashes, {key[2:]}={value}")
        if key not in keys:
            raise UserError(f"{argument} is not a setting of this command: {nearest(key, keys)}")
        if not equals or not text or key in given:
            raise UserError(f"cannot read '{argument}': give {key}={value} once")
        given[key] = text
    return given


def read_names_and_pairs(
    arguments: Sequence[str], keys: Collection[str], is_name: Callable[[str], bool]
) -> tuple[list[str], dict[str, str]]:
    """What has no = in it or is a name all the same, in its order, and the pairs among the others. Raises UserError."""
    names = [each for each in arguments if is_name(each) or not ("=" in each or each.startswith("--"))]
    return names, read_pairs([argument for argument in arguments if argument not in names], keys)
