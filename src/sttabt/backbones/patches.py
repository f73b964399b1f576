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
    # The few prefix tokens pick a patch too, of which nothing is left: no shape depends on who is kept.
    prefix = (token < outputs)[:, None]
    picked, weight = _pick(pixels, grid, sample, (token - outputs).clamp_min(0), projection.weight)
    picked = picked.masked_fill(prefix, 0)
    if projection.bias is not None:
        places = torch.cat([places[:outputs], places[outputs:] + projection.bias])
    return F.embedding(token, places) + F.linear(picked, weight)


def _pick(
    pixels: Tensor, grid: tuple[int, int], sample: Tensor, patch: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Pixels of the patches (T, P), and the projection's weight (D, C, height, width) in the same order, (D, P)."""
    rows, columns = grid
    height, width = weight.shape[2:]
    pixels = pixels[..., : rows * height, : columns * width]  # what is over at an edge no convolution reads
    if pixels.shape[1] < width:
        cut = pixels.unflatten(2, (rows, -1)).unflatten(4, (columns, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        return cut[sample, patch].flatten(1), weight.flatten(1)
    # What a stem made has many channels and small patches: all channels of a pixel are copied at once, which takes a
    # quarter of the time of cutting all patches (32 channels, patches of 2 x 2).
    line = columns * width
    by_pixel = pixels.flatten(2).transpose(1, 2).flatten(0, 1)
    inside = torch.arange(height, device=patch.device)[:, None] * line + torch.arange(width, device=patch.device)
    first = sample * (rows * height * line) + patch // columns * (height * line) + patch % columns * width
    places = first[:, None] + inside.flatten()
    picked = by_pixel.index_select(0, places.flatten()).view(-1, height * width * pixels.shape[1])
    return picked, weight.permute(0, 2, 3, 1).flatten(1)


def mean_of(rows: Tensor, here: Tensor | None) -> Tensor:
    """(B, D): the mean of the rows (B, n, D) that are there, (B, n) bool, None for all; 0 where none is."""
    if here is None:
        return rows.mean(1)
    weight = here[..., None].to(rows.dtype)
    return (rows * weight).sum(1) / weight.sum(1).clamp_min(1)


def example_images(channels: int, size: int) -> Tensor:
    """Four random images, the same each time."""
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(3))
