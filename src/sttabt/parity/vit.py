"""The vision transformer cases of `sttabt.parity`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sttabt.backbones.vit import ViT
from sttabt.models.approximate import ApproximationWeights
from sttabt.parity.case import Case, check_quantities
from sttabt.parity.check import Check
from sttabt.pretrained.huggingface_vit import vit_of_config

WEIGHTS = {"kldiv": ApproximationWeights(), "tinybert": ApproximationWeights(attention=10.0)}


def check_vit(folder: Path, meta: dict[str, Any], device: str) -> Iterator[Check]:
    """Every quantity of a case whose `arch` is vit."""
    return check_quantities(replace(vit_case(folder, meta), device=device))


def vit_case(folder: Path, meta: dict[str, Any]) -> Case:
    """The case in `folder`, whose `arch` is vit."""
    config = meta["config"]
    base = ViT(vit_of_config(config, config["num_labels"], config.get("num_channels", 3), config["image_size"]))
    return Case(folder, meta, base, lambda vectors: vectors["input.pixel_values"], "vit.", WEIGHTS)
