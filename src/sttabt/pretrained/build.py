"""The base model that the settings ask for."""

from __future__ import annotations

from sttabt.backbones.base import Backbone
from sttabt.errors import UserError
from sttabt.pretrained.hub import find_pretrained
from sttabt.settings import ModelSettings


def build_base(model: ModelSettings, classes: int, channels: int, image_size: int, pretrained: bool) -> Backbone:
    """Raises UserError when the model is not what the settings, which checks rely on, say that it is."""
    named = [name for name in (model.timm, model.lvvit, model.huggingface) if name]
    if len(named) != 1:
        raise UserError(
            f"model.timm={model.timm!r}, model.lvvit={model.lvvit!r} and model.huggingface={model.huggingface!r}:"
            " set one of them"
        )
    base = _build(model, classes, channels, image_size, pretrained)
    built = {"width": base.architecture.width, "depth": base.layers, "heads": base.heads}
    if model.patch_size:
        built["patch_size"] = image_size // base.grid[0]
    for setting, value in built.items():
        if value != getattr(model, setting):
            raise UserError(
                f"model.{setting}={getattr(model, setting)}, but {named[0]} has {value}: set model.{setting}={value}"
            )
    return base


def _build(model: ModelSettings, classes: int, channels: int, image_size: int, pretrained: bool) -> Backbone:
    arguments = dict(model.arguments)
    # Imported where they are used: each takes seconds.
    if model.timm:
        from sttabt.backbones.vit import build_vit

        return build_vit(model.timm, arguments, classes, channels, image_size, pretrained)
    if model.lvvit:
        from sttabt.backbones.lvvit import build_lvvit

        base = build_lvvit(model.lvvit, arguments, classes, channels, image_size, model.auxiliary)
        if pretrained:
            from sttabt.pretrained.lvvit import NORMALISED_BY, fetch_released
            from sttabt.pretrained.weights import load_weights

            base.head_is_new = load_weights(base, fetch_released(model.lvvit, image_size), "model.lvvit", new_head=True)
            base.normalised_by = NORMALISED_BY
        return base
    source = find_pretrained(model.huggingface)
    if model.patch_size:
        from sttabt.pretrained.vit import build_huggingface_vit

        return build_huggingface_vit(source, arguments, classes, channels, image_size, pretrained)
    from sttabt.pretrained.bert import build_bert

    return build_bert(source, classes, pretrained, arguments)
