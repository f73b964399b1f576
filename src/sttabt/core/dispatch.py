"""One function, several implementations: the class of the first argument chooses."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar, get_type_hints

P = ParamSpec("P")
Result = TypeVar("Result")


class dispatched(Generic[P, Result]):  # noqa: N801, it decorates functions
    """As functools.singledispatch, by the exact class: a look-up that torch.compile can follow, as it cannot that one.

    `@function.register` takes an implementation whose first argument is annotated with the class that it is for.
    """

    def __init__(self, default: Callable[P, Result]) -> None:
        self.default, self.others = default, dict[type, Callable[..., Result]]()
        update_wrapper(self, default)

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> Result:
        return self.others.get(type(arguments[0]), self.default)(*arguments, **named)

    def register(self, implementation: Callable[..., Result]) -> Callable[..., Result]:
        """Use it for first arguments of the class that it is annotated with."""
        hints: dict[str, Any] = get_type_hints(implementation)
        self.others[next(iter(hints.values()))] = implementation
        return implementation
