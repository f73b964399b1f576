"""The LV-ViT cases of `sttabt.parity`: a released checkpoint's names, features and both predictions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sttabt.backbones.lvvit import LvVit, Sizes
from sttabt.engine.dense import run_dense
from sttabt.parity.case import compare
from sttabt.parity.check import Check
from sttabt.pretrained.weights import load_released


def check_lvvit(folder: Path, meta: dict[str, Any], device: str) -> Iterator[Check]:
    """Every quantity of a case whose `arch` is lvvit."""
    vectors = load_file(folder / "vectors.safetensors", device=device)
    images = vectors.pop("input.pixel_values")
    found = {}
    with torch.inference_mode():
        for quantity, auxiliary in (("logits.cls_only", False), ("logits.cls_plus_half_max_aux", True)):
            base = _base(meta, auxiliary).to(device)
            load_released(base, load_file(folder / "lvvit.safetensors", device=device), f"{folder}/lvvit.safetensors")
            found[quantity] = run_dense(base, images).logits
        found["features"] = base.model.forward_features(images)
    for quantity in sorted(found.keys() | vectors.keys()):
        yield compare(folder.name, quantity, found.get(quantity), vectors.get(quantity))


def _base(meta: dict[str, Any], auxiliary: bool) -> LvVit:
    sizes = Sizes(
        embed_dim=meta["embed_dim"],
        depth=meta["depth"],
        num_heads=meta["num_heads"],
        skip_lam=meta["skip_lam"],
        mlp_ratio=meta["mlp_ratio"],
        patch_size=meta["patch_size"],
    )
    return LvVit(sizes, meta["num_classes"], 3, meta["img_size"], auxiliary).eval()
