"""Checks of one setting at a time, by what it was declared to be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from sttabt.errors import UserError, nearest
from sttabt.settings.fields import Description, Rule, walk


def check_values(node: Any, prefix: str = "") -> None:
    """Every number below a settings object is finite and within its range, every text among its choices.

    prefix: of the full keys, where it is not the root.
    Raises UserError that names the setting, its value and what it may be.
    """
    for key, value, description in walk(node, prefix):
        check_value(key, value, description)


def check_value(key: str, value: Any, description: Description) -> None:
    """As `check_values`, for one setting; every entry of a list must hold the rule, or be a choice."""
    _check_finite(key, value)
    rule, choices = description.rule, description.allowed
    if isinstance(value, list):
        for entry in value:
            if rule is not None and not _holds(key, entry, rule):
                raise UserError(f"{key}: {entry} is out of range: it must be {rule.text}")
            if choices is not None:
                check_choice(key, entry, choices)
        return
    if rule is not None and value is not None and not _holds(key, value, rule):
        raise UserError(f"{key}={value} is out of range: it must be {rule.text}")
    if choices is not None:
        check_choice(key, value, choices)


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raises UserError with the nearest choice for one that is not there."""
    choices = tuple(choices)
    if value not in choices:
        raise UserError(f"{key}={value} is unknown: {nearest(str(value), choices)}")


def _holds(key: str, value: Any, rule: Rule) -> bool:
    try:
        return bool(rule.holds(value))
    except TypeError as error:  # settings that were made in Python may be of any type
        raise UserError(f"{key}={value!r} is no number: it must be {rule.text}") from error


def _check_finite(key: str, value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_finite(f"{key}.{name}", inner)
    if isinstance(value, list):
        for entry in value:
            _check_finite(key, entry)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value} is not a finite number: give one")
