"""Hugging Face transformers' BertForSequenceClassification: BERT, MiniLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from sttabt.backbones.base import Example
from sttabt.backbones.bert_family import BertFamily


class Bert(BertFamily):
    """A BERT with token types and a pooler."""

    serves: ClassVar[tuple[str, ...]] = ("transformers.models.bert.modeling_bert.BertForSequenceClassification",)
    model_type = "bert"
    pretraining_heads = ("cls.",)
    pooler = frozenset({"bert.pooler.dense.weight", "bert.pooler.dense.bias"})

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        return {"bert": cls.example}

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return self.model.classifier(self.model.dropout(self.model.bert.pooler(x)))

    def problems(self) -> dict[str, bool]:
        return super().problems() | {"no pooler": self.model.base_model.pooler is None and not self.embeds}
