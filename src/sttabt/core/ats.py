"""Adaptive token sampling: which tokens a fixed set of quantiles picks. (ATS, Fayyaz et al., ECCV 2022, section 3)

B batch, H heads, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sttabt.core.plan import output_tokens

TINY = 1e-30  # a sample whose tokens all score 0 keeps its output tokens, instead of NaN


def significance(of_class: Tensor, value: Tensor, alive: Tensor, outputs: int = 1) -> Tensor:
    """Scores (B, N) that sum to 1 over the alive tokens behind the `outputs` first, which have 0 (section 3.1).

    of_class: (B, H, N), the attention that each token receives from the class token; value: (B, N, D), heads not split;
    alive: (B, N) bool. In each head a token's attention times the length of its value, over the sum; mean over heads.
    """
    length = value.unflatten(-1, (of_class.shape[1], -1)).double().norm(dim=-1).transpose(1, 2)
    others = alive & ~output_tokens(alive, outputs)
    score = of_class.double() * length * others[:, None]
    return (score / score.sum(-1, keepdim=True).clamp_min(TINY)).mean(1)


def sample_tokens(score: Tensor, samples: Tensor) -> Tensor:
    """The tokens (B, N) bool that inverse transform sampling picks: at most `samples` (B,) of each row (section 3.2).

    score: (B, N), sums to 1. The K sampling points are (2k - 1) / 2K; each picks the first token up to which the scores
    sum to as much. A token is picked however often, and once at the least where it scores 1/K or more.
    """
    reached = torch.floor(samples[:, None] * score.cumsum(-1) + 0.5)  # points up to each token
    return reached > F.pad(reached[:, :-1], (1, 0))
