"""Heads: split, attend, merge. Fused wherever torch has a kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Multi-head attention of (B, n, D) queries over (B, m, D) keys and values: (B, n, D).

    bias: broadcastable to (B, H, n, m), added to the scores, or bool, True where a key is seen. dropout: share of the
    probabilities that are dropped at random.
    """
    attended = F.scaled_dot_product_attention(
        split_heads(query, heads), split_heads(key, heads), split_heads(value, heads), attn_mask=bias, dropout_p=dropout
    )
    return merge_heads(attended)


def attend_weighted(
    query: Tensor, key: Tensor, value: Tensor, heads: int, log_weight: Tensor, dropout: float = 0.0
) -> Tensor:
    """As `attend`, every key's probability multiplied by exp(log_weight), (B, m), and renormalised.

    Attention stays fused where gradients reach the weight. On a device it is added to the scores, which leaves the
    width of a head as the kernels there want it; on a CPU, whose kernels offer no gradient of such a bias, it is an
    entry more in each key.
    """
    by = _add_to_scores if key.is_cuda else _append_to_keys
    return by(query, key, value, heads, log_weight, dropout)


def _add_to_scores(
    query: Tensor, key: Tensor, value: Tensor, heads: int, log_weight: Tensor, dropout: float = 0.0
) -> Tensor:
    return attend(query, key, value, heads, log_weight.to(query.dtype)[:, None, None, :], dropout)


def _append_to_keys(
    query: Tensor, key: Tensor, value: Tensor, heads: int, log_weight: Tensor, dropout: float = 0.0
) -> Tensor:
    """The entry is met by a constant in each query."""
    query, key, value = split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)
    width = query.shape[-1]
    constant = query.new_full((1,), math.sqrt(width)).expand(*query.shape[:-1], 1)
    weight = log_weight.to(key.dtype)[:, None, :, None].expand(-1, heads, -1, 1)
    attended = F.scaled_dot_product_attention(
        torch.cat([query, constant], -1),
        torch.cat([key, weight], -1),
        F.pad(value, (0, 1)),
        dropout_p=dropout,
        scale=1 / math.sqrt(width),
    )
    return merge_heads(attended[..., :width])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, n, D) to (B, H, n, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, n, d) to (B, n, D)."""
    return x.transpose(1, 2).flatten(2)
