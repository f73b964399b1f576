"""Multiply-adds that soft masks stand for, differentiable in them, by the formulas of `core.cost`. (METHOD section 3)

B batch, L layers, N tokens. Counts what layers compute, and leaves out the embedding and the head, which cost
almost the same whatever is kept, and what it costs to decide.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sttabt.core.cost import Architecture, encoder_macs

OF_LAYERS = ("projections", "attention", "feed_forward")


def macs_loss(
    architecture: Architecture,
    alive: Tensor,
    real: Tensor,
    keep: Tensor,
    weight: float,
    outputs: int = 1,
    least: int = 1,
    survivors: bool = False,
) -> Tensor:
    """Hold what the layers compute under the masks at what an even plan computes: `weight` times the square of the
    distance of their shares of the dense layers' multiply-adds, a scalar.

    alive: (B, L+1, N), soft or hard; real: (B, N) bool. keep: the share of real tokens that the layers of the even plan
    write, mean over layers, a scalar; outputs, least: see `even_counts`. survivors: the last layer writes all that it
    reads.
    """
    tokens = real.sum(-1).to(alive.dtype)
    counts, even = (alive * real[:, None]).sum(-1), even_counts(tokens, keep, alive.shape[1] - 1, outputs, least)
    if survivors:
        counts, even = (torch.cat([each[:, :-1], each[:, -2:-1]], 1) for each in (counts, even))
    return (
        weight * (share_of_layers(architecture, counts, tokens) - share_of_layers(architecture, even, tokens)).square()
    )


def share_of_layers(architecture: Architecture, counts: Tensor, tokens: Tensor) -> Tensor:
    """Multiply-adds of the layers, of all samples together, as a share of the dense model's: a scalar.

    counts: how many of the `tokens` (B,) of each sample live at the boundaries, (B, L+1); they need not be whole.
    """
    dense = _layers_macs(architecture, tokens[:, None].expand_as(counts))
    return _layers_macs(architecture, counts).sum() / dense.sum()


def even_counts(tokens: Tensor, keep: Tensor, layers: int, outputs: int, least: int) -> Tensor:
    """(B, L+1): the counts of a plan whose layers all read equally many tokens, and write the share `keep` of the
    `tokens` (B,) on average, of which the last layer writes the `outputs` first alone.

    No layer reads fewer than `least`, or more than there are.
    """
    inner = (layers * keep * tokens - outputs) / (layers - 1) if layers > 1 else keep * tokens
    inner = torch.minimum(inner.clamp_min(least), tokens)
    return torch.cat([inner[:, None].expand(-1, layers), torch.full_like(inner, outputs)[:, None]], 1)


def _layers_macs(architecture: Architecture, counts: Tensor) -> Tensor:
    """(B,), of counts (B, L+1)."""
    boundaries: list[Any] = list(counts.unbind(1))
    parts: dict[str, Any] = encoder_macs(architecture, boundaries[:-1], boundaries[1:], 0)
    return sum(parts[name] for name in OF_LAYERS)
