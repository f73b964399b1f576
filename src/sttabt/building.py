"""The base model that the settings ask for."""

from __future__ import annotations

import math

from sttabt.backbones.base import Backbone
from sttabt.backbones.vit import build_vit
from sttabt.errors import UserError
from sttabt.settings import ModelSettings


def build_base(model: ModelSettings, classes: int, channels: int, image_size: int, pretrained: bool) -> Backbone:
    """Raises UserError when the model is not what the settings, which checks rely on, say that it is."""
    base = build_vit(model.timm, dict(model.arguments), classes, channels, image_size, pretrained)
    built = {
        "width": base.architecture.width,
        "depth": base.layers,
        "heads": base.heads,
        "patch_size": math.isqrt(base.architecture.patch_inputs // channels),
    }
    for name, value in built.items():
        if value != getattr(model, name):
            raise UserError(
                f"model.{name}={getattr(model, name)}, but {model.timm} has {value}: set model.{name}={value}"
            )
    return base
