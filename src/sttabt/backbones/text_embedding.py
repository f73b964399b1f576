"""Encoders of text of Hugging Face transformers that give one vector a text, and no classes: BertModel, RobertaModel
(XLM-RoBERTa, CamemBERT), ElectraModel, DistilBertModel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from sttabt.backbones.base import Example
from sttabt.backbones.bert import Bert
from sttabt.backbones.bert_family import BertFamily
from sttabt.backbones.distilbert import DistilBert
from sttabt.backbones.electra import Electra
from sttabt.backbones.embedding import POOLING, Embedding
from sttabt.backbones.patches import mean_of
from sttabt.backbones.roberta import Roberta
from sttabt.core.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class EmbeddingText(Embedding, BertFamily):
    """The vector (B, D) is the pooler's; of a model without a pooler the mean of the real tokens that are left."""

    may_pool: ClassVar[bool] = False  # whether the library makes the model with a pooler, too

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.outputs = int(self._pooled)
        self.pools = self.reads_survivors = not self._pooled
        width = self.architecture.width
        self.architecture = replace(self.architecture, classes=width, pooler=self._pooled, head_inputs=0)

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        """None: BERT's has a mean, and with the pooler it is the classifier's computation."""
        return {}

    @classmethod
    def from_config(cls, config: PreTrainedConfig, pooled: bool = False) -> Self:
        """As TextBackbone's; pooled: with a pooler."""
        library: Any = cls.library()
        pooling = {POOLING: pooled} if cls.may_pool else {}
        return cls(library._from_config(config, attn_implementation="sdpa", **pooling))

    def forward(self, inputs: Text) -> Tensor:
        """The library's own dense forward: the baseline that speed is measured against."""
        found = self._library_output(inputs)
        return found.pooler_output if self._pooled else mean_of(found.last_hidden_state, inputs.real)

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return self.model.pooler(x) if self._pooled else mean_of(x, alive)

    def configuration(self) -> dict[str, Any]:
        """As transformers' config.json, and whether there is a pooler."""
        return super().configuration() | ({POOLING: self._pooled} if self.may_pool else {})

    @classmethod
    def rebuilt(cls, configuration: Mapping[str, Any]) -> Self:
        sizes = {name: value for name, value in configuration.items() if name != POOLING}
        kind: Any = cls.library().config_class
        return cls.from_config(kind.from_dict(sizes), cls.may_pool and configuration[POOLING])

    def like(self, config: PreTrainedConfig) -> Self:
        """With a pooler where this one has one."""
        return self.from_config(config, self._pooled)


class BertEmbedding(EmbeddingText, Bert):
    serves: ClassVar[tuple[str, ...]] = ("transformers.models.bert.modeling_bert.BertModel",)
    may_pool = True

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        return {"bert_mean": cls.example}


class RobertaEmbedding(EmbeddingText, Roberta):
    serves = ("transformers.models.roberta.modeling_roberta.RobertaModel",)
    may_pool = True


class XlmRobertaEmbedding(RobertaEmbedding):
    serves = ("transformers.models.xlm_roberta.modeling_xlm_roberta.XLMRobertaModel",)
    model_type = "xlm-roberta"


class CamembertEmbedding(RobertaEmbedding):
    serves = ("transformers.models.camembert.modeling_camembert.CamembertModel",)
    model_type = "camembert"


class ElectraEmbedding(EmbeddingText, Electra):
    serves = ("transformers.models.electra.modeling_electra.ElectraModel",)


class DistilBertEmbedding(EmbeddingText, DistilBert):
    serves = ("transformers.models.distilbert.modeling_distilbert.DistilBertModel",)
