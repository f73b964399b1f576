"""The search space of hparams_search: what each searched setting may become. Imports neither torch nor optuna."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sttabt.errors import UserError, nearest

WHERE = "hydra.sweeper.space"
PARTS = ("low", "high", "log", "choices")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included. log: as many below their geometric mean as above."""

    low: float
    high: float
    log: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that must work for the others to work."""
        return (self.low, self.high)


@dataclass(frozen=True)
class Choices:
    """One of some values that have no order."""

    choices: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """All values: each may fail by itself."""
        return self.choices


Space = Mapping[str, Range | Choices]


def read_space(values: Mapping[str, Any]) -> dict[str, Range | Choices]:
    """The space by full keys of settings. `values` has `{low, high, log}` or `{choices}` for each, nested or not.

    Raises:
        UserError: the space is empty, a part is missing, unknown or of the wrong type, low is not below high, or log
            meets numbers that are not above 0.
    """
    space = {key: _read(key, parts) for key, parts in _flat(values)}
    if not space:
        raise UserError(f"{WHERE} is empty: give a setting and its range, e.g. sparsity.p_logit: {{low: -3, high: 2}}")
    return space


def fit_space(space: Space, settings: Mapping[str, Any]) -> dict[str, Range | Choices]:
    """The space with numbers of the types that the settings have now: `settings` by full key.

    Raises UserError for a range of what is no number, and for one of fractions where the setting is a whole number.
    """
    return {key: _fit(key, domain, settings[key]) for key, domain in space.items()}


def describe(space: Space) -> dict[str, Any]:
    """The space in a form that JSON keeps and that tells it from any other."""
    return {key: {name: _plain(value) for name, value in asdict(domain).items()} for key, domain in space.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in values.items():
        full = f"{prefix}{key}"
        if not isinstance(value, Mapping):
            raise UserError(f"{WHERE}.{full}={value}: give {{low: NUMBER, high: NUMBER}} or {{choices: [...]}}")
        if all(isinstance(inner, Mapping) for inner in value.values()) and value:
            yield from _flat(value, f"{full}.")
        else:
            yield full, value


def _read(key: str, parts: Mapping[str, Any]) -> Range | Choices:
    where = f"{WHERE}.{key}"
    for name in parts:
        if name not in PARTS:
            raise UserError(f"{where}.{name} is unknown: {nearest(str(name), PARTS)}")
    if "choices" in parts:
        if len(parts) > 1:
            raise UserError(f"{where} has choices and {', '.join(parts.keys() - {'choices'})}: give one or the other")
        choices = parts["choices"]
        if not isinstance(choices, list) or len(choices) < 2:
            raise UserError(f"{where}.choices={choices}: give a list of two values or more, or set {key} itself")
        for value in choices:
            if not isinstance(value, (bool, int, float, str)) or choices.count(value) > 1:
                raise UserError(f"{where}.choices={choices}: {value} is named twice, or no number, text or truth value")
        return Choices(tuple(choices))
    for name in ("low", "high"):
        if not _is_number(parts.get(name)):
            raise UserError(f"{where}.{name}={parts.get(name)} is no number: give both low and high")
    low, high, log = parts["low"], parts["high"], parts.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{where}.log={log} is neither true nor false")
    if not low < high:
        raise UserError(f"{where}: low={low} is not below high={high}: exchange them, or set {key} itself")
    if log and low <= 0:
        raise UserError(f"{where}: log=true needs low above 0, not low={low}: raise it, or set log=false")
    return Range(low, high, log)


def _fit(key: str, domain: Range | Choices, value: Any) -> Range | Choices:
    where = f"{WHERE}.{key}"
    if isinstance(domain, Choices):
        return domain
    if not _is_number(value):
        raise UserError(f"{where}: the setting is no number but {value!r}: give choices instead of low and high")
    if isinstance(value, float):
        return Range(float(domain.low), float(domain.high), domain.log)
    for name, end in (("low", domain.low), ("high", domain.high)):
        if end != int(end):
            raise UserError(f"{where}.{name}={end}: the setting is a whole number, give one")
    return Range(int(domain.low), int(domain.high), domain.log)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
