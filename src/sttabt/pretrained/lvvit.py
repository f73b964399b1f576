"""LV-ViT by its size, and the released weights (Apache 2.0), fetched once from their page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from sttabt.backbones.lvvit import SIZES, LvVit, Sizes
from sttabt.errors import UserError, nearest
from sttabt.pretrained.built import Built
from sttabt.pretrained.classes import imagenet_names
from sttabt.pretrained.hub import reachable
from sttabt.pretrained.weights import load_weights

PAGE = "https://github.com/zihangJiang/TokenLabeling/releases/download"
RELEASED = {  # by size and image size; the first of each size is taken for image sizes that there are none of
    "tiny": {224: "v0.2.0/lvvit_t.pth"},
    "small": {224: "1.0/lvvit_s-26M-224-83.3.pth.tar", 384: "1.0/lvvit_s-26M-384-84.4.pth.tar"},
    "medium": {224: "1.0/lvvit_m-56M-224-84.0.pth.tar", 384: "1.0/lvvit_m-56M-384-85.4.pth.tar"},
    "large": {448: "1.0/lvvit_l-150M-448-86.2.pth.tar", 512: "1.0/lvvit_l-150M-512-86.4.pth.tar"},
}
NORMALISED_BY = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def build_lvvit(
    size: str, arguments: Mapping[str, Any], classes: int, channels: int, image_size: int, auxiliary: bool = False
) -> LvVit:
    """An LV-ViT by its size, with random weights; `arguments` change single sizes.

    Raises UserError for a size or an argument that there is none of.
    """
    if size not in SIZES:
        raise UserError(f"model.lvvit={size} is unknown: {nearest(size, SIZES)}")
    known = [field.name for field in fields(Sizes)]
    for name in arguments:
        if name not in known:
            raise UserError(f"model.arguments.{name} is unknown to LV-ViT: {nearest(name, known)}")
    sizes = replace(SIZES[size], **arguments)
    if sizes.patch_size % 2:
        raise UserError(f"model.patch_size={sizes.patch_size} is odd, but LV-ViT's stem halves the image: make it even")
    return LvVit(sizes, classes, channels, image_size, auxiliary)


def load_lvvit(
    size: str,
    arguments: Mapping[str, Any],
    classes: int,
    channels: int,
    image_size: int,
    auxiliary: bool,
    pretrained: bool,
) -> Built:
    """As `build_lvvit`, and `pretrained` with the released weights."""
    base = build_lvvit(size, arguments, classes, channels, image_size, auxiliary)
    if not pretrained:
        return Built(base)
    new_head = load_weights(base, fetch_released(size, image_size), "model.lvvit", new_head=True)
    return Built(base, new_head, NORMALISED_BY, imagenet_names(f"model.lvvit={size}"))


def fetch_released(size: str, image_size: int) -> Path:
    """The file of the released weights, in torch hub's cache.

    Raises UserError when it is not there and cannot be fetched.
    """
    files = RELEASED[size]
    url = f"{PAGE}/{files.get(image_size, next(iter(files.values())))}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    reason = "its page cannot be reached"
    if reachable(url):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
            return path
        except URLError as error:
            reason = str(error)
    raise UserError(
        f"model.lvvit={size}: the released weights are not in {path.parent} and could not be fetched ({reason}): fetch"
        f" {url} elsewhere and put it there, or set model.pretrained=false model.checkpoint=FILE"
    )
