"""How a setting is declared: `setting(...)` makes a dataclass field that says what it means and what it may be.

Checks, nearest names, warnings of what has no effect, the axis of a sweep, `--help` and docs/SETTINGS.md read it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING as MISSING  # what nodes import beside `setting`

DESCRIPTION = "setting"  # the key of a field's metadata


@dataclass(frozen=True)
class Rule:
    """What a number may be: `text` continues "it must be". low, high: the ends, which may be none of its values."""

    text: str
    holds: Callable[[float], bool]
    low: float = -math.inf
    high: float = math.inf


def at_least(low: float) -> Rule:
    return Rule(f"at least {low}", lambda value: value >= low, low)


ANY = Rule("any number", lambda value: True)
SEED = Rule("between 0 and 4294967295", lambda value: 0 <= value < 2**32, 0, 2**32)  # what all generators take
ABOVE_ZERO = Rule("above 0", lambda value: value > 0, 0)
SHARE = Rule("between 0 and 1", lambda value: 0 <= value <= 1, 0, 1)
SHARE_OR_NONE = Rule("above 0 and at most 1, or 0 for none", lambda value: 0 <= value <= 1, 0, 1)
SHARE_ABOVE_ZERO = Rule("above 0 and at most 1", lambda value: 0 < value <= 1, 0, 1)
SHARE_BELOW_ONE = Rule("at least 0 and below 1", lambda value: 0 <= value < 1, 0, 1)
SHIFT_OF_SHARE = Rule("between -1 and 1", lambda value: -1 <= value <= 1, -1, 1)
INNER_SHARE = Rule("above 0 and below 1", lambda value: 0 < value < 1, 0, 1)

# Given the root settings and the full key, why the setting has no effect there; None where it has one.
When = Callable[[Any, str], str | None]
Choices = Iterable[str] | Callable[[], Iterable[str]]


@dataclass(frozen=True)
class Description:
    """What is known of a setting beside its name, type and default."""

    meaning: str
    rule: Rule | None = None
    choices: Choices | None = None
    knob: bool = False
    dial: bool = False
    scheduled: bool = False
    late: bool = False
    when: When | None = None

    @property
    def allowed(self) -> tuple[str, ...] | None:
        """The values that it may have, None where any will do."""
        if self.choices is None:
            return None
        return tuple(self.choices() if callable(self.choices) else self.choices)


def setting(
    default: Any,
    meaning: str,
    rule: Rule | None = None,
    *,
    choices: Choices | None = None,
    knob: bool = False,
    dial: bool = False,
    scheduled: bool = False,
    late: bool = False,
    when: When | None = None,
) -> Any:
    """A dataclass field.

    default: MISSING where a value must be given; a class for a node of settings; lists and dictionaries are copied.
    rule, choices: of a number and a text, or of every entry of a list; a function where choices are found later.
    knob: it moves a method along its curve of score and cost. dial: of a method whose knob works by training alone, it
    moves the cost of the model that is there. scheduled: training reads it at every step, so that it may change from
    step to step. late: artifacts were made before it was there, by what its default does. when: says why it has no
    effect, see When.
    """
    metadata = {DESCRIPTION: Description(meaning, rule, choices, knob, dial, scheduled, late, when)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def describe(declared: Field[Any]) -> Description:
    """What `setting` was told of a field. Raises KeyError for a field that it did not make."""
    description: Description = declared.metadata[DESCRIPTION]
    return description


def at(settings: Any, path: str) -> Any:
    """The node or value of that full key."""
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


def initial(declared: Field[Any]) -> Any:
    """The default of a field; MISSING where a value must be given."""
    return declared.default_factory() if callable(declared.default_factory) else declared.default


def is_node(declared: Field[Any]) -> bool:
    """Whether the field holds settings of its own."""
    return is_dataclass(declared.default_factory)


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Description]]:
    """(full key, value, description) of every setting below a settings object; a node comes before what it holds."""
    for declared in fields(node):
        key, value = f"{prefix}{declared.name}", getattr(node, declared.name)
        yield key, value, describe(declared)
        if is_dataclass(value):
            yield from walk(value, f"{key}.")
