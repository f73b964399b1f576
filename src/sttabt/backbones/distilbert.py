"""Hugging Face transformers' DistilBertForSequenceClassification: a BERT without token types, its pooler a ReLU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from sttabt.backbones.base import Example, Rows
from sttabt.backbones.bert_family import BertFamily
from sttabt.backbones.layers import EncoderLayer
from sttabt.backbones.repeated import Repeated
from sttabt.backbones.slicing import gated
from sttabt.core.text import Text


class DistilBert(BertFamily):
    """The types of its inputs are not read."""

    serves: ClassVar[tuple[str, ...]] = (
        "transformers.models.distilbert.modeling_distilbert.DistilBertForSequenceClassification",
    )
    model_type = "distilbert"
    pretraining_heads = ("vocab_transform.", "vocab_layer_norm.", "vocab_projector.")
    pooler = frozenset({"pre_classifier.weight", "pre_classifier.bias"})
    feed_forward_setting = "hidden_dim"

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        return {"distilbert": cls.example}

    @property
    def token_types(self) -> int:
        return 0

    def attention_dropout(self, layer: int) -> float:
        attention = self._layer(layer).attention
        return attention.dropout.p if attention.training else 0.0

    def qkv(self, layer: int, x: Tensor, written: Rows | None = None) -> tuple[Tensor, Tensor, Tensor]:
        attention = self._layer(layer).attention
        query = attention.q_lin(x if written is None else written(x))
        return query, attention.k_lin(x), attention.v_lin(x)

    def queries_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        attention = self._layer(layer).attention
        return attention.q_lin(x), attention.k_lin(x)

    def project(self, layer: int, x: Tensor, attended: Tensor, gate: Tensor | None = None) -> Tensor:
        block = self._layer(layer)
        return block.sa_layer_norm(gated(block.attention.out_lin(attended), gate) + x)

    def feed_forward(self, layer: int, x: Tensor, gate: Tensor | None = None) -> Tensor:
        block = self._layer(layer)
        hidden = block.ffn.activation(gated(block.ffn.lin1(x), gate))
        return block.output_layer_norm(gated(block.ffn.dropout(block.ffn.lin2(hidden)), gate) + x)

    def encoder_layers(self) -> list[EncoderLayer]:
        return [
            EncoderLayer(
                layer,
                (layer.attention.q_lin, layer.attention.k_lin, layer.attention.v_lin),
                layer.attention.out_lin,
                layer.ffn.lin1,
                layer.ffn.activation,
                layer.ffn.lin2,
                layer.sa_layer_norm,
                layer.output_layer_norm,
                norm_first=False,
                dropouts=(layer.ffn.dropout,),
            )
            for layer in self.model.base_model.transformer.layer
        ]

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return self.model.classifier(self.model.dropout(self.model.pre_classifier(x[:, 0]).relu()))

    def _library_output(self, inputs: Text) -> Any:
        return self.model(input_ids=inputs.ids, attention_mask=inputs.real, return_dict=True)

    def _layer(self, layer: int) -> Any:
        return self.model.base_model.transformer.layer[layer]

    def _embed(self, ids: Tensor, types: Tensor, token: Tensor) -> Tensor:
        tables = self.model.base_model.embeddings
        return tables.dropout(tables.LayerNorm(tables.word_embeddings(ids) + tables.position_embeddings(token)))

    def repeated(self) -> Iterator[Repeated]:
        from transformers.models.distilbert import modeling_distilbert as library

        encoder, inside = self.model.base_model, ""
        yield Repeated("the model", self.model, (self.library(),))
        if encoder is not self.model:
            inside = "distilbert."
            yield Repeated("distilbert", encoder, (library.DistilBertModel,))
        yield Repeated(f"{inside}embeddings", encoder.embeddings, (library.Embeddings,))
        yield Repeated(f"{inside}transformer", encoder.transformer, (library.Transformer,))
        for place, layer in enumerate(encoder.transformer.layer):
            name = f"{inside}transformer.layer.{place}"
            yield Repeated(name, layer, (library.TransformerBlock,))
            yield Repeated(f"{name}.attention", layer.attention, (library.DistilBertSelfAttention,))
            yield Repeated(f"{name}.attention.dropout", layer.attention.dropout, (nn.Dropout,))
            yield Repeated(f"{name}.ffn", layer.ffn, (library.FFN,))

    def problems(self) -> dict[str, bool]:
        return {}
