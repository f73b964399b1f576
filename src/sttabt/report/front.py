"""Which results no other beats: the front of score and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(results: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, score) that no other beats, by rising cost.

    One beats another that has no lower cost and no higher score, and is not equal to it; equal ones are all kept.
    """
    order = sorted(range(len(results)), key=lambda index: (results[index][0], -results[index][1], index))
    kept: list[int] = []
    best = -math.inf
    for index in order:
        score = results[index][1]
        if score > best or (kept and results[index] == results[kept[-1]]):
            kept.append(index)
            best = score
    return kept
