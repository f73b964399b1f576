"""transformers' output of a CLIP encoder with a projection, from which tokens went."""

from __future__ import annotations

from transformers.models.clip.modeling_clip import CLIPVisionModelOutput

from sttabt.backbones.outputs.embedding import WithoutRows


class ProjectedEmbedding(WithoutRows, CLIPVisionModelOutput):
    """`image_embeds`, as CLIP compares them with those of texts."""

    instead = "read image_embeds, by that name"
