"""Hugging Face transformers' BertForSequenceClassification (BERT, MiniLM): post-norm, padded text, pooler."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Example, Rows, check_factor, like_weights
from sttabt.backbones.layers import EncoderLayer
from sttabt.backbones.repeated import Repeated
from sttabt.backbones.slicing import gated
from sttabt.backbones.text import EXAMPLE_SIZES, TextBackbone, example_text
from sttabt.core.cost import Architecture
from sttabt.core.text import Text
from sttabt.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Bert(TextBackbone):
    """A BERT with token types and a pooler."""

    serves: ClassVar[tuple[str, ...]] = ("transformers.models.bert.modeling_bert.BertForSequenceClassification",)
    model_type = "bert"
    pretraining_heads: ClassVar[tuple[str, ...]] = ("cls.",)
    pooler: ClassVar[frozenset[str]] = frozenset({"bert.pooler.dense.weight", "bert.pooler.dense.bias"})
    feed_forward_setting = "intermediate_size"  # what the library's configuration calls that width

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        from transformers import BertConfig

        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
        config: Any = partial(BertConfig, **EXAMPLE_SIZES, **sizes)  # type: ignore[arg-type]
        return {"bert": lambda: Example(cls.from_config(config()), example_text(), 4)}

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        config = self.model.config
        self.architecture = Architecture(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            feed_forward=getattr(config, self.feed_forward_setting),
            classes=config.num_labels,
            patch_inputs=0,
            pooler=True,
        )

    def attention_dropout(self, layer: int) -> float:
        """The library asks its attention whether it is training."""
        attention = self._layer(layer).attention.self
        return attention.dropout.p if attention.training else 0.0

    def forward(self, inputs: Text) -> Tensor:
        """The library's own dense forward: the baseline that speed is measured against."""
        ids, types, real = inputs
        return self.model(input_ids=ids, token_type_ids=types, attention_mask=real, return_dict=True).logits

    def samples(self, inputs: Text) -> list[Tensor]:
        return [torch.stack([ids[real], types[real]]).long() for ids, types, real in zip(*inputs, strict=True)]

    def embed(self, inputs: Text) -> Tensor:
        return self._embed(inputs.ids, inputs.types, torch.arange(inputs.ids.shape[1], device=inputs.ids.device))

    def embed_tokens(self, inputs: Text, sample: Tensor, token: Tensor) -> Tensor:
        return self._embed(inputs.ids[sample, token], inputs.types[sample, token], token)

    def qkv(self, layer: int, x: Tensor, written: Rows | None = None) -> tuple[Tensor, Tensor, Tensor]:
        attention = self._layer(layer).attention.self
        query = attention.query(x if written is None else written(x))
        return query, attention.key(x), attention.value(x)

    def queries_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        attention = self._layer(layer).attention.self
        return attention.query(x), attention.key(x)

    def project(self, layer: int, x: Tensor, attended: Tensor, gate: Tensor | None = None) -> Tensor:
        return _join(self._layer(layer).attention.output, x, attended, gate)

    def feed_forward(self, layer: int, x: Tensor, gate: Tensor | None = None) -> Tensor:
        intermediate = self._layer(layer).intermediate
        hidden = intermediate.intermediate_act_fn(gated(intermediate.dense(x), gate))
        return _join(self._layer(layer).output, x, hidden, gate)

    def encoder_layers(self) -> list[EncoderLayer]:
        return [
            EncoderLayer(
                layer,
                (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value),
                layer.attention.output.dense,
                layer.intermediate.dense,
                layer.intermediate.intermediate_act_fn,
                layer.output.dense,
                layer.attention.output.LayerNorm,
                layer.output.LayerNorm,
                norm_first=False,
                dropouts=(layer.attention.output.dropout, layer.output.dropout),
            )
            for layer in self.model.bert.encoder.layer
        ]

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return self.model.classifier(self.model.dropout(self.model.bert.pooler(x)))

    def embeddings(self) -> list[nn.Parameter]:
        """None: the paper's recipe for text trains the embeddings on."""
        return []

    def narrow(self, factor: int, share_stem: bool = False) -> Self:
        sizes = self.architecture
        check_factor(sizes, factor)
        if sizes.feed_forward % factor:
            raise UserError(
                f"approx.factor={factor} does not divide the feed-forward width {sizes.feed_forward}: choose a divisor"
            )
        config = copy.deepcopy(self.model.config)
        config.hidden_size = sizes.width // factor
        setattr(config, self.feed_forward_setting, sizes.feed_forward // factor)
        return like_weights(self.from_config(config), self.model.base_model)

    def repeated(self) -> Iterator[Repeated]:
        from transformers.models.bert import modeling_bert as library

        bert = self.model.bert
        yield Repeated("the model", self.model, (library.BertForSequenceClassification,))
        yield Repeated("bert", bert, (library.BertModel,))
        yield Repeated("bert.embeddings", bert.embeddings, (library.BertEmbeddings,))
        yield Repeated("bert.encoder", bert.encoder, (library.BertEncoder,))
        for place, layer in enumerate(bert.encoder.layer):
            name, attention = f"bert.encoder.layer.{place}", layer.attention
            yield Repeated(name, layer, (library.BertLayer,))
            yield Repeated(f"{name}.attention", attention, (library.BertAttention,))
            yield Repeated(f"{name}.attention.self", attention.self, (library.BertSelfAttention,))
            yield Repeated(f"{name}.attention.self.dropout", attention.self.dropout, (nn.Dropout,))
            yield Repeated(f"{name}.attention.output", attention.output, (library.BertSelfOutput,))
            yield Repeated(f"{name}.intermediate", layer.intermediate, (library.BertIntermediate,))
            yield Repeated(f"{name}.output", layer.output, (library.BertOutput,))

    def problems(self) -> dict[str, bool]:
        config = self.model.config
        position = getattr(config, "position_embedding_type", "absolute")
        return {
            f"position_embedding_type={position!r} instead of 'absolute'": position != "absolute",
            "cross attention": config.add_cross_attention,
            "causal attention (is_decoder)": config.is_decoder,
            "no pooler": self.model.bert.pooler is None,
        }

    def _layer(self, layer: int) -> Any:
        return self.model.bert.encoder.layer[layer]

    def _embed(self, ids: Tensor, types: Tensor, token: Tensor) -> Tensor:
        tables = self.model.bert.embeddings
        rows = tables.word_embeddings(ids) + tables.token_type_embeddings(types) + tables.position_embeddings(token)
        return tables.dropout(tables.LayerNorm(rows))


def _join(output: Any, x: Tensor, rows: Tensor, gate: Tensor | None) -> Tensor:
    """A branch's result onto its residual: projection, dropout, gate, sum, norm."""
    return output.LayerNorm(gated(output.dropout(output.dense(rows)), gate) + x)
