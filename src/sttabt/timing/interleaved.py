"""Times that can be compared: variants interleaved in one process, many rounds, medians and ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of each round of one variant, and its ratio to the baseline in the same round."""

    seconds: list[float]
    ratios: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def against(self, baseline: Timing) -> Timing:
        """The same seconds with their ratios to another variant of the same rounds."""
        return Timing(self.seconds, [own / other for own, other in zip(self.seconds, baseline.seconds, strict=True)])

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartile of the ratios."""
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high


def time_interleaved(
    variants: Mapping[str, Callable[[], object]], baseline: str, rounds: int, warmup: int = 2
) -> dict[str, Timing]:
    """Run every variant once a round, `rounds` times after `warmup` rounds that do not count.

    A machine's speed drifts by factors within minutes; the ratio of two neighbours in a round does not. What else
    runs in a round changed a variant's own time by 5 % at most, by no rule that was found (DeiT-S, nine variants alone
    and in turn, CPU time of one thread).
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmup + rounds):
        for name, run in variants.items():
            started = _now()
            run()
            taken = _now() - started
            if turn >= warmup:
                seconds[name].append(taken)
    base = Timing(seconds[baseline], [])
    return {name: Timing(taken, []).against(base) for name, taken in seconds.items()}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
