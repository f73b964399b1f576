"""Which value of a dial costs what is asked: a search on a cost that is known by trying alone.

The cost may rise or fall with the dial, in steps, with flat parts, not everywhere in one direction, and with noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

GROWTH = 4.0  # of the steps away from the start, and of the steps towards an end that is not allowed itself
STEPS = 6  # of them in each direction
FLAT = 3  # costs that are the same one after the other: nothing moves there any more
BETWEEN = 9  # values that are tried inside where the ends cost too much or too little alike
NARROW = 1e-6  # a part of the range that holds no other value of use
MARGIN = 0.05  # share of a bracket that its next value keeps from its ends

Cost = Callable[[float], float]


@dataclass(frozen=True)
class Calibration:
    """What was found for a budget: with the method's setting `dial` at `value` the share `of` is `reached`.

    of: a cost as rows name it, macs_share, time_ratio or time_ratio_frozen.
    asked, reached: shares of the dense model's.
    kept: share of real tokens that layers write then, mean over layers.
    """

    of: str
    asked: float
    reached: float
    dial: str
    value: float | int
    kept: float


@dataclass(frozen=True)
class Range:
    """Where a dial may stand: from low to high, infinite where nothing bounds it, at values that are `allowed`.

    start: where the search begins; whole: integers alone.
    """

    low: float
    high: float
    start: float
    whole: bool = False
    allowed: Callable[[float], bool] = lambda value: True


def find_value(cost: Cost, asked: float, within: Range, tolerance: float, most: int = 40) -> tuple[float, float]:
    """The value whose cost is nearest to `asked`, and that cost; where several are, the first that was tried.

    Two values are looked for that cost more and less; between them the range is narrowed until a cost is within the
    share `tolerance` of what is asked, or no other value is left, or `most` values were tried. Where every value that
    was tried costs too much, or too little, the nearest is what can be reached.
    """
    search = _Search(cost, asked, within, tolerance, most)
    search.at(within.start)
    bracket = search.walk(within.low) or search.walk(within.high) or search.look_between()
    if bracket:
        search.narrow(*bracket)
    return search.nearest


class _Search:
    def __init__(self, cost: Cost, asked: float, within: Range, tolerance: float, most: int) -> None:
        self.cost, self.asked, self.within, self.most = cost, asked, within, most
        self.enough = tolerance * abs(asked)
        self.tried: dict[float, float] = {}

    @property
    def nearest(self) -> tuple[float, float]:
        return min(self.tried.items(), key=lambda item: abs(item[1] - self.asked))

    @property
    def done(self) -> bool:
        return len(self.tried) >= self.most or abs(self.nearest[1] - self.asked) <= self.enough

    def at(self, value: float) -> float:
        """How much more than asked it costs."""
        if value not in self.tried:
            self.tried[value] = self.cost(value)
        return self.tried[value] - self.asked

    def walk(self, end: float) -> tuple[float, float] | None:
        """From the start towards an end of the range: the first two neighbours that cost more and less."""
        before, flat = self.within.start, 0
        for value in map(self._rounded, self._towards(end)):
            if self.done:
                return None
            if self.at(value) * self.at(before) < 0:
                return before, value
            flat = flat + 1 if self.at(value) == self.at(before) else 0
            if flat == FLAT:
                return None
            before = value
        return None

    def look_between(self) -> tuple[float, float] | None:
        """Two values inside of what was tried that cost more and less; the ends may hide them."""
        low, high = min(self.tried), max(self.tried)
        before = low
        for step in range(1, BETWEEN + 1):
            if self.done:
                return None
            value = self._rounded(low + (high - low) * step / (BETWEEN + 1))
            if self.at(value) * self.at(before) < 0:
                return before, value
            before = value
        return None

    def narrow(self, one: float, other: float) -> None:
        """Halves and interpolates in turn: halving ends on steps, interpolation is quick where there are none."""
        interpolates = True
        while not self.done:
            if abs(other - one) <= (1 if self.within.whole else NARROW * (1 + abs(one))):
                return
            share = 0.5
            if interpolates:
                share = min(max(self.at(one) / (self.at(one) - self.at(other)), MARGIN), 1 - MARGIN)
            middle = self._rounded(one + share * (other - one))
            if self.within.whole:  # strictly between the two
                middle = min(max(middle, min(one, other) + 1), max(one, other) - 1)
            if self.at(middle) * self.at(one) < 0:
                other = middle
            else:
                one = middle
            interpolates = not interpolates

    def _rounded(self, value: float) -> float:
        return float(round(value)) if self.within.whole else value

    def _towards(self, end: float) -> Iterator[float]:
        """Values of the range from the start to an end, farther and farther; the last is the end where it has one."""
        start = self.within.start
        if math.isinf(end):
            unit = math.copysign(max(1.0, abs(start)), end)
            yield from (start + unit * GROWTH**step for step in range(STEPS))
        elif self.within.allowed(end):
            yield end
        else:
            yield from (end + (start - end) / GROWTH**step for step in range(1, STEPS + 1))
