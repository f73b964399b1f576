"""Plans as concrete masks make them, without a trained model: speed depends on the counts, not on who is kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sttabt.core.plan import TokenPlan

STEEPNESS = 0.2  # the share of the depth over which few tokens become fewer by a factor of e
TOLERANCE = 5e-4  # of the mean occupancy


def realistic_plan(
    batch: int, tokens: int, layers: int, mean: float, spread: float, seed: int, outputs: int = 1
) -> TokenPlan:
    """A hard plan whose occupancy, mean over samples and boundaries, is `mean`.

    All tokens in the first layers, then fewer, linearly and at last exponentially; the `outputs` first tokens alone at
    the last boundary. A sample's counts have a log-normal factor of standard deviation `spread` (0: all samples
    alike) before they are clipped to what there is; which tokens live is random, the same for the same seed.
    Raises ValueError where no such plan has that mean.
    """
    low, high = outputs / tokens, reachable_mean(tokens, layers, outputs)
    if not low <= mean <= high:
        raise ValueError(f"the mean occupancy of {tokens} tokens and {layers} layers is {low:.3f} to {high:.3f}")
    generator = torch.Generator().manual_seed(seed)
    factor = (spread * torch.randn(batch, 1, generator=generator)).exp()
    place = torch.arange(layers) / layers

    def counts(middle: float) -> Tensor:
        share = softplus((middle - place) / STEEPNESS) * factor
        read = (share * tokens).round().clamp(outputs, tokens)
        return torch.cat([read, torch.full((batch, 1), float(outputs))], dim=1)

    middle = solve_increasing(lambda x: float(counts(x).mean()) / tokens, mean, -10.0, 10.0, TOLERANCE)
    order = torch.rand(batch, tokens, generator=generator)
    order[:, :outputs] = -1.0
    rank = order.argsort(-1).argsort(-1)
    return TokenPlan.of_sets(rank[:, None] < counts(middle)[..., None])


def reachable_mean(tokens: int, layers: int, outputs: int) -> float:
    """The mean occupancy when every layer reads all tokens and the last one writes the output tokens alone."""
    return (layers * tokens + outputs) / ((layers + 1) * tokens)


def solve_increasing(
    function: Callable[[float], float], target: float, low: float, high: float, tolerance: float, steps: int = 40
) -> float:
    """Where an increasing function is nearest to `target`, by bisection; stops within `tolerance` of it.

    A function that jumps over the target gives the better side of the jump.
    """
    best, distance = low, float("inf")
    for _ in range(steps):
        middle = (low + high) / 2
        value = function(middle)
        if abs(value - target) < distance:
            best, distance = middle, abs(value - target)
        if distance <= tolerance:
            break
        low, high = (middle, high) if value < target else (low, middle)
    return best
