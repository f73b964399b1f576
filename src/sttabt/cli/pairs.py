"""Commands that take key=value pairs and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sttabt.errors import UserError, nearest


def read_pairs(arguments: Sequence[str], keys: Collection[str], value: str = "VALUE") -> dict[str, str]:
    """The values by their keys, each given once at most. value: what a message calls one. Raises UserError."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if key not in keys:
            raise UserError(f"{argument} is not a setting of this command: {nearest(key, keys)}")
        if not equals or not text or key in given:
            raise UserError(f"cannot read '{argument}': give {key}={value} once")
        given[key] = text
    return given
