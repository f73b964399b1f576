"""Vision encoders of CLIP and SigLIP in Hugging Face transformers that give one vector an image, and no classes:
CLIPVisionModel, with its projection or without, and SiglipVisionModel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from sttabt.backbones.base import Example
from sttabt.backbones.embedding import Embedding
from sttabt.backbones.patches import mean_of
from sttabt.backbones.repeated import Repeated
from sttabt.backbones.transformers_clip import ContrastiveViT, TransformersClip, TransformersSiglip
from sttabt.backbones.transformers_vit import LIBRARY


class EmbeddingViT(Embedding, ContrastiveViT):
    """Whose configuration is that of the vision encoder alone."""

    head_inputs = 0

    @property
    def classes(self) -> int:
        return self.sizes.hidden_size

    @staticmethod
    def _of_sizes(kind: Any, sizes: dict[str, Any]) -> Any:
        return kind(**sizes)

    @staticmethod
    def _sizes_in(config: Any) -> Any:
        return config


class ClipEmbedding(EmbeddingViT, TransformersClip):
    """The class token behind the last norm."""

    serves = (f"{LIBRARY}.clip.modeling_clip.CLIPVisionModel",)
    pools = False
    reads_survivors = False

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        """None: it is a ViT's computation, under other names."""
        return {}

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return self.encoder.post_layernorm(x[:, 0])


class ClipProjection(ClipEmbedding):
    """Projected to where CLIP compares images with texts."""

    serves = (f"{LIBRARY}.clip.modeling_clip.CLIPVisionModelWithProjection",)
    answers = "image_embeds"
    head_inputs = 1

    @property
    def classes(self) -> int:
        return self.sizes.projection_dim

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return self.model.visual_projection(super().head(x))

    def _output(self) -> Any:
        from sttabt.backbones.outputs.clip import ProjectedEmbedding

        return ProjectedEmbedding


class SiglipEmbedding(EmbeddingViT, TransformersSiglip):
    """A learned query attends to the patches that are left; of a model without that head it is their mean."""

    serves = (f"{LIBRARY}.siglip.modeling_siglip.SiglipVisionModel",)

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        if self.model.use_head:
            wide = self.model.head.mlp.fc1.out_features
            self.architecture = replace(self.architecture, pool_feed_forward=wide)

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        return {"siglip_embedding": cls.example}

    def forward(self, inputs: Tensor) -> Tensor:
        """The library's own dense forward: the baseline that speed is measured against."""
        found = self.model(pixel_values=inputs, return_dict=True)
        return found.pooler_output if self.model.use_head else mean_of(found.last_hidden_state, None)

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        rows = self.encoder.post_layernorm(x)
        if not self.model.use_head:
            return mean_of(rows, alive)
        pool = self.model.head
        query, gone = pool.probe.repeat(rows.shape[0], 1, 1), None if alive is None else ~alive
        found = pool.attention(query, rows, rows, key_padding_mask=gone, need_weights=False)[0][:, 0]
        return found + pool.mlp(pool.layernorm(found))

    def repeated(self) -> Iterator[Repeated]:
        from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

        yield from super().repeated()
        if self.model.use_head:
            yield Repeated("head", self.model.head, (SiglipMultiheadAttentionPoolingHead,))
