"""What encoders of images have in common: patches that are embedded one by one, and their mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def embed_picked(
    pixels: Tensor,
    grid: tuple[int, int],
    sample: Tensor,
    token: Tensor,
    outputs: int,
    projection: nn.Conv2d,
    places: Tensor,
) -> Tensor:
    """The tokens (sample[t], token[t]), (T, D), of images (B, C, height, width), each patch projected by itself.

    places: (N, D), what a patch is added to, the `outputs` prefix tokens in front.
    """
    rows, columns = grid
    patches = pixels.unflatten(2, (rows, -1)).unflatten(4, (columns, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    # The few prefix tokens pick a patch too, of which nothing is left: no shape depends on who is kept.
    prefix = (token < outputs)[:, None]
    picked = patches[sample, (token - outputs).clamp_min(0)].flatten(1).masked_fill(prefix, 0)
    if projection.bias is not None:
        places = torch.cat([places[:outputs], places[outputs:] + projection.bias])
    return F.embedding(token, places) + F.linear(picked, projection.weight.flatten(1))


def mean_of(rows: Tensor, here: Tensor | None) -> Tensor:
    """(B, D): the mean of the rows (B, n, D) that are there, (B, n) bool, None for all; 0 where none is."""
    if here is None:
        return rows.mean(1)
    weight = here[..., None].to(rows.dtype)
    return (rows * weight).sum(1) / weight.sum(1).clamp_min(1)


def example_images(channels: int, size: int) -> Tensor:
    """Four random images, the same each time."""
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(3))
