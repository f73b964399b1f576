"""A ViT or a distilled DeiT in transformers' format, from the Hugging Face hub or from a local folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import AutoConfig, DeiTConfig, ViTConfig

from sttabt.backbones.vit import ViT
from sttabt.errors import UserError, nearest
from sttabt.pretrained.built import Built, Normalisation
from sttabt.pretrained.classes import configured_names
from sttabt.pretrained.hub import use_hub
from sttabt.pretrained.jsons import read_json
from sttabt.pretrained.reading import hub_file, hub_weights, quiet_library, read_hub
from sttabt.pretrained.weights import load_released

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
PREPROCESSOR = "preprocessor_config.json"

log = logging.getLogger(__name__)


def build_huggingface_vit(
    huggingface: str, arguments: Mapping[str, Any], classes: int, channels: int, image_size: int, pretrained: bool
) -> Built:
    """timm's module with the sizes, and `pretrained` the weights, of a hub id or local folder.

    Weights without a head of these classes get a fresh one. Raises UserError when nothing can be read
    there, when it is another kind of model, or when any other weight does not fit.
    """
    use_hub()
    with quiet_library():
        config = read_hub(huggingface, lambda: AutoConfig.from_pretrained(huggingface, trust_remote_code=False))
    if type(config) not in (ViTConfig, DeiTConfig):
        raise UserError(
            f"model.huggingface={huggingface} is a {config.model_type}, and a run builds ViT and DeiT alone: choose"
            " one of them, or prune that model in Python with sttabt.prune"
        )
    for name in arguments:
        raise UserError(f"model.arguments.{name}: model.huggingface says what the model is, give none")
    source = f"model.huggingface={huggingface}"
    base = read_hub(huggingface, lambda: ViT(vit_of_config(config.to_dict(), classes, channels, image_size)))
    if not pretrained:
        return Built(base)
    normalised_by = _normalisation(huggingface)
    new_head = load_released(base, hub_weights(huggingface), source, new_head=True)
    return Built(base, new_head, normalised_by, configured_names(config.to_dict(), source))


def vit_of_config(config: Mapping[str, Any], classes: int, channels: int, image_size: int) -> VisionTransformer:
    """timm's module with the sizes of a transformers config (`hidden_size`, ...), random weights."""
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(f"config.hidden_act={activation} is unknown: {nearest(activation, ACTIVATIONS)}")
    kind = VisionTransformerDistilled if config.get("model_type") == "deit" else VisionTransformer
    return kind(
        img_size=image_size,
        patch_size=config["patch_size"],
        in_chans=channels,
        num_classes=classes,
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        qkv_bias=config.get("qkv_bias", True),
        norm_layer=partial(nn.LayerNorm, eps=config["layer_norm_eps"]),
        act_layer=ACTIVATIONS[activation],
    )


def _normalisation(huggingface: str) -> Normalisation | None:
    """Mean and std of the images that the weights were trained on, where a file says so."""
    found = read_hub(huggingface, lambda: hub_file(huggingface, PREPROCESSOR))
    source = f"model.huggingface={huggingface}"
    values = read_json(found, source) if found else {}
    if values.get("do_normalize") is False:
        return None  # nothing that could be compared
    mean, std = (values.get(name) for name in ("image_mean", "image_std"))
    if mean is None or std is None:
        lacks = "image_mean and image_std" if found else PREPROCESSOR
        log.warning("%s does not say how its images were normalised (no %s): see model.mean", source, lacks)
        return None
    for name, numbers in (("image_mean", mean), ("image_std", std)):
        valid = isinstance(numbers, list) and numbers and all(map(_is_number, numbers))
        if not valid or len(numbers) != len(mean) or (name == "image_std" and min(numbers) <= 0):
            raise UserError(f"{source}: {name}={numbers} in {found} is not a number a channel: mend the file")
    return tuple(map(float, mean)), tuple(map(float, std))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
