"""Hugging Face transformers' BertForSequenceClassification (BERT, MiniLM): post-norm, padded text, pooler."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification, PreTrainedConfig, PreTrainedModel

from sttabt import native
from sttabt.backbones.base import Backbone, Rows, check_factor
from sttabt.backbones.slicing import gated, linear, linear_activated
from sttabt.core.cost import Architecture
from sttabt.core.text import Text
from sttabt.errors import UserError
from sttabt.pretrained.weights import load_views

OLD_BUFFER = "embeddings.position_ids"  # transformers before 4.31 saved it with the weights; it holds 0, 1, 2, ...


class Bert(Backbone):
    """Wraps a live transformers module, so that its weights, its own forward and its state names stay usable.

    Inputs are `Text`. Raises UserError for a variant whose computation this adapter would not reproduce.
    """

    head_prefixes = ("classifier.",)
    may_pad = True
    library: type[PreTrainedModel] = BertForSequenceClassification
    model_type = "bert"
    prefix = "bert."  # of the encoder's parameters in `model`
    feed_forward_setting = "intermediate_size"  # what the library's configuration calls that width

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._refuse_unsupported()
        config = self.model.config
        self.architecture = Architecture(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            feed_forward=getattr(config, self.feed_forward_setting),
            classes=self.model.classifier.out_features,
            patch_inputs=0,
            pooler=True,
        )
        self.outputs = 1
        self.grid = (0, 0)
        self.tokens = config.max_position_embeddings

    @property
    def attention_dropout(self) -> float:
        return self.model.config.attention_probs_dropout_prob if self.model.training else 0.0

    def forward(self, inputs: Text) -> Tensor:
        """The library's own dense forward: the baseline that speed is measured against."""
        ids, types, real = inputs
        return self.model(input_ids=ids, token_type_ids=types, attention_mask=real, return_dict=True).logits

    def real(self, inputs: Text) -> Tensor:
        return inputs.real

    def samples(self, inputs: Text) -> list[Tensor]:
        return [torch.stack([ids[real], types[real]]).long() for ids, types, real in zip(*inputs, strict=True)]

    def embed(self, inputs: Text) -> Tensor:
        return self._embed(inputs.ids, inputs.types, torch.arange(inputs.ids.shape[1], device=inputs.ids.device))

    def embed_tokens(self, inputs: Text, sample: Tensor, token: Tensor) -> Tensor:
        return self._embed(inputs.ids[sample, token], inputs.types[sample, token], token)

    def qkv(self, layer: int, x: Tensor, written: Rows | None = None) -> tuple[Tensor, Tensor, Tensor]:
        attention = self._layer(layer).attention.self
        query = linear(attention.query, x if written is None else written(x))
        return query, linear(attention.key, x), linear(attention.value, x)

    def queries_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        attention = self._layer(layer).attention.self
        return linear(attention.query, x), linear(attention.key, x)

    def project(self, layer: int, x: Tensor, attended: Tensor, gate: Tensor | None = None) -> Tensor:
        return _join(self._layer(layer).attention.output, x, attended, gate)

    def feed_forward(self, layer: int, x: Tensor, gate: Tensor | None = None) -> Tensor:
        intermediate = self._layer(layer).intermediate
        hidden = linear_activated(intermediate.dense, intermediate.intermediate_act_fn, x, gate)
        return _join(self._layer(layer).output, x, hidden, gate)

    def _native_layer(self, layer: int) -> native.Layer | None:
        block = self._layer(layer)
        own, joining, widening = block.attention.self, block.attention.output, block.intermediate
        return native.Layer(
            (own.query, own.key, own.value),
            joining.dense,
            widening.dense,
            widening.intermediate_act_fn,
            block.output.dense,
            joining.LayerNorm,
            block.output.LayerNorm,
            (joining.dropout, block.output.dropout),
            norm_first=False,
        )

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
        return type(self)(new_model(config, self.library))

    def from_released(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if name.removeprefix("bert.") != OLD_BUFFER}

    def official_names(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix(self.prefix): value for name, value in values.items()}

    def official_state(self) -> dict[str, Tensor]:
        return self.official_names(self.model.state_dict())

    def load_official_state(self, state: Mapping[str, Tensor]) -> None:
        load_views({name: value for name, value in state.items() if name != OLD_BUFFER}, self.official_state())

    def _layer(self, layer: int) -> Any:
        return self.model.bert.encoder.layer[layer]

    def _embed(self, ids: Tensor, types: Tensor, token: Tensor) -> Tensor:
        tables = self.model.bert.embeddings
        rows = tables.word_embeddings(ids) + tables.token_type_embeddings(types) + tables.position_embeddings(token)
        return tables.dropout(tables.LayerNorm(rows))

    def _refuse_unsupported(self) -> None:
        config = self.model.config
        wrong = config.model_type != self.model_type
        problems = {f"model_type={config.model_type!r} instead of {self.model_type!r}": wrong}
        found = [what for what, present in (problems if wrong else self._problems()).items() if present]
        if found:
            raise UserError(f"this text model cannot be pruned: it has {', '.join(found)}")

    def _problems(self) -> dict[str, bool]:
        """What this adapter would not reproduce, and whether the model has it."""
        config = self.model.config
        position = getattr(config, "position_embedding_type", "absolute")
        return {
            f"position_embedding_type={position!r} instead of 'absolute'": position != "absolute",
            "cross attention": config.add_cross_attention,
            "causal attention (is_decoder)": config.is_decoder,
            "no pooler": self.model.bert.pooler is None,
        }


def new_model(
    config: PreTrainedConfig, library: type[PreTrainedModel] = BertForSequenceClassification
) -> PreTrainedModel:
    """Random weights, fused attention."""
    return library._from_config(config, attn_implementation="sdpa")


def _join(output: Any, x: Tensor, rows: Tensor, gate: Tensor | None) -> Tensor:
    """A branch's result onto its residual: projection, dropout, gate, sum, norm."""
    if gate is None and not output.training:
        return output.LayerNorm(linear(output.dense, rows, residual=x))
    return output.LayerNorm(gated(output.dropout(output.dense(rows)), gate) + x)
