"""A ViT or a distilled DeiT in transformers' format, from the Hugging Face hub or from a local folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import AutoConfig, DeiTConfig, ViTConfig

from sttabt.backbones.vit import ViT
from sttabt.errors import UserError, nearest
from sttabt.pretrained.built import Built, Normalisation
from sttabt.pretrained.hub import use_hub
from sttabt.pretrained.reading import quiet_library, read_hub
from sttabt.pretrained.weights import load_weights

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

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
            f"model.huggingface={huggingface} is a {config.model_type}, not a vision transformer: choose a ViT or DeiT"
        )
    for name in arguments:
        raise UserError(f"model.arguments.{name}: model.huggingface says what the model is, give none")
    base = ViT(vit_of_config(config.to_dict(), classes, channels, image_size))
    if not pretrained:
        return Built(base)
    normalised_by = _normalisation(huggingface)
    file = read_hub(huggingface, lambda: _weight_file(huggingface))
    return Built(base, load_weights(base, file, "model.huggingface", new_head=True), normalised_by)


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


def _weight_file(huggingface: str) -> Path:
    for name in WEIGHT_FILES:
        if found := _file(huggingface, name):
            return found
    raise OSError(f"it has none of {', '.join(WEIGHT_FILES)}")


def _file(huggingface: str, name: str) -> Path | None:
    folder = Path(huggingface)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(huggingface, name))
    except EntryNotFoundError:
        return None


def _normalisation(huggingface: str) -> Normalisation | None:
    """Mean and std of the images that the weights were trained on, where a file says so."""
    found = _file(huggingface, "preprocessor_config.json")
    if found is None:
        log.warning("model.huggingface=%s does not say how its images were normalised: see model.mean", huggingface)
        return None
    values = json.loads(found.read_text(encoding="utf-8"))
    return tuple(values["image_mean"]), tuple(values["image_std"])
