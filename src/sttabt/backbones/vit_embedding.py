"""Vision encoders of Hugging Face transformers that give one vector an image, and no classes, from their class token:
ViTModel, DeiTModel, and Dinov2Model with and without registers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

from torch import Tensor

from sttabt.backbones.base import Example
from sttabt.backbones.embedding import POOLING, Embedding
from sttabt.backbones.transformers_vit import LIBRARY, TransformersDeiT, TransformersDinov2, class_of


class ViTEmbedding(Embedding, TransformersDeiT):
    """The pooler's vector; of a model without a pooler the class token behind the last norm."""

    serves = (f"{LIBRARY}.vit.modeling_vit.ViTModel", f"{LIBRARY}.deit.modeling_deit.DeiTModel")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.architecture = replace(self.architecture, head_inputs=int(self._pooled))

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        """None: it is the classifier's computation."""
        return {}

    def configuration(self) -> dict[str, Any]:
        """As transformers' config.json, and whether there is a pooler."""
        return super().configuration() | {POOLING: self._pooled}

    @classmethod
    def rebuilt(cls, configuration: Mapping[str, Any]) -> Self:
        sizes = {name: value for name, value in configuration.items() if name != POOLING}
        kinds = {kind.config_class.model_type: kind for kind in map(class_of, cls.serves)}
        kind = kinds[configuration["model_type"]]
        return cls(_made(kind, kind.config_class.from_dict(sizes), configuration[POOLING]))

    @property
    def classes(self) -> int:
        return self.sizes.pooler_output_size if self._pooled else self.sizes.hidden_size

    def forward(self, inputs: Tensor) -> Tensor:
        """The library's own dense forward: the baseline that speed is measured against."""
        found = self.model(pixel_values=inputs, return_dict=True)
        return found.pooler_output if self._pooled else found.last_hidden_state[:, 0]

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        first = self.encoder.layernorm(x[:, :1])
        return self.model.pooler(first) if self._pooled else first[:, 0]

    def _like(self, config: Any) -> Any:
        return _made(type(self.model), config, self._pooled)


class Dinov2Embedding(Embedding, TransformersDinov2):
    """The class token behind the last norm; no patch is read beside it, as the classifier does."""

    serves = (
        f"{LIBRARY}.dinov2.modeling_dinov2.Dinov2Model",
        f"{LIBRARY}.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersModel",
    )
    reads_survivors = False
    head_inputs = 0

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        """None: it is a ViT's computation, under other names."""
        return {}

    @property
    def classes(self) -> int:
        return self.sizes.hidden_size

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return self.encoder.layernorm(x[:, 0])


def _made(kind: Any, config: Any, pooled: bool) -> Any:
    return kind._from_config(config, attn_implementation="sdpa", add_pooling_layer=pooled)
