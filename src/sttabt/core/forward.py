"""Forward top-k: each layer keeps the tokens that it attends to most. (STTABT section 4, manual top-k; METHOD 4)"""

from __future__ import annotations

from torch import Tensor

from sttabt.core.plan import largest, output_tokens


def forward_keep_ratios(target: float, layers: int) -> list[float]:
    """The share of tokens that each layer writes so that their mean is about `target` in (0, 1].

    The paper's schedule for 12 layers, stretched to other depths: what is l/10 there is l/(layers - 2) here.
    """
    steps = [layer / max(layers - 2, 1) for layer in range(layers)]
    if target <= 0.666:
        ratios = [0.5 * target + (1 - step) * target for step in steps]
    else:
        ratios = [(1 - step) * (2 - 2 * target) + (2 * target - 1) for step in steps]
    return [min(max(ratio, 0.0), 1.0) for ratio in ratios]


def received_attention(probabilities: Tensor, rows: Tensor) -> Tensor:
    """The attention (B, N) that each token receives: mean over heads and over the `rows` (B, N) that are alive.

    probabilities: (B, H, N, N), rows are queries.
    """
    weight = rows.to(probabilities.dtype) / rows.sum(-1, keepdim=True)
    return (weight[:, None] @ probabilities.mean(1))[:, 0]


def forward_select(received: Tensor, alive: Tensor, count: Tensor, outputs: int = 1) -> Tensor:
    """The `count` (B,) alive tokens that received most attention, (B, N) bool; output tokens are always among them.

    received: (B, N), what `received_attention` gives.
    """
    importance = received.masked_fill(output_tokens(alive, outputs), float("inf"))
    return largest(importance, count.clamp_min(outputs), among=alive)
