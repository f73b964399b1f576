"""Encoders of Hugging Face transformers that give one vector a sample, and no classes."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.backbones.transformers_calls import answer_of
from sttabt.errors import UserError

POOLING = "add_pooling_layer"  # the library's argument, which its configurations do not keep


class Embedding(Backbone):
    """The vector (B, D) is given by the library's name for it; stands in front of the adapter of the encoder.

    There is no `last_hidden_state`: dropped tokens have no row. Reading it is a UserError.
    """

    embeds = True
    answers: ClassVar[str] = "pooler_output"
    head_prefixes: tuple[str, ...] = ()

    @property
    def _pooled(self) -> bool:
        """Whether the vector is a pooler's."""
        return getattr(self.model, "pooler", None) is not None

    def _answer(self, logits: Tensor, labels: Tensor | None, return_dict: bool | None) -> Any:
        if labels is not None:
            raise UserError("a pruned model without a classifier does not take labels: leave them out")
        return answer_of(self._output()(**{self.answers: logits}), self.model.config, return_dict)

    def _output(self) -> Any:
        """The class of what a call returns."""
        from sttabt.backbones.outputs.embedding import ImageEmbedding, TextEmbedding

        return TextEmbedding if self.may_pad else ImageEmbedding
