"""Heads: split, attend, merge. Fused wherever torch has a kernel."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention of (B, n, D) queries over (B, m, D) keys and values: (B, n, D).

    bias: broadcastable to (B, H, n, m), added to the scores.
    """
    attended = F.scaled_dot_product_attention(
        split_heads(query, heads), split_heads(key, heads), split_heads(value, heads), attn_mask=bias
    )
    return merge_heads(attended)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, n, D) to (B, H, n, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, n, d) to (B, n, D)."""
    return x.transpose(1, 2).flatten(2)
