"""A VisionTransformer of timm as a configuration, and again: what JSON can say of any of those that are pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from sttabt.core.cost import Architecture
from sttabt.errors import UserError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def timm_configuration(model: Any, sizes: Architecture) -> dict[str, Any]:
    """As timm's config.json; `model_args` are all arguments, whatever the architecture's own are.

    Raises UserError for a norm or an activation that has no name there.
    """
    block, last = model.blocks[0], model.blocks[-1]
    kinds = {"norm": _name_of(block.norm1, "norms"), "activation": _name_of(block.mlp.act, "activations")}
    return {
        "architecture": (getattr(model, "pretrained_cfg", None) or {}).get("architecture", "vit_base_patch16_224"),
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.global_pool,
        "layers": {**kinds, "norm_eps": block.norm1.eps, "distilled": hasattr(model, "dist_token")},
        "model_args": {
            "img_size": list(model.patch_embed.img_size),
            "patch_size": list(model.patch_embed.patch_size),
            "in_chans": model.in_chans,
            "embed_dim": sizes.width,
            "depth": sizes.layers,
            "num_heads": sizes.heads,
            "mlp_ratio": sizes.feed_forward / sizes.width,
            "qkv_bias": block.attn.qkv.bias is not None,
            "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
            "proj_bias": block.attn.proj.bias is not None,
            "init_values": None if isinstance(block.ls1, nn.Identity) else 1.0,
            "class_token": model.has_class_token,
            "no_embed_class": model.no_embed_class,
            "reg_tokens": model.num_reg_tokens,
            "pre_norm": not isinstance(model.norm_pre, nn.Identity),
            "final_norm": not (isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity)),
            "fc_norm": not isinstance(model.fc_norm, nn.Identity),
            "dynamic_img_size": model.dynamic_img_size,
            "dynamic_img_pad": model.patch_embed.dynamic_img_pad,
            "drop_rate": model.head_drop.p,
            "pos_drop_rate": model.pos_drop.p,
            "proj_drop_rate": block.attn.proj_drop.p,
            "attn_drop_rate": block.attn.attn_drop.p,
            "drop_path_rate": getattr(last.drop_path1, "drop_prob", 0.0) or 0.0,
        },
    }


def timm_model(configuration: Mapping[str, Any]) -> VisionTransformer:
    """The model of a configuration, random weights. Raises whatever a configuration that is none leads to."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    layers = configuration["layers"]
    kind: Any = VisionTransformerDistilled if layers["distilled"] else VisionTransformer
    sizes = {name: tuple(v) if isinstance(v, list) else v for name, v in configuration["model_args"].items()}
    norm = cast(Callable[..., nn.Module], _layer_kinds("norms")[layers["norm"]])
    return kind(
        num_classes=configuration["num_classes"],
        global_pool=configuration["global_pool"],
        norm_layer=partial(norm, eps=layers["norm_eps"]),
        act_layer=_layer_kinds("activations")[layers["activation"]],
        **sizes,
    )


def _layer_kinds(of: str) -> dict[str, type[nn.Module]]:
    """The kinds of layers by the names that configurations have for them."""
    import timm.layers

    if of == "norms":
        return {"layer_norm": nn.LayerNorm, "timm_layer_norm": timm.layers.LayerNorm}
    own: dict[str, type[nn.Module]] = {"quick_gelu": timm.layers.QuickGELU, "gelu_tanh": timm.layers.GELUTanh}
    return {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, **own}


def _name_of(layer: nn.Module, of: str) -> str:
    """Raises UserError for a kind that has none."""
    for name, kind in _layer_kinds(of).items():
        if type(layer) is kind:
            return name
    raise UserError(f"a model whose {of} are {type(layer).__name__} cannot be saved: its configuration has no such")
