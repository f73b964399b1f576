"""timm's VisionTransformer (ViT, DeiT, SigLIP): pre-norm, fused projections; a class token, or a head that pools."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sttabt.backbones.base import Backbone, Example, Finish, Rows, check_factor, like_weights
from sttabt.backbones.inputs import check_finite, check_images, unreadable_images
from sttabt.backbones.layers import EncoderLayer
from sttabt.backbones.patches import embed_picked, example_images, mean_of
from sttabt.backbones.repeated import Repeated, has_hooks
from sttabt.backbones.slicing import gated, is_sliceable, linear
from sttabt.backbones.vit_configuration import timm_configuration, timm_model
from sttabt.core.cost import Architecture
from sttabt.errors import UserError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

SHOWN = 3  # problems in a message
QKV = ("query", "key", "value")  # the order in timm's fused projection
POOLS = ("token", "avg", "map")  # of timm's `global_pool`: the class token, the mean of the patches, attention to them
GONE = -1e4  # added to a score, leaves a probability of 0 in every precision


class ViT(Backbone):
    """Wraps a live timm module, so that its pretrained weights, its own forward and its state names stay usable.

    Inputs are images (B, C, height, width). Raises UserError for a variant whose computation this adapter would not
    reproduce.
    """

    serves: ClassVar[tuple[str, ...]] = (
        "timm.models.vision_transformer.VisionTransformer",
        "timm.models.deit.VisionTransformerDistilled",
    )
    head_prefixes: tuple[str, ...] = ("head.", "head_dist.")

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model
        self.check()
        self._refuse_unsupported()
        self.pools = self.reads_survivors = model.global_pool != "token"
        pool: Any = model.attn_pool
        block, projection = self._block(0), model.patch_embed.proj
        self.architecture = Architecture(
            layers=len(model.blocks),
            width=model.embed_dim,
            heads=block.attn.num_heads,
            feed_forward=block.mlp.fc1.out_features,
            classes=model.num_classes,
            patch_inputs=projection.weight[0].numel(),
            classifiers=2 if hasattr(model, "head_dist") else 1,
            pool_feed_forward=0 if pool is None else pool.mlp.fc1.out_features,
            pool_skips=model.num_prefix_tokens,
        )
        self.outputs = model.num_prefix_tokens

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        import timm

        def example(channels: int = 3, size: int = 32, factor: int = 2, **arguments: Any) -> Example:
            sizes = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, **arguments}
            name = sizes.pop("name", "vit_tiny_patch16_224")
            model: Any = timm.create_model(name, num_classes=5, in_chans=channels, img_size=size, **sizes)
            return Example(cls(model), example_images(channels, size), factor)

        registers: dict[str, Any] = {"init_values": 0.5, "reg_tokens": 2, "no_embed_class": True}
        pooled: dict[str, Any] = {"global_pool": "avg", "class_token": False}
        return {
            "test_vit": partial(example, name="test_vit", embed_dim=64, depth=6),
            "digits": partial(example, 1, 28, 4, patch_size=4, embed_dim=48, num_heads=3),
            "no_bias": partial(example, size=24, depth=2, qkv_bias=False),
            "layer_scale_registers": partial(example, factor=4, **registers),
            "distilled": partial(example, name="deit_tiny_distilled_patch16_224"),
            "mean_of_patches": partial(example, depth=2, **pooled, reg_tokens=1),
            "attention_pool": partial(example, depth=2, **pooled | {"global_pool": "map"}),
        }

    def configuration(self) -> dict[str, Any]:
        """As timm's config.json; `model_args` are all arguments, whatever the architecture's own are."""
        return timm_configuration(self.model, self.architecture)

    @classmethod
    def rebuilt(cls, configuration: Mapping[str, Any]) -> Self:
        return cls(timm_model(configuration))

    @property
    def tokens(self) -> int:
        rows, columns = self.grid
        return rows * columns + self.outputs

    @property
    def grid(self) -> tuple[int, int]:
        return self.model.patch_embed.grid_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width = self.model.patch_embed.img_size
        return self.model.in_chans, height, width

    def grid_of(self, inputs: Tensor) -> tuple[int, int]:
        """Rows and columns of patches; of another image size where the model was made with `dynamic_img_size`.

        Raises UserError for images of another size where it was not, or of parts of patches.
        """
        patches, (height, width) = self.model.patch_embed, inputs.shape[-2:]
        if not self.model.dynamic_img_size:
            if (height, width) != patches.img_size:
                raise UserError(
                    f"images are {height}x{width} pixels, but the model reads {patches.img_size[0]}x"
                    f"{patches.img_size[1]}: resize them, or make the model with dynamic_img_size=True"
                )
            return patches.grid_size
        rows, columns = patches.patch_size
        if not patches.dynamic_img_pad and (height % rows or width % columns):
            raise UserError(f"images are {height}x{width} pixels, which patches of {rows}x{columns} do not divide")
        return patches.dynamic_feat_size((height, width))

    def repeated(self) -> Iterator[Repeated]:
        from timm.layers import AttentionPoolLatent, Mlp
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.vision_transformer import Attention, Block, VisionTransformer

        yield Repeated("the model", self.model, (VisionTransformer, VisionTransformerDistilled))
        yield Repeated("blocks", self.model.blocks, (nn.Sequential,))
        for place, block in enumerate(self.model.blocks):
            yield Repeated(f"blocks.{place}", block, (Block,))
            yield Repeated(f"blocks.{place}.attn", block.attn, (Attention,))
            yield Repeated(f"blocks.{place}.attn.attn_drop", block.attn.attn_drop, (nn.Dropout,))
            yield Repeated(f"blocks.{place}.mlp", block.mlp, (Mlp,))
        if self.model.attn_pool is not None:
            yield Repeated("attn_pool", self.model.attn_pool, (AttentionPoolLatent,))

    def read_call(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Finish]:
        """As timm's model is called: with images alone, by position or as `x`; it gives logits (B, classes)."""
        self.check_call()
        given = dict(zip(("x", "attn_mask", "is_causal"), args, strict=False)) | kwargs
        images = given.pop("x", None)
        if images is None or len(args) > 3:
            raise UserError("a pruned ViT is called with images (B, C, height, width) alone, by position")
        for name, value in given.items():
            if value is not None and value is not False:
                raise UserError(f"a pruned model does not take {name}: leave it out")
        return images, lambda logits: logits

    def check_inputs(self, inputs: Any) -> None:
        check_images(inputs, self.model.in_chans, self.model.pos_embed)
        self.grid_of(inputs)

    def check_numbers(self, inputs: Tensor) -> None:
        check_finite(inputs)

    def unreadable(self, inputs: Tensor) -> Tensor | None:
        return unreadable_images(inputs)

    def attention_dropout(self, layer: int) -> float:
        """timm's fused attention asks the attention whether it is training, the other one its dropout."""
        attention = self._block(layer).attn
        asked = attention if attention.fused_attn else attention.attn_drop
        return attention.attn_drop.p if asked.training else 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        """timm's own dense forward: the baseline that speed is measured against."""
        return self.model(inputs)

    def real(self, inputs: Tensor) -> Tensor:
        rows, columns = self.grid_of(inputs)
        return torch.ones(inputs.shape[0], rows * columns + self.outputs, dtype=torch.bool, device=inputs.device)

    def embed(self, inputs: Any) -> Tensor:
        self._refuse_patch_dropout()
        places = self._places(self.grid_of(inputs))
        patches = self.model.patch_embed(inputs).flatten(1, -2)
        prefix = places[: self.outputs].expand(patches.shape[0], -1, -1)
        x = torch.cat([prefix, patches + places[self.outputs :]], 1)
        return self.model.norm_pre(self.model.pos_drop(x))

    def embed_tokens(self, inputs: Tensor, sample: Tensor, token: Tensor) -> Tensor:
        self._refuse_patch_dropout()
        grid = self.grid_of(inputs)
        if self.embeds_whole:
            return self.embed(inputs)[sample, token]
        patches = self.model.patch_embed
        if patches.dynamic_img_pad:
            below, right = (-side % patch for side, patch in zip(inputs.shape[-2:], patches.patch_size, strict=True))
            inputs = F.pad(inputs, (0, right, 0, below))
        return self._embed_patches(inputs, grid, sample, token)

    @property
    def embeds_whole(self) -> bool:
        patches = self.model.patch_embed
        return type(patches.proj) is not nn.Conv2d or any(map(has_hooks, (patches, patches.norm, patches.proj)))

    def _embed_patches(self, pixels: Tensor, grid: tuple[int, int], sample: Tensor, token: Tensor) -> Tensor:
        """`embed_tokens` of an image (B, C, height, width) of which each patch is projected by itself."""
        model = self.model
        x = embed_picked(pixels, grid, sample, token, self.outputs, model.patch_embed.proj, self._places(grid))
        return model.norm_pre(model.pos_drop(x))

    def _places(self, grid: tuple[int, int]) -> Tensor:
        """What a patch is added to, (N, D): the position embedding of this grid, and the prefix tokens in front."""
        from timm.layers import resample_abs_pos_embed

        model: Any = self.model
        names = ("cls_token", "dist_token", "reg_token")
        tokens = [token[0] for name in names if (token := getattr(model, name, None)) is not None]
        position = model.pos_embed
        # Asked here: timm puts a resampling into an exported graph all the same, an operator that ExecuTorch lacks.
        if tuple(grid) != tuple(self.grid):
            own = 0 if model.no_embed_class else self.outputs
            position = resample_abs_pos_embed(position, list(grid), list(self.grid), own)
        if not tokens:
            return position[0]
        prefix = torch.cat(tokens)
        if model.no_embed_class:
            return torch.cat([prefix, position[0]])
        return torch.cat([prefix + position[0, : self.outputs], position[0, self.outputs :]])

    def qkv(self, layer: int, x: Tensor, written: Rows | None = None) -> tuple[Tensor, Tensor, Tensor]:
        attention, width = self._block(layer).attn, self.architecture.width
        projection, x = attention.qkv, self._block(layer).norm1(x)
        if written is None or not is_sliceable(projection):
            query, key, value = projection(x).split(width, dim=-1)
            query = query if written is None else written(query)
        else:
            key, value = linear(projection, x, slice(width, None)).split(width, dim=-1)
            query = linear(projection, written(x), slice(width))
        return self._normed(attention.q_norm, query), self._normed(attention.k_norm, key), value

    def queries_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        block, width = self._block(layer), self.architecture.width
        query, key = linear(block.attn.qkv, block.norm1(x), slice(2 * width)).split(width, dim=-1)
        return self._normed(block.attn.q_norm, query), self._normed(block.attn.k_norm, key)

    def _normed(self, norm: nn.Module, rows: Tensor) -> Tensor:
        """Queries or keys (..., D), each head normed by itself."""
        if isinstance(norm, nn.Identity):
            return rows
        return norm(rows.unflatten(-1, (self.heads, -1))).flatten(-2)

    @property
    def projects_whole(self) -> bool:
        return not all(is_sliceable(block.attn.qkv) for block in self.model.blocks)

    def project(self, layer: int, x: Tensor, attended: Tensor, gate: Tensor | None = None) -> Tensor:
        block = self._block(layer)
        return x + block.drop_path1(block.ls1(gated(block.attn.proj_drop(block.attn.proj(attended)), gate)))

    def feed_forward(self, layer: int, x: Tensor, gate: Tensor | None = None) -> Tensor:
        block, mlp = self._block(layer), self._block(layer).mlp
        hidden = mlp.drop1(mlp.act(gated(mlp.fc1(block.norm2(x)), gate)))
        return x + block.drop_path2(block.ls2(gated(mlp.drop2(mlp.fc2(hidden)), gate)))

    def encoder_layers(self) -> list[EncoderLayer] | None:
        """None where queries and keys have norms."""
        if not all(_is_plain(block.attn) for block in self.model.blocks):
            return None
        return [
            EncoderLayer(
                block,
                (block.attn.qkv,),
                block.attn.proj,
                block.mlp.fc1,
                block.mlp.act,
                block.mlp.fc2,
                block.norm1,
                block.norm2,
                norm_first=True,
                dropouts=(block.attn.proj_drop, block.mlp.drop1, block.mlp.drop2, block.drop_path1, block.drop_path2),
                scales=(block.ls1, block.ls2),
            )
            for block in self.model.blocks
        ]

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        model = self.model
        if not self.pools:
            return model.forward_head(model.norm(x[:, : self.outputs]))
        rows = model.norm(x[:, self.outputs :])
        return model.head(model.head_drop(model.fc_norm(self._pool(rows, alive))))

    def _pool(self, rows: Tensor, alive: Tensor | None) -> Tensor:
        """One vector a sample, (B, D), of its patches (B, n, D) that are left; alive: as in `head`."""
        pool, here = self.model.attn_pool, None if alive is None else alive[:, self.outputs :]
        if pool is not None:
            bias = None
            if here is not None:
                bias = torch.zeros_like(rows[..., 0]).masked_fill(~here, GONE)[:, None, None]
            return pool(rows, attn_mask=bias)
        return mean_of(rows, here)

    def embeddings(self) -> list[nn.Parameter]:
        names = ("cls_token", "dist_token", "reg_token", "pos_embed")
        return [parameter for name, parameter in self.model.named_parameters() if name in names]

    def narrow(self, factor: int, share_stem: bool = False) -> ViT:
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.vision_transformer import VisionTransformer

        model, block, sizes = self.model, self._block(0), self.architecture
        kind = VisionTransformerDistilled if hasattr(model, "dist_token") else VisionTransformer
        norm = cast(Callable[..., nn.Module], type(block.norm1))
        check_factor(sizes, factor)
        pooled: dict[str, Any] = {}
        if self.pools:
            pooled = {
                "global_pool": model.global_pool,
                "class_token": model.has_class_token,
                "fc_norm": not isinstance(model.fc_norm, nn.Identity),
            }
        narrow = kind(
            img_size=model.patch_embed.img_size,
            patch_size=model.patch_embed.patch_size,
            in_chans=model.in_chans,
            num_classes=model.num_classes,
            embed_dim=sizes.width // factor,
            depth=sizes.layers,
            num_heads=sizes.heads,
            mlp_ratio=sizes.feed_forward / sizes.width,
            qkv_bias=block.attn.qkv.bias is not None,
            init_values=None if isinstance(block.ls1, nn.Identity) else 1.0,
            no_embed_class=model.no_embed_class,
            reg_tokens=model.num_reg_tokens,
            pre_norm=not isinstance(model.norm_pre, nn.Identity),
            dynamic_img_size=model.dynamic_img_size,
            dynamic_img_pad=model.patch_embed.dynamic_img_pad,
            norm_layer=partial(norm, eps=block.norm1.eps),
            act_layer=type(block.mlp.act),
            qk_norm=not isinstance(block.attn.q_norm, nn.Identity),
            proj_bias=block.attn.proj.bias is not None,
            **pooled,
        )
        return like_weights(ViT(narrow), model.blocks)

    def _block(self, layer: int) -> Any:
        return self.model.blocks[layer]

    def parts(self, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        return split_qkv(super().parts(values))

    def _refuse_unsupported(self) -> None:
        model, first = self.model, self._block(0)
        patches = model.patch_embed
        problems = {
            f"global_pool={model.global_pool!r} instead of {' or '.join(map(repr, POOLS))}": model.global_pool
            not in POOLS,
            "prefix tokens in what is pooled": model.pool_include_prefix and model.num_prefix_tokens > 0,
            f"a patch embedding of kind {type(patches).__name__} instead of PatchEmbed": not self._takes_patches(
                patches
            ),
            "a norm in the patch embedding": not isinstance(getattr(patches, "norm", None), nn.Identity | None),
            "no position embedding": model.pos_embed is None,
        }
        for place, block in enumerate(model.blocks):
            attention, mlp = block.attn, block.mlp
            here = {
                "query and key norms unlike the first block": _is_plain(attention) != _is_plain(first.attn),
                "a norm inside attention": not isinstance(attention.norm, nn.Identity),
                "gated attention": attention.gate is not None,
                "a norm inside the feed-forward": not isinstance(mlp.norm, nn.Identity),
                "heads of another width": (attention.num_heads, attention.attn_dim)
                != (first.attn.num_heads, model.embed_dim),
                "a feed-forward of another width": mlp.fc1.out_features != first.mlp.fc1.out_features,
            }
            problems |= {f"{what} (blocks.{place})": present for what, present in here.items()}
        found = [what for what, present in problems.items() if present]
        if found:
            more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise UserError(f"this vision transformer cannot be pruned: it has {', '.join(found[:SHOWN])}{more}")

    def _refuse_patch_dropout(self) -> None:
        """Patches dropped at random do nothing in evaluation; a plan cannot know of them."""
        if self.model.patch_drop.training and not isinstance(self.model.patch_drop, nn.Identity):
            raise UserError("patch_drop drops patches at random in training: set model.patch_drop = nn.Identity()")

    def _takes_patches(self, module: nn.Module) -> bool:
        """Whether the patch embedding is one that `embed_tokens` can compute patch by patch."""
        from timm.layers import PatchEmbed

        return type(module) is PatchEmbed


def _is_plain(attention: Any) -> bool:
    """Whether its queries and keys have no norms."""
    return isinstance(attention.q_norm, nn.Identity) and isinstance(attention.k_norm, nn.Identity)


def split_qkv(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values by timm's names, `attn.qkv.` taken apart into views under `attn.query.`, `attn.key.` and `attn.value.`."""
    parts: dict[str, Tensor] = {}
    for name, value in values.items():
        block, fused, kind = name.partition("attn.qkv.")
        if fused:
            pieces = zip(QKV, value.chunk(3), strict=True)
            parts |= {f"{block}attn.{part}.{kind}": piece for part, piece in pieces}
        else:
            parts[name] = value
    return parts
