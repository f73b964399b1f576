"""The vision transformer cases of `sttabt.parity`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sttabt.approx import ApproximationWeights
from sttabt.backbones.vit import ViT
from sttabt.errors import UserError, nearest
from sttabt.parity import Check
from sttabt.parity_case import Case, check_quantities

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
WEIGHTS = {"kldiv": ApproximationWeights(), "tinybert": ApproximationWeights(attention=10.0)}


def check_vit(folder: Path, meta: dict[str, Any]) -> Iterator[Check]:
    """Every quantity of a case whose `arch` is vit."""
    return check_quantities(vit_case(folder, meta))


def vit_case(folder: Path, meta: dict[str, Any]) -> Case:
    """The case in `folder`, whose `arch` is vit."""
    return Case(folder, meta, _base(meta["config"]), lambda vectors: vectors["input.pixel_values"], "vit.", WEIGHTS)


def _base(config: dict[str, Any]) -> ViT:
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(f"config.hidden_act={activation} is unknown: {nearest(activation, ACTIVATIONS)}")
    return ViT(
        VisionTransformer(
            img_size=config["image_size"],
            patch_size=config["patch_size"],
            in_chans=config.get("num_channels", 3),
            num_classes=config["num_labels"],
            embed_dim=config["hidden_size"],
            depth=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            mlp_ratio=config["intermediate_size"] / config["hidden_size"],
            qkv_bias=config.get("qkv_bias", True),
            norm_layer=partial(nn.LayerNorm, eps=config["layer_norm_eps"]),
            act_layer=ACTIVATIONS[activation],
        )
    )
