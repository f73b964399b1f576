"""The value of a setting during training, by hand numbers and by its properties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttabt.core.schedule import scheduled

EXAMPLES = settings(max_examples=50, deadline=None, derandomize=True)
SHAPES = ("linear", "geometric", "cosine")


@pytest.mark.parametrize(
    ("shape", "start", "end", "until", "done", "expected"),
    [
        ("linear", 1.0, 0.0, 1.0, 0.25, 0.75),
        ("linear", -2.0, 2.0, 0.5, 0.25, 0.0),
        ("linear", 1.0, 0.3, 0.8, 0.4, 0.65),
        ("geometric", 1.0, 0.01, 1.0, 0.5, 0.1),
        ("geometric", -1.0, -16.0, 0.5, 0.125, -2.0),
        ("geometric", 1.0, 0.1, 0.8, 0.4, math.sqrt(0.1)),
        ("cosine", 1.0, 0.0, 1.0, 0.5, 0.5),
        ("cosine", 1.0, 0.0, 1.0, 1 / 3, 0.75),  # (1 + cos 60 degrees) / 2
        ("cosine", 2.0, 4.0, 0.5, 1 / 3, 3.5),
    ],
)
def test_values_by_hand(shape: str, start: float, end: float, until: float, done: float, expected: float) -> None:
    assert scheduled(start, end, until, shape, done) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@EXAMPLES
@given(
    st.sampled_from(SHAPES),
    st.floats(0.01, 9),
    st.floats(0.01, 9),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_it_goes_from_its_start_to_its_end_and_never_back(shape, start, end, until, one, other) -> None:
    earlier, later = (scheduled(start, end, until, shape, done) for done in sorted((one, other)))
    low, high = min(start, end), max(start, end)
    assert low - 1e-9 <= earlier <= high + 1e-9 and low - 1e-9 <= later <= high + 1e-9
    assert (later - earlier) * (end - start) >= -1e-9
    assert scheduled(start, end, until, shape, 0.0) == start
    assert scheduled(start, end, until, shape, until) == end == scheduled(start, end, until, shape, 1.5)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 1.0), (-1.0, 1.0)])
def test_a_geometric_one_does_not_cross_0(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="ends of one sign"):
        scheduled(start, end, 1.0, "geometric", 0.5)


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="linear, geometric or cosine, got step"):
        scheduled(1.0, 2.0, 1.0, "step", 0.5)
