"""LV-ViT (Jiang et al., 2021, "All Tokens Matter"): a ViT behind a convolutional stem, and a second head for patches.

timm has none. Blocks, tokens and heads are timm's VisionTransformer, whose parameters have the names of the released
checkpoints; the stem is here. Residual branches divided by `skip_lam` are folded into the projections that end them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Example, check_factor, like_weights
from sttabt.backbones.patches import example_images
from sttabt.backbones.vit import ViT

NORM_EPS = 1e-5
AUXILIARY_WEIGHT = 0.5  # of the patches' head beside the class token's, in the released model's prediction
BRANCH_ENDS = ("attn.proj.", "mlp.fc2.")  # what skip_lam divides


@dataclass(frozen=True)
class Sizes:
    """What an LV-ViT consists of; skip_lam: what the released weights' residual branches are divided by."""

    embed_dim: int
    depth: int
    num_heads: int
    skip_lam: float
    stem_width: int = 64
    mlp_ratio: float = 3.0
    patch_size: int = 16


SIZES = {
    "tiny": Sizes(240, 12, 4, skip_lam=1.0),
    "small": Sizes(384, 16, 6, skip_lam=2.0),
    "medium": Sizes(512, 20, 8, skip_lam=2.0),
    "large": Sizes(768, 24, 12, skip_lam=3.0, stem_width=128),
}


class Stemmed(NamedTuple):
    """Images (B, C, height, width) with a stem's output (B, stem width, height/2, width/2), and whose output it is."""

    images: Tensor
    features: Tensor
    stem: nn.Module


class ConvolutionalStem(nn.Module):
    """Three convolutions at half resolution, each with batch norm and ReLU, then a projection a patch.

    The convolutions see across patches, so that they are computed whole; the projection is computed patch by patch.
    own: False for a network that reads another one's convolutions, as `Stemmed` inputs.
    """

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, stem_width: int, own: bool = True, **_: Any
    ) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.img_size = (img_size, img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.norm = nn.Identity()  # what timm's patch embeddings end with
        self.dynamic_img_pad = False
        self.own = own
        if own:
            self.conv1 = nn.Conv2d(in_chans, stem_width, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(stem_width)
            self.conv2 = nn.Conv2d(stem_width, stem_width, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(stem_width)
            self.conv3 = nn.Conv2d(stem_width, stem_width, 3, padding=1, bias=False)
            self.bn3 = nn.BatchNorm2d(stem_width)
        self.proj = nn.Conv2d(stem_width, embed_dim, patch_size // 2, stride=patch_size // 2)

    def forward(self, inputs: Tensor | Stemmed) -> Tensor:
        return self.proj(self.features(inputs)).flatten(2).transpose(1, 2)

    def features(self, inputs: Tensor | Stemmed) -> Tensor:
        """The convolutions' output: computed, or brought along by prepared inputs.

        What another stem made of them is for a sharer alone.
        """
        if isinstance(inputs, Stemmed):
            if inputs.stem is self or not self.own:
                return inputs.features
            inputs = inputs.images
        assert self.own, "a shared stem is computed by the network that owns it (Backbone.prepare)"
        # A GPU's kernels for convolutions in half precision want the channels of a place side by side.
        x = inputs.contiguous(memory_format=torch.channels_last) if inputs.is_cuda else inputs
        for convolution, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = norm(convolution(x)).relu()
        return x

    @property
    def macs(self) -> int:
        """Multiply-adds of one image's convolutions."""
        if not self.own:
            return 0
        places = (self.img_size[0] // 2) * (self.img_size[1] // 2)
        return places * sum(conv.weight.numel() for conv in (self.conv1, self.conv2, self.conv3))


class LvVit(ViT):
    """An LV-ViT under the names of its released checkpoints.

    auxiliary: predict as the released model does, by the class head plus half the maximum of the auxiliary head over
    the patches that are left; the last layer then writes all that it reads. Otherwise by the class head alone, as the
    paper's pruned models do. Where no patch is left the class head decides alone, too.
    """

    serves: ClassVar[tuple[str, ...]] = ()  # no library has one
    head_prefixes = ("head.", "aux_head.")
    narrow_prefixes = ("patch_embed.",)  # the stem is built afresh

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        def example(
            channels: int = 3, size: int = 32, factor: int = 2, depth: int = 3, auxiliary: bool = False, **named: Any
        ) -> Example:
            sizes = replace(SIZES["small"], patch_size=8, embed_dim=32, depth=depth, num_heads=2, stem_width=8)
            return Example(cls(sizes, 5, channels, size, auxiliary), example_images(channels, size), factor, **named)

        return {
            "lvvit": example,
            "lvvit_shared_stem": partial(example, 1, 24, 4, depth=2, share_stem=True),
            "lvvit_auxiliary": partial(example, auxiliary=True),
        }

    def __init__(
        self,
        sizes: Sizes,
        classes: int,
        channels: int,
        image_size: int,
        auxiliary: bool = False,
        own_stem: bool = True,
    ) -> None:
        from timm.models.vision_transformer import VisionTransformer

        stem = partial(ConvolutionalStem, stem_width=sizes.stem_width, own=own_stem)
        model = VisionTransformer(
            img_size=image_size,
            patch_size=sizes.patch_size,
            in_chans=channels,
            num_classes=classes,
            embed_dim=sizes.embed_dim,
            depth=sizes.depth,
            num_heads=sizes.num_heads,
            mlp_ratio=sizes.mlp_ratio,
            qkv_bias=False,
            norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
            embed_layer=stem,
        )
        super().__init__(model)
        self.sizes, self.reads_survivors = sizes, auxiliary
        if auxiliary:
            model.aux_head = nn.Linear(sizes.embed_dim, classes)
            nn.init.trunc_normal_(model.aux_head.weight, std=0.02)
            nn.init.zeros_(model.aux_head.bias)
        self.model.load_state_dict(fold_branches(model.state_dict(), sizes.skip_lam))
        self.architecture = replace(self.architecture, stem=model.patch_embed.macs, auxiliary=auxiliary)

    def configuration(self) -> dict[str, Any]:
        """The sizes: no library has an own form."""
        model: Any = self.model
        return {
            "architecture": "lvvit",
            "num_classes": model.num_classes,
            "in_chans": model.in_chans,
            "img_size": model.patch_embed.img_size[0],
            "auxiliary": self.reads_survivors,
            "sizes": asdict(self.sizes),
        }

    @classmethod
    def rebuilt(cls, configuration: Mapping[str, Any]) -> Self:
        sizes, names = Sizes(**configuration["sizes"]), ("num_classes", "in_chans", "img_size", "auxiliary")
        return cls(sizes, *(configuration[name] for name in names))

    def forward(self, inputs: Tensor | Stemmed) -> Tensor:
        """The model's own dense forward: the baseline that speed is measured against."""
        self.grid_of(inputs)
        x = self.model.forward_features(inputs)
        return self._classify(x, None) if self.reads_survivors else self.model.forward_head(x)

    def real(self, inputs: Tensor | Stemmed) -> Tensor:
        return super().real(images_of(inputs))

    def grid_of(self, inputs: Tensor | Stemmed) -> tuple[int, int]:
        return super().grid_of(images_of(inputs))

    def check_inputs(self, inputs: Any) -> None:
        super().check_inputs(images_of(inputs))

    def check_numbers(self, inputs: Any) -> None:
        super().check_numbers(images_of(inputs))

    def unreadable(self, inputs: Any) -> Tensor | None:
        return super().unreadable(images_of(inputs))

    def samples(self, inputs: Tensor | Stemmed) -> list[Tensor]:
        return list(images_of(inputs))

    def prepare(self, inputs: Tensor | Stemmed) -> Stemmed:
        stem = self.model.patch_embed
        if isinstance(inputs, Stemmed) and inputs.stem is stem:
            return inputs
        self.grid_of(inputs)
        images = images_of(inputs)
        return Stemmed(images, stem.features(images), stem)

    def embed_tokens(self, inputs: Tensor | Stemmed, sample: Tensor, token: Tensor) -> Tensor:
        grid = self.grid_of(inputs)
        if self.embeds_whole:
            return self.embed(inputs)[sample, token]
        return self._embed_patches(self.model.patch_embed.features(inputs), grid, sample, token)

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return self._classify(self.model.norm(x), alive) if self.reads_survivors else super().head(x)

    def narrow(self, factor: int, share_stem: bool = False) -> LvVit:
        check_factor(self.architecture, factor)
        sizes = replace(
            self.sizes,
            embed_dim=self.sizes.embed_dim // factor,
            stem_width=self.sizes.stem_width if share_stem else math.ceil(self.sizes.stem_width / factor),
        )
        model: Any = self.model
        size = model.patch_embed.img_size[0]
        narrow = LvVit(sizes, model.num_classes, model.in_chans, size, own_stem=not share_stem)
        return like_weights(narrow, model.blocks)

    def _takes_patches(self, module: nn.Module) -> bool:
        return isinstance(module, ConvolutionalStem)

    def _classify(self, normed: Tensor, alive: Tensor | None) -> Tensor:
        logits, patches = self.model.head(normed[:, 0]), normed[:, 1:]
        if patches.shape[1] == 0:
            return logits
        if alive is None:
            return logits + AUXILIARY_WEIGHT * self.model.aux_head(patches).amax(1)
        left = alive[:, 1:]
        if left.is_cuda:  # picking rows by a mask would wait for the device
            places = self.model.aux_head(patches).masked_fill(~left[..., None], -torch.inf)
            return logits + AUXILIARY_WEIGHT * places.amax(1).where(left.any(1)[:, None], 0.0)
        found = self.model.aux_head(patches[left])  # of those alone that are left
        places = found.new_full((*left.shape, found.shape[-1]), -torch.inf).masked_scatter(left[..., None], found)
        return logits + AUXILIARY_WEIGHT * places.amax(1).where(left.any(1)[:, None], 0.0)


def images_of(inputs: Tensor | Stemmed) -> Tensor:
    return inputs.images if isinstance(inputs, Stemmed) else inputs


def fold_branches(state: Mapping[str, Tensor], skip_lam: float) -> dict[str, Tensor]:
    """Weights by name whose residual branches are divided by `skip_lam` where they end."""
    ends = {name for name in state if any(end in name for end in BRANCH_ENDS)}
    return {name: value / skip_lam if name in ends else value for name, value in state.items()}
