"""Hugging Face transformers' RobertaForSequenceClassification, and those of XLM-RoBERTa and CamemBERT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from torch import Tensor

from sttabt.backbones.base import Example
from sttabt.backbones.bert_family import BertFamily
from sttabt.core.text import Text
from sttabt.errors import UserError


class Roberta(BertFamily):
    """A BERT whose positions are counted from behind the id of padding; the classifier holds the square layer."""

    serves: ClassVar[tuple[str, ...]] = (
        "transformers.models.roberta.modeling_roberta.RobertaForSequenceClassification",
    )
    model_type = "roberta"
    pretraining_heads = ("lm_head.",)
    class_prefixes = ("classifier.out_proj.",)

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        return {cls.model_type: partial(cls.example, pad_token_id=0, type_vocab_size=2)}

    @property
    def first_position(self) -> int:
        return self.model.config.pad_token_id + 1

    def unreadable(self, inputs: Text) -> Tensor | None:
        found = super().unreadable(inputs)
        return None if found is None else found | self._has_padding_id(inputs)

    def check_numbers(self, inputs: Text) -> None:
        """Of a real token that has the id of padding the library's position is that of padding, which is refused."""
        super().check_numbers(inputs)
        padding = self.model.config.pad_token_id
        if bool(self._has_padding_id(inputs).any()):
            raise UserError(
                f"input_ids holds {padding}, the id of padding, in a text: give the tokenizer's mask as well"
            )

    def _has_padding_id(self, inputs: Text) -> Tensor:
        """Which texts (B,) hold a real token that has the id of padding."""
        return ((inputs.ids == self.model.config.pad_token_id) & inputs.real).any(1)


class XlmRoberta(Roberta):
    serves = ("transformers.models.xlm_roberta.modeling_xlm_roberta.XLMRobertaForSequenceClassification",)
    model_type = "xlm-roberta"

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        """None: it is RoBERTa's computation, under other names."""
        return {}


class Camembert(XlmRoberta):
    serves = ("transformers.models.camembert.modeling_camembert.CamembertForSequenceClassification",)
    model_type = "camembert"
