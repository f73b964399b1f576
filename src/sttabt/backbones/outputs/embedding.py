"""transformers' output of an encoder from which tokens went: one vector a sample, and no row a token."""

from __future__ import annotations

from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPooling

from sttabt.errors import UserError

NOT_GIVEN = "a pruned model has no last_hidden_state, as dropped tokens have no row: read pooler_output, by that name"


class EmbeddingOutput(BaseModelOutputWithPooling):
    """`pooler_output` (B, D) alone. Reading `last_hidden_state`, or by place, raises UserError."""

    def __post_init__(self) -> None:
        """Nothing: the library's own reads every field."""

    def __getattribute__(self, name: str) -> Any:
        if name == "last_hidden_state":
            raise UserError(NOT_GIVEN)
        return super().__getattribute__(name)

    def __getitem__(self, key: Any) -> Any:
        if key == "last_hidden_state" or not isinstance(key, str):
            raise UserError(NOT_GIVEN)
        return super().__getitem__(key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(pooler_output={self.pooler_output})"

    def to_tuple(self) -> Any:
        """Raises UserError: the library's tuple begins with `last_hidden_state`."""
        raise UserError(NOT_GIVEN)
