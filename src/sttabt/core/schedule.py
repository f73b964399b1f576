"""The value of a setting that changes while a method trains. It depends on how much is done, and on nothing else."""

from __future__ import annotations

import math


def scheduled(start: float, end: float, until: float, shape: str, done: float) -> float:
    """The value when the share `done` of the updates is made: from `start` at 0 to `end` from the share `until` on.

    shape: the way between them, linear, geometric (equal factors in equal times) or cosine (half a wave, flat at both
    ends). Raises ValueError for another, and for a geometric one unless both ends are of one sign.
    """
    way = done / until
    if way >= 1:
        return end
    if shape == "linear":
        return start + (end - start) * way
    if shape == "cosine":
        return start + (end - start) * 0.5 * (1 - math.cos(math.pi * way))
    if shape != "geometric":
        raise ValueError(f"a schedule is linear, geometric or cosine, got {shape}")
    if start * end <= 0:
        raise ValueError(f"a geometric schedule needs ends of one sign, got {start} and {end}")
    return start * (end / start) ** way
