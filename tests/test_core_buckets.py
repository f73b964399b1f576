"""Buckets, into which counts that differ are rounded up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sttabt.core.buckets import MOST, SLACK, STEPS, Bucket, choose_bucket


@st.composite
def sizes(draw: st.DrawFn) -> tuple[list[Bucket], int, int]:
    """What a few batches of one shape want."""
    samples, tokens, layers = draw(st.integers(1, 6)), draw(st.integers(1, 200)), draw(st.integers(1, 4))

    def one() -> Bucket:
        counts = draw(st.lists(st.lists(st.integers(1, tokens), min_size=samples, max_size=samples),
                               min_size=layers, max_size=layers))  # fmt: skip
        return Bucket(tuple(map(sum, counts)), tuple(map(max, counts)))

    return [one() for _ in range(draw(st.integers(1, 30)))], samples, tokens


@given(sizes())
def test_a_bucket_holds_what_is_asked_for_and_few_are_made(case: tuple[list[Bucket], int, int]) -> None:
    wanted, samples, tokens = case
    known: list[Bucket] = []
    for each in wanted:
        found = choose_bucket(each, known, samples, tokens)
        assert found.holds(each)
        assert max(found.rows) <= samples * tokens and max(found.longest) <= tokens
        if found not in known:
            known.append(found)
    everything = Bucket((samples * tokens,) * len(wanted[0].rows), (tokens,) * len(wanted[0].rows))
    assert len([bucket for bucket in known if bucket != everything]) <= MOST


def test_a_bucket_is_used_again_while_it_wastes_little() -> None:
    first = choose_bucket(Bucket((790, 310, 8), (110, 50, 1)), [], 8, 197)
    assert first.rows == (896, 320, 8) and first.longest == (112, 56, 1)
    less = Bucket((780, 305, 8), (105, 50, 1))
    assert choose_bucket(less, [first], 8, 197) == first
    much_less = Bucket((300, 100, 8), (60, 20, 1))
    other = choose_bucket(much_less, [first], 8, 197)
    assert other != first and first.cost > (1 + SLACK) * other.cost
    full = [Bucket((99 - number,) * 3, (197,) * 3) for number in range(MOST)]
    everything = Bucket((8 * 197,) * 3, (197,) * 3)
    assert choose_bucket(much_less, full, 8, 197) == everything
    assert choose_bucket(less, [*full[1:], first], 8, 197) == first


@given(st.integers(1, 100_000))
def test_a_size_is_rounded_up_by_less_than_a_step(size: int) -> None:
    (rows,) = choose_bucket(Bucket((size,), (1,)), [], 1_000_000, 1).rows
    assert size <= rows <= size * (1 + 1 / STEPS)
