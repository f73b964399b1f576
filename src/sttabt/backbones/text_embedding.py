"""Hugging Face transformers' BertModel and RobertaModel (XLM-RoBERTa, CamemBERT): one vector a text, no classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from sttabt.backbones.base import Example
from sttabt.backbones.bert import Bert
from sttabt.backbones.bert_family import BertFamily
from sttabt.backbones.roberta import Roberta
from sttabt.backbones.text import answer_of, example_text
from sttabt.backbones.vit import mean_of
from sttabt.core.text import Text
from sttabt.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class EmbeddingText(BertFamily):
    """The vector (B, D) is the pooler's; of a model without a pooler the mean of the real tokens that are left.

    It is given as `pooler_output`. There is no `last_hidden_state`: dropped tokens have no row. Reading it is a
    UserError.
    """

    embeds = True
    head_prefixes = ()

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        pooled = self.model.pooler is not None
        self.outputs = int(pooled)
        self.pools = self.reads_survivors = not pooled
        width = self.architecture.width
        self.architecture = replace(self.architecture, classes=width, pooler=pooled, head_inputs=0)

    def forward(self, inputs: Text) -> Tensor:
        """The library's own dense forward: the baseline that speed is measured against."""
        ids, types, real = inputs
        found = self.model(input_ids=ids, token_type_ids=types, attention_mask=real, return_dict=True)
        return mean_of(found.last_hidden_state, real) if self.pools else found.pooler_output

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return mean_of(x, alive) if self.pools else self.model.pooler(x)

    def configuration(self) -> dict[str, Any]:
        """As transformers' config.json, and whether there is a pooler, which that does not say."""
        return super().configuration() | {"add_pooling_layer": self.model.pooler is not None}

    @classmethod
    def rebuilt(cls, configuration: Mapping[str, Any]) -> Self:
        sizes = {name: value for name, value in configuration.items() if name != "add_pooling_layer"}
        kind: Any = cls.library().config_class
        return cls._made(kind.from_dict(sizes), configuration["add_pooling_layer"])

    def problems(self) -> dict[str, bool]:
        return BertFamily.problems(self)

    def like(self, config: PreTrainedConfig) -> Self:
        """With a pooler where this one has one."""
        return self._made(config, self.model.pooler is not None)

    @classmethod
    def _made(cls, config: PreTrainedConfig, pooled: bool) -> Self:
        library: Any = cls.library()
        return cls(library._from_config(config, attn_implementation="sdpa", add_pooling_layer=pooled))

    def _answer(self, logits: Tensor, labels: Tensor | None, return_dict: bool | None) -> Any:
        from sttabt.backbones.outputs.embedding import EmbeddingOutput

        if labels is not None:
            raise UserError("a pruned model without a classifier does not take labels: leave them out")
        return answer_of(EmbeddingOutput(pooler_output=logits), self.model.config, return_dict)


class BertEmbedding(EmbeddingText, Bert):
    serves: ClassVar[tuple[str, ...]] = ("transformers.models.bert.modeling_bert.BertModel",)

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        """A mean: with the pooler it is the classifier's computation."""
        return {"bert_mean": cls.example}

    @classmethod
    def example(cls, **changes: Any) -> Example:
        """As BertFamily's, without a pooler."""
        return Example(cls._made(super().example(**changes).model.model.config, pooled=False), example_text(), 4)


class RobertaEmbedding(EmbeddingText, Roberta):
    serves = ("transformers.models.roberta.modeling_roberta.RobertaModel",)

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        """None: it is BERT's computation, under other names."""
        return {}


class XlmRobertaEmbedding(RobertaEmbedding):
    serves = ("transformers.models.xlm_roberta.modeling_xlm_roberta.XLMRobertaModel",)
    model_type = "xlm-roberta"


class CamembertEmbedding(RobertaEmbedding):
    serves = ("transformers.models.camembert.modeling_camembert.CamembertModel",)
    model_type = "camembert"
