"""A property that is worked out once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

Value = TypeVar("Value")


class remembered(Generic[Value]):  # noqa: N801, it decorates functions
    """As functools.cached_property, but without its lock, which torch.compile cannot follow (in Python 3.11)."""

    def __init__(self, function: Callable[[Any], Value]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> remembered[Value]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Value: ...
    def __get__(self, instance: object | None, owner: type | None = None) -> remembered[Value] | Value:
        if instance is None:
            return self
        found = self.function(instance)
        self.set(instance, found)
        return found

    def set(self, instance: object, value: Value) -> None:
        """Say what it is, where that is known already; frozen dataclasses, too."""
        object.__setattr__(instance, self.name, value)
