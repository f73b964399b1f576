"""Learned retention: how much of each place in the order of significance a layer keeps. (PoWER-BERT, section 3)

(Goyal et al., PoWER-BERT, ICML 2020.) B batch, N tokens, L layers, K bins. A token's significance is the attention that
it receives, `sttabt.core.forward.received_attention`; its rank is its place among the real tokens of its sample, the
most significant first. Retention parameters are shared by ranks of the same share of a sample: rank r of n tokens reads
bin r * K // n, so that samples of any length read the same parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1e-6  # a sum of shares is no token more than it should be


def retained(retention: Tensor, rank: Tensor, real: Tensor) -> Tensor:
    """(..., B, N) in [0, 1]: what the retention (..., K) says of tokens of that rank (B, N); 0 on padding.

    The parameters are cut to [0, 1], and their gradient is that of what they are cut to.
    """
    inside = retention + (retention.clamp(0, 1) - retention).detach()
    bins = rank * retention.shape[-1] // real.sum(-1, keepdim=True)
    return inside[..., bins.clamp_max(retention.shape[-1] - 1)] * real


def retention_counts(retention: Tensor, tokens: Tensor) -> Tensor:
    """(L, B) int64: the tokens that each layer keeps, its mass rounded up, never more than the layer before and 1 at
    least. retention: (L, K); tokens: (B,) int64, real ones of each sample.
    """
    rank = torch.arange(int(tokens.max()), device=tokens.device).expand(len(tokens), -1)
    there = rank < tokens[:, None]
    mass = retained(retention.detach().double(), rank, there).sum(-1)
    return torch.ceil(mass - ROUNDING).long().clamp_min(1).cummin(0).values


def mass_loss(masks: Tensor, real: Tensor, weight: float, target: float = 0.0) -> Tensor:
    """A scalar: `weight` times the sum over layers l = 1..L of l times the mean mask of real tokens.

    masks: (B, L, N); real: (B, N) bool. The mean is taken in each sample, then over the batch. target: the mean over
    layers at which the loss ends.
    """
    kept = ((masks * real[:, None]).sum(-1) / real.sum(-1, keepdim=True)).mean(0)
    if target and kept.mean() <= target:
        weight = 0.0
    return weight * (kept * torch.arange(1, len(kept) + 1, device=kept.device)).sum()
