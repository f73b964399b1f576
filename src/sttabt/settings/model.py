"""Settings of the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sttabt.settings.fields import MISSING, SHARE_ABOVE_ZERO, at_least, setting
from sttabt.settings.training import TrainingSettings

LVVIT_SIZES = ("tiny", "small", "medium", "large")


def _is_lvvit(settings: Any, _: str) -> str | None:
    return None if settings.model.lvvit else "it is for LV-ViT"


def _has_checkpoint(settings: Any, _: str) -> str | None:
    return None if settings.model.checkpoint else "there is no model.checkpoint to check"


def _has_weights(settings: Any, _: str) -> str | None:
    given = settings.model.pretrained or settings.model.checkpoint
    return None if given else "no weights are given, whose head it would name"


def _base_trains(settings: Any, _: str) -> str | None:
    model = settings.model
    if model.fine_tune or not (model.pretrained or model.checkpoint):
        return None
    return "the base model's weights are given, so the base stage trains nothing"


@dataclass
class ModelSettings:
    """The base model. Its width, depth, heads and patch size are stated, so that a mistake shows before timm loads."""

    name: str = setting(MISSING, "the name in result rows")
    timm: str = setting("", "of images: a timm VisionTransformer, e.g. deit_small_patch16_224")
    lvvit: str = setting("", f"of images: an LV-ViT, which timm has not: {', '.join(LVVIT_SIZES)}")
    huggingface: str = setting(
        "",
        "a BERT, DistilBERT, ELECTRA, ViT or DeiT: its folder, its id on the hub, or package:NAME/FOLDER of an"
        " installed package",
    )
    width: int = setting(MISSING, "numbers a token", at_least(1))
    depth: int = setting(MISSING, "layers", at_least(1))
    heads: int = setting(MISSING, "attention heads a layer", at_least(1))
    patch_size: int = setting(0, "side of a patch in pixels; 0 for text", at_least(0))
    pretrained: bool = setting(
        False, "use the weights that timm, lvvit or huggingface names, from the hub, its cache or the folder"
    )
    checkpoint: str = setting("", "a local weights file instead")
    class_names: list[str] = setting(
        [],
        "the classes of the given weights in the order of their head; []: as their files say. Its rows are put into"
        " the data's order by name",
        when=_has_weights,
    )
    sha256: str = setting("", 'the checkpoint\'s checksum, or how it begins; "": not checked', when=_has_checkpoint)
    auxiliary: bool = setting(
        False,
        "LV-ViT only: predict as released, with half the maximum of the second head over the patches left",
        when=_is_lvvit,
    )
    fine_tune: bool = setting(False, "the base stage trains given weights on; otherwise it uses them as they are")
    arguments: dict[str, Any] = setting({}, "passed to timm.create_model (embed_dim, depth, ...)")
    crop: float = setting(0.875, "images only: share of an image's shorter side that evaluation sees", SHARE_ABOVE_ZERO)
    mean: list[float] = setting(
        [], "images only: a channel, of pixels in [0, 1], that images are normalised by; []: the data set's own"
    )
    std: list[float] = setting([], "images only: standard deviations, as mean")
    training: TrainingSettings = setting(TrainingSettings, "how the base stage trains", when=_base_trains)
