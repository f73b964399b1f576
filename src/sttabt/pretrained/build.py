"""The base model that the settings ask for."""

from __future__ import annotations

from sttabt.errors import UserError
from sttabt.pretrained.built import Built
from sttabt.pretrained.hub import find_pretrained
from sttabt.pretrained.libraries import check_libraries
from sttabt.settings import ModelSettings


def build_base(model: ModelSettings, classes: int, channels: int, image_size: int, pretrained: bool) -> Built:
    """Raises UserError when the model is not what the settings, which checks rely on, say that it is, or when the
    library is missing that builds it.
    """
    named = [name for name in (model.timm, model.lvvit, model.huggingface) if name]
    if len(named) != 1:
        raise UserError(
            f"model.timm={model.timm!r}, model.lvvit={model.lvvit!r} and model.huggingface={model.huggingface!r}:"
            " set one of them"
        )
    check_libraries(model)
    found = _build(model, classes, channels, image_size, pretrained)
    base = found.base
    built = {"width": base.architecture.width, "depth": base.layers, "heads": base.heads}
    if model.patch_size:
        built["patch_size"] = image_size // base.grid[0]
    for setting, value in built.items():
        if value != getattr(model, setting):
            raise UserError(
                f"model.{setting}={getattr(model, setting)}, but {named[0]} has {value}: set model.{setting}={value}"
            )
    return found


def _build(model: ModelSettings, classes: int, channels: int, image_size: int, pretrained: bool) -> Built:
    arguments = dict(model.arguments)
    # Imported where they are used: each takes seconds.
    if model.timm:
        from sttabt.pretrained.timm_model import load_timm

        return load_timm(model.timm, arguments, classes, channels, image_size, pretrained)
    if model.lvvit:
        from sttabt.pretrained.lvvit import load_lvvit

        return load_lvvit(model.lvvit, arguments, classes, channels, image_size, model.auxiliary, pretrained)
    source = find_pretrained(model.huggingface)
    if model.patch_size:
        from sttabt.pretrained.huggingface_vit import build_huggingface_vit

        return build_huggingface_vit(source, arguments, classes, channels, image_size, pretrained)
    from sttabt.pretrained.huggingface_text import build_text

    return build_text(source, classes, pretrained, arguments)
