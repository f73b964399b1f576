"""Image classifiers of transformers on the vision encoders of CLIP and SigLIP, whose heads pool patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, ClassVar

from torch import Tensor, nn

from sttabt.backbones.base import Example
from sttabt.backbones.patches import example_images, mean_of
from sttabt.backbones.repeated import Repeated
from sttabt.backbones.transformers_vit import EXAMPLE_SIZES, LIBRARY, TransformersViT, class_of


class ContrastiveViT(TransformersViT):
    """A pre-norm encoder whose two branches drop nothing; around it the library names everything its own way."""

    family: ClassVar[str]  # what the names of the library's classes begin with

    @classmethod
    def example(cls, served: int = 0, **changes: Any) -> Example:
        """As TransformersViT's."""
        library = class_of(cls.serves[served])
        sizes = {**EXAMPLE_SIZES, "intermediate_size": 48, **changes}
        config = cls._of_sizes(library.config_class, sizes)
        return Example(cls(library._from_config(config, attn_implementation="sdpa")), example_images(3, 32))

    @staticmethod
    def _of_sizes(kind: Any, sizes: dict[str, Any]) -> Any:
        """The library's configuration of these sizes of the vision encoder."""
        text = {"bos_token_id": 0, "eos_token_id": 1}
        return kind(vision_config=sizes, text_config=text, num_labels=sizes["num_labels"])

    @property
    def encoder(self) -> Any:
        return getattr(self.model, "vision_model", self.model)

    @property
    def blocks(self) -> Any:
        return self.encoder.encoder.layers

    @property
    def projection(self) -> Any:
        return self.encoder.embeddings.patch_embedding

    @property
    def positions(self) -> Tensor:
        tables = self.encoder.embeddings
        return tables.position_embedding(tables.position_ids)[0]

    @property
    def image_size(self) -> tuple[int, int]:
        return self.encoder.embeddings.image_size, self.encoder.embeddings.image_size

    @staticmethod
    def _sizes_in(config: Any) -> Any:
        return config.vision_config

    def attention_dropout(self, layer: int) -> float:
        attention = self._attention(self._block(layer))
        return attention.dropout if attention.training else 0.0

    def embeddings(self) -> list[nn.Parameter]:
        return [*self.encoder.embeddings.parameters(recurse=False), self.encoder.embeddings.position_embedding.weight]

    def repeated(self) -> Iterator[Repeated]:
        served, inside = class_of(self.serves[0]), ""
        library = import_module(served.__module__)

        def found(name: str, kind: str) -> Repeated:
            return Repeated(name, self.model.get_submodule(name), (getattr(library, self.family + kind),))

        yield Repeated("the model", self.model, (served,))
        if self.encoder is not self.model:
            inside = "vision_model."
            yield found("vision_model", "VisionModel")
        yield found(f"{inside}embeddings", "VisionEmbeddings")
        yield found(f"{inside}encoder", "Encoder")
        for place in range(len(self.blocks)):
            name = f"{inside}encoder.layers.{place}"
            yield found(name, "EncoderLayer")
            yield found(f"{name}.self_attn", "Attention")
            yield found(f"{name}.mlp", "MLP")

    def _norms(self, block: Any) -> tuple[nn.Module, nn.Module]:
        return block.layer_norm1, block.layer_norm2

    def _around(self, block: Any) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]]:
        return (), ()

    def _attention(self, block: Any) -> Any:
        return block.self_attn

    def _join(self, block: Any) -> nn.Module:
        return block.self_attn.out_proj

    def _embedded(self, rows: Tensor) -> Tensor:
        return rows


class TransformersClip(ContrastiveViT):
    """CLIP: the classifier reads the mean of the patches that are left, without the last norm, and no class token.

    The class token lives through all layers.
    """

    serves = (f"{LIBRARY}.clip.modeling_clip.CLIPForImageClassification",)
    family = "CLIP"
    pools = True
    reads_survivors = True

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        return {"clip": cls.example}

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        here = None if alive is None else alive[:, self.outputs :]
        return self.model.classifier(mean_of(x[:, self.outputs :], here))

    def _embedded(self, rows: Tensor) -> Tensor:
        return self.encoder.pre_layrnorm(rows)

    def _prefix(self) -> list[Tensor]:
        return [self.encoder.embeddings.class_embedding[None, None]]


class TransformersSiglip(ContrastiveViT):
    """SigLIP: the classifier reads the mean of the patches that are left; there is no other token.

    The library's own forward runs a pooling head beside it, which the classifier does not read and which is left out.
    """

    serves = (f"{LIBRARY}.siglip.modeling_siglip.SiglipForImageClassification",)
    family = "Siglip"
    pools = True
    reads_survivors = True

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        return {"siglip": cls.example}

    def forward(self, inputs: Tensor) -> Tensor:
        """The library's own dense forward, but for that pooling head: the baseline is not slower than it must be."""
        return self.head(self.encoder.encoder(inputs_embeds=self.encoder.embeddings(inputs)).last_hidden_state)

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return self.model.classifier(mean_of(self.encoder.post_layernorm(x), alive))

    def _prefix(self) -> list[Tensor]:
        return []

    def _places(self) -> Tensor:
        return self.positions
