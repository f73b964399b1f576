"""Hugging Face transformers' ElectraForSequenceClassification: the discriminator, whose embeddings may be narrower."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from sttabt.backbones.base import Example
from sttabt.backbones.bert_family import BertFamily


class Electra(BertFamily):
    """A BERT whose classifier holds the square layer."""

    serves: ClassVar[tuple[str, ...]] = (
        "transformers.models.electra.modeling_electra.ElectraForSequenceClassification",
    )
    model_type = "electra"
    pretraining_heads = ("discriminator_predictions.", "generator_predictions.", "generator_lm_head.")

    class_prefixes = ("classifier.out_proj.",)

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        return {
            "electra": partial(cls.example, embedding_size=32),
            "electra_projected": partial(cls.example, embedding_size=16),
        }
