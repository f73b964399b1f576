"""The search for a budget on costs that are steps, flat, noisy, not everywhere in one direction, or out of reach."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from sttabt.core.budget import Range, find_value
from sttabt.settings.fields import ANY, SHARE, SHARE_ABOVE_ZERO, Rule, at_least


def within(rule: Rule, start: float, whole: bool = False) -> Range:
    return Range(rule.low, rule.high, start, whole, rule.holds)


class Counted:
    """A cost that counts how often it is asked, and refuses what is not allowed."""

    def __init__(self, cost: Callable[[float], float], at: Range) -> None:
        self.cost, self.at, self.asked = cost, at, list[float]()

    def __call__(self, value: float) -> float:
        assert self.at.allowed(value) and value not in self.asked and math.isfinite(value)
        assert value == round(value) or not self.at.whole
        self.asked.append(value)
        return self.cost(value)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(min(value, 50), -50)))


SMOOTH = {
    "rising": (lambda k: 0.1 + 0.9 * k, within(SHARE_ABOVE_ZERO, 0.5)),
    "falling, one end open": (lambda scale: 0.1 + 0.9 / (1 + scale), within(at_least(0), 1.0)),
    "falling, both open": (lambda w: 0.1 + 0.9 / (1 + 5 * w), Range(0, math.inf, 1.0, False, lambda v: v > 0)),
    "no end": (lambda p: 0.1 + 0.9 * sigmoid(p), within(ANY, 0.0)),
    "no end, far away": (lambda p: 0.1 + 0.9 * sigmoid((p - 300) / 20), within(ANY, 0.0)),
    "steep at an end": (lambda k: k**12, within(SHARE, 0.5)),
    "flat but for a part": (lambda k: min(max(50 * (k - 0.61), 0.0), 1.0), within(SHARE, 0.5)),
}


@pytest.mark.parametrize("asked", [0.25, 0.35, 0.5, 0.7])
@pytest.mark.parametrize("name", SMOOTH)
def test_what_can_be_reached_is_reached(name: str, asked: float) -> None:
    cost, at = SMOOTH[name]
    counted = Counted(cost, at)
    value, found = find_value(counted, asked, at, 0.002)
    assert found == cost(value) == pytest.approx(asked, rel=0.002)
    assert len(counted.asked) <= 25


@pytest.mark.parametrize("asked", [0.2, 0.33, 0.5, 0.62, 0.9])
@pytest.mark.parametrize("steps", [3, 17, 50])
def test_of_steps_the_nearest_is_found(steps: int, asked: float) -> None:
    levels = [step / steps for step in range(1, steps + 1)]
    at = within(SHARE_ABOVE_ZERO, 0.5)
    _, found = find_value(Counted(lambda k: math.ceil(k * steps) / steps, at), asked, at, 0.0001)
    assert abs(found - asked) == pytest.approx(min(abs(level - asked) for level in levels), abs=1e-12)


@pytest.mark.parametrize("asked", [0.05, 0.3, 0.52, 0.99])
def test_whole_numbers_are_tried_alone_and_the_nearest_found(asked: float) -> None:
    at = within(at_least(0), 8, whole=True)
    value, found = find_value(Counted(lambda r: max(1 - r / 23, 0.02), at), asked, at, 0.0001)
    assert abs(found - asked) == min(abs(max(1 - r / 23, 0.02) - asked) for r in range(30))
    assert value == round(value)


@pytest.mark.parametrize("asked", [0.3, 0.5, 0.7])
def test_a_cost_that_turns_back_in_spots_is_no_obstacle(asked: float) -> None:
    """Wiggles that are higher than the steps between them."""
    at = within(SHARE, 0.5)
    value, found = find_value(Counted(lambda k: k + 0.05 * math.sin(60 * k), at), asked, at, 0.002)
    assert found == pytest.approx(asked, rel=0.002) and abs(value - asked) < 0.06


@pytest.mark.parametrize("asked", [0.3, 0.6])
def test_what_both_ends_hide_is_found_inside(asked: float) -> None:
    at = within(SHARE, 0.9)
    _, found = find_value(Counted(lambda k: 1 - 0.9 * math.exp(-80 * (k - 0.4) ** 2), at), asked, at, 0.002)
    assert found == pytest.approx(asked, rel=0.002)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [(0.1, 0.3), (0.29, 0.3), (0.95, 0.9)],
)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("at", [within(SHARE, 0.5), within(ANY, 0.0), within(at_least(0), 8, whole=True)])
def test_out_of_reach_the_nearest_is_taken(at: Range, sign: int, asked: float, nearest: float) -> None:
    """The planner alone costs more, or all tokens less."""
    counted = Counted(lambda v: 0.6 + 0.3 * math.tanh(sign * 20 * (v - at.start - 0.1)), at)
    _, found = find_value(counted, asked, at, 0.002)
    assert found == pytest.approx(nearest, abs=1e-3)
    assert len(counted.asked) <= 30


def test_what_nothing_moves_costs_few_trials() -> None:
    for at in (within(SHARE, 0.5), within(ANY, 0.0), within(at_least(0), 8, whole=True)):
        counted = Counted(lambda _: 0.8, at)
        assert find_value(counted, 0.5, at, 0.002) == (at.start, 0.8), "the start is as good as any"
        assert len(counted.asked) <= 20


def test_a_start_that_fits_is_taken_as_it_is() -> None:
    at = within(SHARE, 0.5)
    counted = Counted(lambda k: k, at)
    assert find_value(counted, 0.5, at, 0.002) == (0.5, 0.5) and counted.asked == [0.5]


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_survived(seed: int) -> None:
    """Of 2 %: the value found is one whose cost without noise is near."""
    noise = random.Random(seed)
    at = within(SHARE_ABOVE_ZERO, 0.5)
    value, _ = find_value(Counted(lambda k: (0.1 + 0.9 * k) * noise.gauss(1, 0.02), at), 0.4, at, 0.02, most=16)
    assert 0.1 + 0.9 * value == pytest.approx(0.4, rel=0.1)


def test_no_more_values_are_tried_than_allowed() -> None:
    for most in (1, 2, 3, 7):
        at = within(ANY, 0.0)
        counted = Counted(lambda p: sigmoid(p - 20), at)
        find_value(counted, 0.31, at, 1e-9, most)
        assert len(counted.asked) == most


@pytest.mark.parametrize("seed", range(30))
def test_random_staircases(seed: int) -> None:
    """Rising or falling, with steps of any width and height: no level between the two that are found is nearer."""
    draw = random.Random(seed)
    edges = sorted(draw.random() for _ in range(draw.randint(1, 40)))
    levels = sorted((draw.random() for _ in range(len(edges) + 1)), reverse=draw.random() < 0.5)
    at, asked = within(SHARE, 0.5), draw.random()
    _, found = find_value(Counted(lambda k: levels[sum(k >= edge for edge in edges)], at), asked, at, 1e-6)
    wide = [
        level
        for level, low, high in zip(levels, [0.0, *edges], [*edges, 1.0], strict=True)
        if high - low > 1e-4  # narrower ones may be stepped over
    ]
    assert abs(found - asked) <= min(abs(level - asked) for level in wide) + 1e-12
