"""Learned threshold pruning: a token goes on while it receives more attention than a learned threshold.

(LTP, Kim et al., KDD 2022; METHOD section 4.) B batch, N tokens, L layers. A token's score is the attention that it
receives, `sttabt.core.forward.received_attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

LAST_START = 0.01  # where the last layer's threshold starts; those before it are spaced evenly from 0


def initial_thresholds(layers: int) -> Tensor:
    """(L,): 0.01 * l / L for the layers l = 1..L."""
    return LAST_START * torch.arange(1, layers + 1) / layers


def soft_mask(score: Tensor, threshold: Tensor, temperature: float) -> Tensor:
    """(B, N) in (0, 1): how far each token's score (B, N) is above the layer's threshold, a scalar."""
    return torch.sigmoid((score - threshold) / temperature)


def hard_mask(score: Tensor, threshold: Tensor) -> Tensor:
    """(B, N) bool: the tokens that go on, which `soft_mask` tends to as its temperature tends to 0."""
    return score > threshold


def mask_loss(masks: Tensor, real: Tensor, weight: float, target: float = 0.0) -> Tensor:
    """What keeping tokens costs, a scalar: `weight` times the sum over layers of the mean mask of real tokens.

    masks: (B, L, N), soft or hard; real: (B, N) bool. The mean is taken in each sample, then over the batch. target:
    the mean over layers at which the loss ends: it counts what is above.
    """
    kept = (masks * real[:, None]).sum(-1) / real.sum(-1, keepdim=True)
    return weight * (kept.mean(0).sum() - target * masks.shape[1]).clamp_min(0)
