"""transformers' output of an encoder from which tokens went: one vector a sample, and no row a token."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from transformers.modeling_outputs import BaseModelOutputWithPooling

from sttabt.errors import UserError

_NO_ROWS = "a pruned model has no last_hidden_state, as dropped tokens have no row"


class WithoutRows:
    """The vector (B, D) alone, by its name. Reading `last_hidden_state`, or by place, raises UserError."""

    instead: ClassVar[str]  # what serves

    def __post_init__(self) -> None:
        """Nothing: the library's own reads every field."""

    def __getattribute__(self, name: str) -> Any:
        if name == "last_hidden_state":
            raise UserError(f"{_NO_ROWS}: {self.instead}")
        return super().__getattribute__(name)

    def __getitem__(self, key: Any) -> Any:
        if key == "last_hidden_state" or not isinstance(key, str):
            raise UserError(f"{_NO_ROWS}: {self.instead}")
        return super().__getitem__(key)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self.items())})"

    def __reduce__(self) -> Any:
        return partial(type(self), **dict(self)), ()

    def to_tuple(self) -> Any:
        """Raises UserError: the library's tuple has `last_hidden_state`."""
        raise UserError(f"{_NO_ROWS}: {self.instead}")


class TextEmbedding(WithoutRows, BaseModelOutputWithPooling):
    """`pooler_output` of text."""

    instead = "read pooler_output, which without a pooler (add_pooling_layer=False) is the mean of the tokens left"


class ImageEmbedding(WithoutRows, BaseModelOutputWithPooling):
    """`pooler_output` of images."""

    instead = "read pooler_output, by that name"
