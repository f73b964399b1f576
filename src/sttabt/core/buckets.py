"""Shapes for counts that differ from image to image: a few, each large enough for many batches.

What is captured as a CUDA graph has one shape. Counts that a plan gives are rounded up to a bucket; rows that are added
are padding that nobody reads (engine.packed.Packing), so that the result is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 4  # sizes between a power of two and the next
MOST = 8  # buckets of one shape of inputs, besides the one that holds everything
SLACK = 0.1  # more rows than rounding alone would add, for which no bucket more is worth while


@dataclass(frozen=True)
class Bucket:
    """Sizes of the L+1 boundaries: rows of the whole batch, and of the longest sample."""

    rows: tuple[int, ...]
    longest: tuple[int, ...]

    def holds(self, other: Bucket) -> bool:
        """Whether `other` is nowhere larger."""
        pairs = zip((*self.rows, *self.longest), (*other.rows, *other.longest), strict=True)
        return all(own >= wanted for own, wanted in pairs)

    @property
    def cost(self) -> int:
        """Rows over all boundaries: what linear layers take."""
        return sum(self.rows)


def choose_bucket(wanted: Bucket, known: Sequence[Bucket], samples: int, tokens: int) -> Bucket:
    """The bucket of `known` that holds `wanted` with the fewest rows, or a new one where that pays.

    samples, tokens: of the batch, what a boundary can have at most. No more than MOST are made; after these, what none
    of them holds goes into the one that holds everything.
    """
    rounded = Bucket(
        tuple(_round_up(size, samples * tokens) for size in wanted.rows),
        tuple(_round_up(size, tokens) for size in wanted.longest),
    )
    fitting = [bucket for bucket in known if bucket.holds(wanted)]
    best = min(fitting, key=lambda bucket: bucket.cost, default=None)
    everything = Bucket((samples * tokens,) * len(wanted.rows), (tokens,) * len(wanted.longest))
    made = len([bucket for bucket in known if bucket != everything])
    if best is not None and (made >= MOST or best.cost <= (1 + SLACK) * rounded.cost):
        return best
    return rounded if made < MOST else everything


def _round_up(size: int, most: int) -> int:
    """To the next of STEPS sizes between powers of two, so that small boundaries are rounded by no more than large."""
    step = max(1, 2 ** (size.bit_length() - 1) // STEPS)
    return min(most, -(-size // step) * step)
