"""What a file says of its inputs and classes: taken from the library's own record of a model, unless it is given."""

from __future__ import annotations

from typing import Any

from sttabt.backbones.base import Backbone


def preprocessing_of(base: Backbone, tokens: int) -> dict[str, Any]:
    """How inputs are made: size, crop, mean and std of images; length and padding of texts. What is unknown is None."""
    if base.may_pad:
        padding = getattr(base.model.config, "pad_token_id", None) or 0
        return {"tokens": tokens, "truncation": True, "padding": "behind the text", "pad_token_id": padding}
    cfg: dict[str, Any] = getattr(base.model, "pretrained_cfg", None) or {}
    height, width = base.model.patch_embed.img_size
    return {
        "height": height,
        "width": width,
        "pixels": "0 to 1",
        "mean": _listed(cfg.get("mean"), base.model.in_chans),
        "std": _listed(cfg.get("std"), base.model.in_chans),
        "crop": cfg.get("crop_pct"),
        "interpolation": cfg.get("interpolation"),
    }


def class_names_of(base: Backbone) -> list[str]:
    """In the order of the logits; their numbers where the library knows no names."""
    classes = base.architecture.classes
    named = getattr(getattr(base.model, "config", None), "id2label", None) or {}
    names = [str(named[place]) for place in range(classes) if place in named]
    if not names:
        cfg = getattr(base.model, "pretrained_cfg", None) or {}
        names = list(map(str, cfg.get("label_names") or ()))
    return names if len(names) == classes else [str(place) for place in range(classes)]


def _listed(values: Any, channels: int) -> list[float] | None:
    return None if values is None or len(values) != channels else [float(value) for value in values]
