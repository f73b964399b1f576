"""What a model's inputs and classes are: taken from the library's own record of it, unless they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sttabt.backbones.base import Backbone
from sttabt.errors import UserError


@dataclass(frozen=True)
class Preparation:
    """How inputs of a model are made of files, and what its logits stand for: what travels with the model.

    class_names: in the order of the logits, () for a score or an embedding; inputs: as `preprocessing_of` gives it;
    tokenizer: one of transformers, or the folder or hub id where it is; card: the model card of the artifact that it
    comes from.
    """

    class_names: tuple[str, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Any = None
    card: str = ""

    def load_tokenizer(self) -> Any:
        """The tokenizer of transformers. Raises UserError where there is none, or it cannot be read."""
        if self.tokenizer is None:
            raise UserError("this model has no tokenizer beside it: save it with save_pretrained(..., tokenizer=...)")
        if not isinstance(self.tokenizer, str):
            return self.tokenizer
        from transformers import AutoTokenizer

        from sttabt.pretrained.hub import find_pretrained, use_hub

        source = find_pretrained(self.tokenizer)
        use_hub()
        try:
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"the tokenizer {self.tokenizer} cannot be read ({reason}): fetch it again") from error


def preparation_of(base: Backbone) -> Preparation:
    """What the library says of a model; a single logit is a score."""
    nameless = base.embeds or base.architecture.classes == 1
    return Preparation(() if nameless else tuple(class_names_of(base)), preprocessing_of(base, base.tokens))


def preprocessing_of(base: Backbone, tokens: int) -> dict[str, Any]:
    """How inputs are made: size, crop, mean and std of images; length and padding of texts. What is unknown is None."""
    if base.may_pad:
        padding = getattr(base.model.config, "pad_token_id", None) or 0
        return {"tokens": tokens, "truncation": True, "padding": "behind the text", "pad_token_id": padding}
    cfg: dict[str, Any] = getattr(base.model, "pretrained_cfg", None) or {}
    channels, height, width = base.image_shape
    return {
        "height": height,
        "width": width,
        "pixels": "0 to 1",
        "mean": _listed(cfg.get("mean"), channels),
        "std": _listed(cfg.get("std"), channels),
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
