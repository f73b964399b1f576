"""timm's VisionTransformer (ViT, DeiT): pre-norm, fused projections, class token."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Attention, Block, Mlp, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from sttabt import native
from sttabt.backbones.base import Backbone, Rows, check_factor
from sttabt.backbones.slicing import deferred, gated, linear, linear_activated
from sttabt.core.cost import Architecture
from sttabt.errors import UserError, nearest
from sttabt.pretrained.hub import use_hub
from sttabt.pretrained.vit_names import from_official, is_official, to_official
from sttabt.pretrained.weights import load_views

MODULES = ("vision_transformer", "deit")  # of timm, whose models are VisionTransformers
ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")  # timm's prefixes of a hub id and of a folder, with their own config

log = logging.getLogger(__name__)


class ViT(Backbone):
    """Wraps a live timm module, so that its pretrained weights, its own forward and its state names stay usable.

    Raises UserError for a variant whose computation this adapter would not reproduce.
    """

    head_prefixes: tuple[str, ...] = ("head.", "head_dist.")
    own_start: tuple[str, ...] = ("classifier.", "cls_classifier.", "distillation_classifier.")

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        _refuse_unsupported(model)
        self.model = model
        block, projection = self._block(0), model.patch_embed.proj
        self.architecture = Architecture(
            layers=len(model.blocks),
            width=model.embed_dim,
            heads=block.attn.num_heads,
            feed_forward=block.mlp.fc1.out_features,
            classes=model.num_classes,
            patch_inputs=projection.weight[0].numel(),
            classifiers=2 if hasattr(model, "head_dist") else 1,
        )
        self.outputs = model.num_prefix_tokens
        self.grid = model.patch_embed.grid_size
        self.tokens = self.grid[0] * self.grid[1] + self.outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """timm's own dense forward: the baseline that speed is measured against."""
        return self.model(inputs)

    def real(self, inputs: Tensor) -> Tensor:
        return torch.ones(inputs.shape[0], self.tokens, dtype=torch.bool, device=inputs.device)

    def embed(self, inputs: Tensor) -> Tensor:
        return self.model.norm_pre(self.model._pos_embed(self.model.patch_embed(inputs)))

    def embed_tokens(self, inputs: Tensor, sample: Tensor, token: Tensor) -> Tensor:
        return self._embed_patches(inputs, sample, token)

    def _embed_patches(self, pixels: Tensor, sample: Tensor, token: Tensor) -> Tensor:
        """`embed_tokens` of an image (B, C, height, width) of which each patch is projected by itself."""
        model, (rows, columns), width = self.model, self.grid, self.architecture.width
        shape = (1, rows, columns, width) if model.dynamic_img_size else (1, rows * columns, width)
        # Position embedding of an empty image: the prefix tokens as they are, and every patch's position.
        x = model._pos_embed(pixels.new_zeros(shape))[0, token]
        patches = pixels.unflatten(2, (rows, -1)).unflatten(4, (columns, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        # The few prefix tokens pick a patch too, whose embedding is not added: no shape depends on who is kept.
        picked = patches[sample, (token - self.outputs).clamp_min(0)].flatten(1)
        projection = model.patch_embed.proj
        patch = F.linear(picked, projection.weight.flatten(1), projection.bias)
        x = torch.where((token >= self.outputs)[:, None], x + patch, x)
        return model.norm_pre(x)

    def qkv(self, layer: int, x: Tensor, written: Rows | None = None) -> tuple[Tensor, Tensor, Tensor]:
        projection, width = self._block(layer).attn.qkv, self.architecture.width
        x, norm = deferred(self._block(layer).norm1, projection, x)
        if written is None:
            query, key, value = linear(projection, x, norm=norm).split(width, dim=-1)
            return query, key, value
        key, value = linear(projection, x, slice(width, None), norm=norm).split(width, dim=-1)
        return linear(projection, written(x), slice(width), norm=norm), key, value

    def queries_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        block, width = self._block(layer), self.architecture.width
        query, key = linear(block.attn.qkv, x, slice(2 * width), norm=block.norm1).split(width, dim=-1)
        return query, key

    def project(self, layer: int, x: Tensor, attended: Tensor, gate: Tensor | None = None) -> Tensor:
        block = self._block(layer)
        if gate is None and _is_plain(block, block.ls1):
            return linear(block.attn.proj, attended, residual=x)
        return x + block.drop_path1(block.ls1(gated(block.attn.proj_drop(block.attn.proj(attended)), gate)))

    def feed_forward(self, layer: int, x: Tensor, gate: Tensor | None = None) -> Tensor:
        block, mlp = self._block(layer), self._block(layer).mlp
        hidden = mlp.drop1(linear_activated(mlp.fc1, mlp.act, x, gate, block.norm2))
        if gate is None and _is_plain(block, block.ls2):
            return linear(mlp.fc2, hidden, residual=x)
        return x + block.drop_path2(block.ls2(gated(mlp.drop2(mlp.fc2(hidden)), gate)))

    def _native_layer(self, layer: int) -> native.Layer | None:
        block = self._block(layer)
        attention, mlp = block.attn, block.mlp
        if not (_is_plain(block, block.ls1) and _is_plain(block, block.ls2)):
            return None
        norms = block.norm1, block.norm2
        idle = attention.proj_drop, mlp.drop1, mlp.drop2, block.drop_path1, block.drop_path2
        return native.Layer((attention.qkv,), attention.proj, mlp.fc1, mlp.act, mlp.fc2, *norms, idle, norm_first=True)

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return self.model.forward_head(self.model.norm(x[:, : self.outputs]))

    def embeddings(self) -> list[nn.Parameter]:
        names = ("cls_token", "dist_token", "reg_token", "pos_embed")
        return [parameter for name, parameter in self.model.named_parameters() if name in names]

    def narrow(self, factor: int, share_stem: bool = False) -> ViT:
        model, block, sizes = self.model, self._block(0), self.architecture
        kind = cast(Callable[..., VisionTransformer], type(model))
        norm = cast(Callable[..., nn.Module], type(block.norm1))
        check_factor(sizes, factor)
        return ViT(
            kind(
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
                norm_layer=partial(norm, eps=block.norm1.eps),
                act_layer=type(block.mlp.act),
            )
        )

    def _block(self, layer: int) -> Any:
        return self.model.blocks[layer]

    def official_names(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return to_official(values)

    def from_released(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return from_official(state) if is_official(state) else dict(state)

    def fit_positions(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Resizes by bicubic interpolation what was learned at another image size; logs a warning."""
        state, model = dict(state), self.model
        here, there = model.pos_embed, state.get("pos_embed")
        prefix = 0 if model.no_embed_class else self.outputs
        if there is None or there.shape == here.shape or there.ndim != 3 or there.shape[2] != here.shape[2]:
            return state
        side = math.isqrt(there.shape[1] - prefix)
        if side**2 + prefix != there.shape[1]:
            return state  # not of a square image: it will not fit
        rows, columns = self.grid
        state["pos_embed"] = resample_abs_pos_embed(there.float(), [rows, columns], [side, side], prefix)
        warn_of_positions((side, side), (rows, columns))
        return state

    def official_state(self) -> dict[str, Tensor]:
        return self.official_names(self.model.state_dict())

    def load_official_state(self, state: Mapping[str, Tensor]) -> None:
        load_views(state, self.official_state())


def build_vit(
    name: str, arguments: dict, classes: int, channels: int, image_size: int, pretrained: bool = False
) -> ViT:
    """A timm VisionTransformer by name, hub id (`hf-hub:`) or folder (`local-dir:`).

    `arguments` go to timm.create_model on top of the data set's sizes.
    Raises UserError when timm does not know the name, when it is another kind of model, or when the pretrained weights
    are neither on this machine nor to be had from the hub.
    """
    setting, architecture = f"model.timm={name}", name.split(".")[0]
    known = [known for module in MODULES for known in timm.list_models(module=module)]
    if not name.startswith(ELSEWHERE) and architecture not in known:
        raise UserError(f"{setting} is not a ViT or DeiT of timm {timm.__version__}: {nearest(architecture, known)}")
    if pretrained or name.startswith(ELSEWHERE):
        use_hub()  # an unreachable one is then not asked again and again
    try:
        model: Any = timm.create_model(
            name, pretrained=pretrained, num_classes=classes, in_chans=channels, img_size=image_size, **arguments
        )
    except TypeError as error:
        raise UserError(f"model.arguments={arguments} do not fit {setting}: {error}") from error
    except (OSError, HfHubHTTPError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        if "Invalid pretrained tag" in reason:
            raise UserError(f"{setting}: {reason} {nearest(name, timm.list_pretrained(f'{architecture}*'))}") from error
        if isinstance(error, RuntimeError) and "No pretrained weights" not in reason:
            raise
        raise UserError(
            f"{setting}: its weights are not on this machine and could not be fetched: load them once with a network"
            f" (they are kept in HF_HOME), or set model.pretrained=false model.checkpoint=FILE ({reason})"
        ) from error
    if not isinstance(model, VisionTransformer):
        raise UserError(f"{setting} is a {type(model).__name__}, which cannot be pruned here: choose a ViT or DeiT")
    base = ViT(model)
    if pretrained:
        given: Any = model.pretrained_cfg
        base.head_is_new = given["num_classes"] != classes
        base.normalised_by = tuple(given["mean"]), tuple(given["std"])
        trained_at = given["input_size"][-1]
        if trained_at != image_size:  # timm has resized it
            height, length = model.patch_embed.patch_size
            warn_of_positions((trained_at // height, trained_at // length), base.grid)
    return base


def warn_of_positions(there: tuple[int, int], here: tuple[int, int]) -> None:
    """Say that a position embedding was resized, from and to rows and columns of patches."""
    log.warning(
        "the weights' position embedding is resized from %dx%d to %dx%d patches: they were trained at another image"
        " size, so that accuracy is only what it was after fine-tuning at this one",
        *there,
        *here,
    )


def _is_plain(block: Any, scale: nn.Module) -> bool:
    """Whether a branch goes into its residual as it is: no layer scale, no dropout and no dropped path at work."""
    return not block.training and isinstance(scale, nn.Identity)


def _refuse_unsupported(model: VisionTransformer) -> None:
    block: Any = model.blocks[0]
    attention = block.attn
    problems = {
        "no class token": not model.has_class_token,
        f"global_pool={model.global_pool!r} instead of 'token'": model.global_pool != "token",
        f"blocks of kind {type(block).__name__}": type(block) is not Block,
        f"attention of kind {type(attention).__name__}": type(attention) is not Attention,
        f"feed-forward of kind {type(block.mlp).__name__}": type(block.mlp) is not Mlp,
        "query and key norms": not isinstance(attention.q_norm, nn.Identity),
        "a norm inside attention": not isinstance(attention.norm, nn.Identity),
        "gated attention": attention.gate is not None,
        "a norm inside the feed-forward": not isinstance(block.mlp.norm, nn.Identity),
        "attention dropout": attention.attn_drop.p > 0,
        "patch dropout": not isinstance(model.patch_drop, nn.Identity),
        "a norm in the patch embedding": not isinstance(model.patch_embed.norm, nn.Identity),
        "no position embedding": model.pos_embed is None,
    }
    found = [what for what, present in problems.items() if present]
    if found:
        raise UserError(f"this vision transformer cannot be pruned: it has {', '.join(found)}")
