"""Encoders of Hugging Face transformers that are built as BERT is: post-norm layers, one table each of words,
positions and token types, a square layer in the head.

A subclass is a family: which class it serves, its configurations' `model_type`, the names of its files' heads, and
whatever differs from BERT. RoBERTa, for instance, differs in `first_position` alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib import import_module
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
    from transformers import PreTrainedConfig, PreTrainedModel

EXAMPLE_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


class BertFamily(TextBackbone):
    """The library's model holds the encoder as `base_model`, and calls its modules as BERT's are called.

    Embeddings narrower than the layers are projected, a token at a time.
    """

    feed_forward_setting: ClassVar[str] = "intermediate_size"  # what the library's configuration calls that width

    @classmethod
    def example(cls, **changes: Any) -> Example:
        """A small model for tests, with changes to its configuration."""
        sizes = {**EXAMPLE_SIZES, **EXAMPLE_WIDTHS, cls.feed_forward_setting: 48, **changes}
        configuration: Any = cls.library().config_class
        return Example(cls.from_config(configuration(**sizes)), example_text(), 4)

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
            looked_up=config.embedding_size if self._projects else 0,
        )

    @property
    def first_position(self) -> int:
        """The row of the position table that the first token of a text reads."""
        return 0

    @property
    def tokens(self) -> int:
        return super().tokens - self.first_position

    def attention_dropout(self, layer: int) -> float:
        """The library asks its attention whether it is training."""
        attention = self._layer(layer).attention.self
        return attention.dropout.p if attention.training else 0.0

    def forward(self, inputs: Text) -> Tensor:
        """The library's own dense forward: the baseline that speed is measured against."""
        return self._library_output(inputs).logits

    def samples(self, inputs: Text) -> list[Tensor]:
        both = torch.stack([inputs.ids, inputs.types], 1).long()
        return [rows[:, :own] for rows, own in zip(both.unbind(), self.lengths(inputs), strict=True)]

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
            for layer in self.model.base_model.encoder.layer
        ]

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        """The library's classifier reads the first row by itself."""
        return self.model.classifier(x)

    def embeddings(self) -> list[nn.Parameter]:
        """None: the paper's recipe for text trains the embeddings on."""
        return []

    def narrow(self, factor: int, share_stem: bool = False) -> Self:
        check_factor(self.architecture, factor)
        config = copy.deepcopy(self.model.config)
        config.hidden_size //= factor
        widths = {"feed-forward width": self.feed_forward_setting, "embedding width": "embedding_size"}
        for what, setting in widths.items():
            width = getattr(config, setting, 0)
            if width % factor:
                raise UserError(f"approx.factor={factor} does not divide the {what} {width}: choose a divisor")
            if width:
                setattr(config, setting, width // factor)
        return like_weights(self.like(config), self.model.base_model)

    def like(self, config: PreTrainedConfig) -> Self:
        """Another of this kind, of that configuration; random weights."""
        return self.from_config(config)

    def repeated(self) -> Iterator[Repeated]:
        """Of the classes that the library names after the family: ElectraModel, ElectraLayer, ..."""
        module, _, served = self.serves[0].rpartition(".")
        library, family = import_module(module), served.removesuffix("ForSequenceClassification").removesuffix("Model")

        def found(name: str, kind: str) -> Repeated:
            return Repeated(name, self.model.get_submodule(name), (getattr(library, family + kind),))

        inside = ""
        yield Repeated("the model", self.model, (self.library(),))
        if self.model.base_model is not self.model:
            inside = f"{self.model.base_model_prefix}."
            yield found(self.model.base_model_prefix, "Model")
        yield found(f"{inside}embeddings", "Embeddings")
        yield found(f"{inside}encoder", "Encoder")
        for place in range(len(self.model.base_model.encoder.layer)):
            name = f"{inside}encoder.layer.{place}"
            yield found(name, "Layer")
            yield found(f"{name}.attention", "Attention")
            yield found(f"{name}.attention.self", "SelfAttention")
            dropout = f"{name}.attention.self.dropout"
            yield Repeated(dropout, self.model.get_submodule(dropout), (nn.Dropout,))
            yield found(f"{name}.attention.output", "SelfOutput")
            yield found(f"{name}.intermediate", "Intermediate")
            yield found(f"{name}.output", "Output")

    def problems(self) -> dict[str, bool]:
        config = self.model.config
        position = getattr(config, "position_embedding_type", "absolute")
        return {
            f"position_embedding_type={position!r} instead of 'absolute'": position != "absolute",
            "cross attention": config.add_cross_attention,
            "causal attention (is_decoder)": config.is_decoder,
        }

    def _library_output(self, inputs: Text) -> Any:
        ids, types, real = inputs
        return self.model(input_ids=ids, token_type_ids=types, attention_mask=real, return_dict=True)

    @property
    def _projects(self) -> bool:
        """Whether the layers are wider than the embedding tables."""
        return hasattr(self.model.base_model, "embeddings_project")

    def _layer(self, layer: int) -> Any:
        return self.model.base_model.encoder.layer[layer]

    def _embed(self, ids: Tensor, types: Tensor, token: Tensor) -> Tensor:
        tables = self.model.base_model.embeddings
        position = tables.position_embeddings(token + self.first_position)
        rows = tables.word_embeddings(ids) + tables.token_type_embeddings(types) + position
        rows = tables.dropout(tables.LayerNorm(rows))
        return self.model.base_model.embeddings_project(rows) if self._projects else rows


def _join(output: Any, x: Tensor, rows: Tensor, gate: Tensor | None) -> Tensor:
    """A branch's result onto its residual: projection, dropout, gate, sum, norm."""
    return output.LayerNorm(gated(output.dropout(output.dense(rows)), gate) + x)
