"""The base model that the settings ask for."""

from __future__ import annotations

import math

from sttabt.backbones.base import Backbone
from sttabt.errors import UserError
from sttabt.hub import find_pretrained
from sttabt.settings import ModelSettings


def build_base(model: ModelSettings, classes: int, channels: int, image_size: int, pretrained: bool) -> Backbone:
    """Raises UserError when the model is not what the settings, which checks rely on, say that it is."""
    if bool(model.timm) == bool(model.huggingface):
        raise UserError(f"model.timm={model.timm!r} and model.huggingface={model.huggingface!r}: set one of the two")
    arguments = dict(model.arguments)
    base: Backbone
    if model.huggingface:
        from sttabt.backbones.bert_files import build_bert  # transformers takes seconds to import

        name, base = (
            model.huggingface,
            build_bert(str(find_pretrained(model.huggingface)), classes, pretrained, arguments),
        )
    else:
        from sttabt.backbones.vit import build_vit

        name, base = model.timm, build_vit(model.timm, arguments, classes, channels, image_size, pretrained)
    built = {"width": base.architecture.width, "depth": base.layers, "heads": base.heads}
    if model.timm:
        built["patch_size"] = math.isqrt(base.architecture.patch_inputs // channels)
    for setting, value in built.items():
        if value != getattr(model, setting):
            raise UserError(
                f"model.{setting}={getattr(model, setting)}, but {name} has {value}: set model.{setting}={value}"
            )
    return base
