"""Hugging Face transformers' RobertaForSequenceClassification, and those of XLM-RoBERTa and CamemBERT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from sttabt.backbones.base import Example
from sttabt.backbones.bert_family import BertFamily
from sttabt.backbones.inputs import in_graph
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

    def check_inputs(self, inputs: Any) -> None:
        """Of a real token that has the id of padding the library's position is that of padding, which is refused."""
        super().check_inputs(inputs)
        padding = self.model.config.pad_token_id
        if not in_graph(inputs.ids) and bool(((inputs.ids == padding) & inputs.real).any()):
            raise UserError(
                f"input_ids holds {padding}, the id of padding, in a text: give the tokenizer's mask as well"
            )


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
