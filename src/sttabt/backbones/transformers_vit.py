"""Image classifiers of Hugging Face transformers: ViT, DeiT, and DINOv2 with and without registers."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Backbone, Example, Finish, Rows, check_factor, like_weights
from sttabt.backbones.inputs import check_images
from sttabt.backbones.layers import EncoderLayer
from sttabt.backbones.patches import embed_picked, example_images, mean_of
from sttabt.backbones.repeated import Repeated, has_hooks
from sttabt.backbones.slicing import gated
from sttabt.backbones.transformers_calls import answer_of, bound_arguments, configuration_of, refuse_others
from sttabt.core.cost import Architecture
from sttabt.errors import UserError

LIBRARY = "transformers.models"
EXAMPLE_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}


class TransformersViT(Backbone):
    """Wraps a live transformers module; inputs are images (B, C, height, width) of the model's own size.

    A subclass says where the layers are, and what stands around their two branches. Raises UserError for a variant
    whose computation it would not reproduce.
    """

    answers: ClassVar[str] = "logits"
    head_prefixes: tuple[str, ...] = ("classifier.",)

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.check()
        config, block = self.sizes, self._block(0)
        if self._attention(block).q_proj.out_features != config.hidden_size:
            raise UserError("this vision transformer cannot be pruned: its heads are not as wide as its layers")
        self.architecture = Architecture(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            feed_forward=block.mlp.fc1.out_features,
            classes=self.classes,
            patch_inputs=self.projection.weight[0].numel(),
            head_inputs=self.head_inputs,
        )
        self.outputs = sum(token.shape[1] for token in self._prefix())

    head_inputs: int = 1  # vectors that the classifier reads behind each other

    @classmethod
    def example(cls, served: int = 0, **changes: Any) -> Example:
        """A small model for tests, of that class of `serves`, with changes to its configuration."""
        library = class_of(cls.serves[served])
        config = library.config_class(**{**EXAMPLE_SIZES, **changes})
        return Example(cls(library._from_config(config, attn_implementation="sdpa")), example_images(3, 32))

    def configuration(self) -> dict[str, Any]:
        """As transformers' config.json."""
        return configuration_of(self.model)

    @classmethod
    def rebuilt(cls, configuration: Mapping[str, Any]) -> Self:
        kinds = {kind.config_class.model_type: kind for kind in map(class_of, cls.serves)}
        kind = kinds[configuration["model_type"]]
        return cls(kind._from_config(kind.config_class.from_dict(dict(configuration)), attn_implementation="sdpa"))

    @property
    def encoder(self) -> Any:
        """The library's model without its head."""
        return self.model.base_model

    @property
    def sizes(self) -> Any:
        """The encoder's configuration."""
        return self._sizes_in(self.model.config)

    @staticmethod
    def _sizes_in(config: Any) -> Any:
        """The encoder's configuration in that of the model."""
        return config

    @property
    def classes(self) -> int:
        return self.model.config.num_labels

    @property
    def projection(self) -> Any:
        """The convolution that embeds patches."""
        return self.encoder.embeddings.patch_embeddings.projection

    @property
    def positions(self) -> Tensor:
        """The table of positions, (N, D), those of prefix tokens in front."""
        return self.encoder.embeddings.position_embeddings[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the model reads."""
        height, width = self.encoder.embeddings.patch_embeddings.image_size
        return height, width

    @property
    @abstractmethod
    def blocks(self) -> Any:
        """The library's layers."""

    @abstractmethod
    def _norms(self, block: Any) -> tuple[nn.Module, nn.Module]:
        """In front of the attention, and of the feed-forward."""

    @abstractmethod
    def _around(self, block: Any) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]]:
        """What is dropped at random behind a branch, and what scales the two branches before."""

    @property
    def tokens(self) -> int:
        rows, columns = self.grid
        return rows * columns + self.outputs

    @property
    def grid(self) -> tuple[int, int]:
        (height, width), (rows, columns) = self.image_size, self.projection.weight.shape[-2:]
        return height // rows, width // columns

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.sizes.num_channels, *self.image_size

    def grid_of(self, inputs: Tensor) -> tuple[int, int]:
        """Raises UserError for images of another size than the model's own."""
        own, found = self.image_size, tuple(inputs.shape[-2:])
        if found != own:
            raise UserError(
                f"images are {found[0]}x{found[1]} pixels, but the model reads {own[0]}x{own[1]}: resize them"
            )
        return self.grid

    def repeated(self) -> Iterator[Repeated]:
        library, family = self._family()

        def found(name: str, kind: str) -> Repeated:
            return Repeated(name, self.model.get_submodule(name), (getattr(library, family + kind),))

        names = {id(module): name for name, module in self.model.named_modules()}
        inside = ""
        if self.encoder is self.model:
            yield found("", "Model")._replace(name="the model")
        else:
            inside = f"{self.model.base_model_prefix}."
            yield found("", "ForImageClassification")._replace(name="the model")
            yield found(self.model.base_model_prefix, "Model")
        yield found(f"{inside}embeddings", "Embeddings")
        yield found(f"{inside}embeddings.patch_embeddings", "PatchEmbeddings")
        for block in self.blocks:
            name = names[id(block)]
            yield found(name, "Layer")
            yield found(f"{name}.attention", "Attention")
            yield found(f"{name}.mlp", "MLP")

    def read_call(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Finish]:
        """As the library's model is called: pixel_values by position or by name, labels, return_dict.

        Gives an ImageClassifierOutput, or a tuple. Raises UserError naming any other argument that is given.
        """
        self.check_call()
        given = bound_arguments(type(self.model), args, kwargs)
        images, labels, return_dict = (given.pop(name, None) for name in ("pixel_values", "labels", "return_dict"))
        refuse_others(given, self.model.config)
        if images is None:
            raise UserError("a pruned model of images reads pixel_values: give an image processor's tensors")

        return images, lambda logits: self._answer(logits, labels, return_dict)

    def _answer(self, logits: Tensor, labels: Tensor | None, return_dict: bool | None) -> Any:
        from transformers.modeling_outputs import ImageClassifierOutput

        loss = None if labels is None else self.model.loss_function(labels, logits, self.model.config)
        return answer_of(ImageClassifierOutput(loss=loss, logits=logits), self.model.config, return_dict)

    def check_inputs(self, inputs: Any) -> None:
        check_images(inputs, self.sizes.num_channels, self.positions)
        self.grid_of(inputs)

    def attention_dropout(self, layer: int) -> float:
        attention = self._attention(self._block(layer))
        return attention.attention_dropout if attention.training else 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        """The library's own dense forward: the baseline that speed is measured against."""
        return self.model(pixel_values=inputs, return_dict=True)[self.answers]

    def real(self, inputs: Tensor) -> Tensor:
        rows, columns = self.grid_of(inputs)
        return torch.ones(inputs.shape[0], rows * columns + self.outputs, dtype=torch.bool, device=inputs.device)

    def embed(self, inputs: Any) -> Tensor:
        self.grid_of(inputs)
        places, patches = self._places(), self.projection(inputs).flatten(2).transpose(1, 2)
        prefix = places[: self.outputs].expand(patches.shape[0], -1, -1)
        return self._embedded(torch.cat([prefix, patches + places[self.outputs :]], 1))

    def embed_tokens(self, inputs: Tensor, sample: Tensor, token: Tensor) -> Tensor:
        grid = self.grid_of(inputs)
        if self.embeds_whole:
            return self.embed(inputs)[sample, token]
        rows = embed_picked(inputs, grid, sample, token, self.outputs, self.projection, self._places())
        return self._embedded(rows)

    @property
    def embeds_whole(self) -> bool:
        return type(self.projection) is not nn.Conv2d or has_hooks(self.projection)

    def qkv(self, layer: int, x: Tensor, written: Rows | None = None) -> tuple[Tensor, Tensor, Tensor]:
        block = self._block(layer)
        attention, x = self._attention(block), self._norms(block)[0](x)
        return attention.q_proj(x if written is None else written(x)), attention.k_proj(x), attention.v_proj(x)

    def queries_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        block = self._block(layer)
        attention, x = self._attention(block), self._norms(block)[0](x)
        return attention.q_proj(x), attention.k_proj(x)

    def project(self, layer: int, x: Tensor, attended: Tensor, gate: Tensor | None = None) -> Tensor:
        block = self._block(layer)
        return x + self._branch(block, 0, self._join(block)(attended), gate)

    def feed_forward(self, layer: int, x: Tensor, gate: Tensor | None = None) -> Tensor:
        block = self._block(layer)
        hidden = block.mlp.activation_fn(gated(block.mlp.fc1(self._norms(block)[1](x)), gate))
        return x + self._branch(block, 1, block.mlp.fc2(hidden), gate)

    def encoder_layers(self) -> list[EncoderLayer]:
        return [
            EncoderLayer(
                block,
                (self._attention(block).q_proj, self._attention(block).k_proj, self._attention(block).v_proj),
                self._join(block),
                block.mlp.fc1,
                block.mlp.activation_fn,
                block.mlp.fc2,
                *self._norms(block),
                norm_first=True,
                dropouts=self._around(block)[0],
                scales=self._around(block)[1],
            )
            for block in self.blocks
        ]

    def embeddings(self) -> list[nn.Parameter]:
        tables = self.encoder.embeddings
        return [parameter for name, parameter in tables.named_parameters(recurse=False) if name != "mask_token"]

    def narrow(self, factor: int, share_stem: bool = False) -> Self:
        check_factor(self.architecture, factor)
        config = copy.deepcopy(self.model.config)
        sizes = self._sizes_in(config)
        sizes.hidden_size //= factor
        if wide := getattr(sizes, "intermediate_size", 0):
            if wide % factor:
                raise UserError(
                    f"approx.factor={factor} does not divide the feed-forward width {wide}: choose a divisor"
                )
            sizes.intermediate_size = wide // factor
        return like_weights(type(self)(self._like(config)), self.encoder)

    def _like(self, config: Any) -> Any:
        """Another of the library's models of this kind, of that configuration; random weights."""
        return type(self.model)._from_config(config, attn_implementation="sdpa")

    def _branch(self, block: Any, place: int, rows: Tensor, gate: Tensor | None) -> Tensor:
        """What a branch adds to its residual; the gate stands in front of layer scale and drop path, as timm's."""
        dropouts, scales = self._around(block)
        rows = scales[place](gated(rows, gate)) if scales else gated(rows, gate)
        for dropout in dropouts:
            rows = dropout(rows)
        return rows

    def _attention(self, block: Any) -> Any:
        return block.attention

    def _join(self, block: Any) -> nn.Module:
        """What projects the attention's output."""
        return block.attention.o_proj

    def _embedded(self, rows: Tensor) -> Tensor:
        """Tokens as the first layer reads them, from the sum of patch and position."""
        return self.encoder.embeddings.dropout(rows)

    def _prefix(self) -> list[Tensor]:
        """The tokens in front of the patches, (1, n, D) each; those with a position first."""
        tables, names = self.encoder.embeddings, ("cls_token", "distillation_token", "register_tokens")
        return [token for name in names if (token := getattr(tables, name, None)) is not None]

    def _places(self) -> Tensor:
        """What a patch is added to, (N, D), and the prefix tokens in front."""
        position, prefix = self.positions, torch.cat(self._prefix(), 1)[0]
        placed = len(position) - self.grid[0] * self.grid[1]
        return torch.cat([prefix[:placed] + position[:placed], prefix[placed:], position[placed:]])

    def _block(self, layer: int) -> Any:
        return self.blocks[layer]

    def _family(self) -> tuple[Any, str]:
        """The library's module, and what the names of its classes begin with."""
        for kind in type(self.model).__mro__:
            if f"{kind.__module__}.{kind.__name__}" in self.serves:
                family = kind.__name__.removesuffix("ForImageClassification").removesuffix("Model")
                return import_module(kind.__module__), family
        raise UserError(f"a {type(self.model).__name__} is none of {', '.join(self.serves)}")


class TransformersDeiT(TransformersViT):
    """ViT and DeiT, whose distillation token the classifier does not read: it lives through all layers."""

    serves = (
        f"{LIBRARY}.vit.modeling_vit.ViTForImageClassification",
        f"{LIBRARY}.deit.modeling_deit.DeiTForImageClassification",
    )

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        return {"transformers_deit": partial(cls.example, 1, intermediate_size=48)}

    @property
    def blocks(self) -> Any:
        return self.encoder.layers

    def _norms(self, block: Any) -> tuple[nn.Module, nn.Module]:
        return block.layernorm_before, block.layernorm_after

    def _around(self, block: Any) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]]:
        return (block.dropout,), ()

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return self.model.classifier(self.encoder.layernorm(x[:, 0]))


class TransformersDinov2(TransformersViT):
    """DINOv2: the classifier reads the class token, and beside it the mean of the patches that are left."""

    serves = (
        f"{LIBRARY}.dinov2.modeling_dinov2.Dinov2ForImageClassification",
        f"{LIBRARY}.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersForImageClassification",
    )
    reads_survivors = True
    head_inputs = 2

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        return {"dinov2_registers": partial(cls.example, 1, mlp_ratio=2, num_register_tokens=2)}

    @property
    def blocks(self) -> Any:
        return self.encoder.encoder.layer

    def repeated(self) -> Iterator[Repeated]:
        yield from super().repeated()
        library, family = self._family()
        name = "encoder" if self.encoder is self.model else f"{self.model.base_model_prefix}.encoder"
        yield Repeated(name, self.encoder.encoder, (getattr(library, f"{family}Encoder"),))

    def _norms(self, block: Any) -> tuple[nn.Module, nn.Module]:
        return block.norm1, block.norm2

    def _around(self, block: Any) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]]:
        return (block.drop_path,), (block.layer_scale1, block.layer_scale2)

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        rows = self.encoder.layernorm(x)
        here = None if alive is None else alive[:, self.outputs :]
        return self.model.classifier(torch.cat([rows[:, 0], mean_of(rows[:, self.outputs :], here)], 1))


def class_of(name: str) -> Any:
    module, _, kind = name.rpartition(".")
    return getattr(import_module(module), kind)
