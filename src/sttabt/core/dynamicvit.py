"""DynamicViT: which tokens prediction modules keep, and how they learn it. (Rao et al., NeurIPS 2021, section 3)

B batch, N tokens, H heads. A decision is 1 on tokens that are kept, 0 on others and on padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDING = 1e-9  # a product that is a whole number but for its last bits counts as it


def kept_tokens(keep_ratio: float, stage: int, tokens: Tensor) -> Tensor:
    """r^s of `tokens` (B,), rounded down, int64 and at least 1; stage: s, from 1."""
    return torch.floor(keep_ratio**stage * tokens.double() + ROUNDING).long().clamp_min(1)


def decide(log_probabilities: Tensor, before: Tensor, noisy: bool) -> Tensor:
    """The decision (B, N) of a prediction module, nested in the one before it; its gradient is that of the probability.

    log_probabilities: (B, N, 2), of keeping and of dropping. noisy: drawn by the Gumbel-softmax trick (equation 8);
    else the likelier of the two.
    """
    if noisy:
        kept = F.gumbel_softmax(log_probabilities, hard=True, dim=-1)[..., 0]
    else:
        probability = log_probabilities[..., 0].exp()
        kept = (probability >= 0.5).to(probability.dtype) + probability - probability.detach()
    return before * kept


def attend_to_kept(scores: Tensor, decision: Tensor, real: Tensor) -> Tensor:
    """Attention probabilities (B, H, N, N): each token sees those that are kept, and itself (equations 10 and 11).

    scores: (B, H, N, N), before the softmax; decision: (B, N), through which gradients reach the modules; real: (B, N)
    bool.
    """
    itself = torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device)
    seen = itself + (1 - itself) * decision[:, None, None, :]
    scores = scores.masked_fill(~real[:, None, None, :], -torch.inf)
    weight = (scores - scores.amax(-1, keepdim=True).detach()).exp() * seen
    return weight / weight.sum(-1, keepdim=True)


def ratio_loss(decisions: Sequence[Tensor], among: Tensor, keep_ratio: float) -> Tensor:
    """Mean over stages and samples of the squared distance of the share that is kept from r^s, a scalar (equation 14).

    decisions: (B, N), one a stage; among: (B, N) bool, the tokens that may be dropped.
    """
    tokens = among.sum(-1).clamp_min(1)
    shares = [(decision * among).sum(-1) / tokens for decision in decisions]
    errors = [(keep_ratio**stage - share).square().mean() for stage, share in enumerate(shares, start=1)]
    return torch.stack(errors).mean()
