"""Predictions of test items, kept beside a row, and McNemar's test against a count of all outcomes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sttabt.report.predictions import (
    MOST_LOGITS,
    PREDICTIONS_FILE,
    TOP,
    Predictions,
    exact_p_value,
    paired_test,
    read_predictions,
)

FIELDS = Predictions.__dataclass_fields__


def make(labels: list[int], predictions: list[int], classes: int = 3) -> Predictions:
    logits = np.eye(classes)[np.array(predictions, int)]
    return Predictions.of(np.arange(len(labels)), np.array(labels, int), np.array(predictions, int), logits)


def slow_p_value(one: int, other: int) -> float:
    """The share of all outcomes of `one + other` fair coins that are at least as uneven."""
    total = one + other
    uneven = [abs(2 * sum(coins) - total) >= abs(one - other) for coins in itertools.product((0, 1), repeat=total)]
    return sum(uneven) / len(uneven)


@given(st.integers(0, 7), st.integers(0, 7))
def test_the_p_value_is_that_of_all_outcomes(one, other):
    assert exact_p_value(one, other) == pytest.approx(slow_p_value(one, other), rel=1e-12)
    assert exact_p_value(one, other) == exact_p_value(other, one)


@pytest.mark.parametrize(("one", "other"), [(10, 25), (0, 0), (3, 0), (5000, 5000), (4900, 5100), (40, 2000)])
def test_large_counts(one, other):
    expected = binomtest(one, one + other).pvalue if one + other else 1.0
    assert exact_p_value(one, other) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_pairs_are_counted_item_by_item(items):
    labels, first, second = ([each[place] for each in items] for place in range(3))
    found = paired_test(make(labels, first), make(labels, second))
    one = sum(a == label != b for label, a, b in items)
    other = sum(b == label != a for label, a, b in items)
    assert (found.only_first, found.only_second) == (one, other)
    assert found.p_value == pytest.approx(slow_p_value(one, other))


def test_only_the_same_items_are_compared():
    one = make([0, 1, 2], [0, 1, 1])
    for other in (make([0, 1, 1], [0, 1, 1]), make([0, 1], [0, 1])):
        with pytest.raises(ValueError, match="different items"):
            paired_test(one, other)
    scores = Predictions.of(np.arange(2), np.array([0.5, 1.0]), np.array([0.4, 1.1]), np.array([[0.4], [1.1]]))
    with pytest.raises(ValueError, match="neither right nor wrong"):
        paired_test(scores, scores)


@pytest.mark.parametrize("classes", [1, 3, 1000])
def test_predictions_survive_the_disk(classes, tmp_path: Path):
    generator = np.random.default_rng(classes)
    count = 2 + MOST_LOGITS // 1000
    logits = 30 * generator.standard_normal((count, classes)).astype(np.float32)
    predictions = logits[:, 0] if classes == 1 else logits.argmax(1)
    labels = generator.random(count) if classes == 1 else generator.integers(0, classes, count)
    indices = np.sort(generator.permutation(3 * count)[:count])
    written = Predictions.of(indices, labels, predictions, logits)
    written.write(tmp_path / PREDICTIONS_FILE)
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS_FILE], "nothing half written is left"
    read = read_predictions(tmp_path)
    assert all(np.array_equal(getattr(read, name), getattr(written, name)) for name in FIELDS)
    assert all(getattr(read, name).dtype == getattr(written, name).dtype for name in FIELDS)
    if classes < 1000:
        assert read.logits.dtype == np.float16 and read.top_classes.size == 0
        assert read.logits == pytest.approx(logits, rel=1e-3, abs=1e-6)
        return
    assert read.logits.size == 0 and read.top_classes.shape == (count, TOP)
    assert (read.top_classes[:, 0] == predictions).all()
    assert (np.diff(read.top_probabilities.astype(float), axis=1) <= 0).all()
    for item in (0, count - 1):
        expected = np.exp(logits[item].astype(float)) / np.exp(logits[item].astype(float)).sum()
        best = np.argsort(-expected)[:TOP]
        assert read.top_classes[item].tolist() == best.tolist()
        assert read.top_probabilities[item] == pytest.approx(expected[best], rel=1e-3, abs=1e-6)


def test_logits_beyond_half_precision_stay_finite():
    found = Predictions.of(np.arange(1), np.array([1]), np.array([1]), np.array([[-1e9, 1e9]]))
    assert np.isfinite(found.logits).all() and found.logits.argmax() == 1


def test_two_classes_keep_their_logits_however_many_items():
    logits = np.zeros((MOST_LOGITS, 2), np.float32)
    found = Predictions.of(np.arange(len(logits)), np.zeros(len(logits), int), np.zeros(len(logits), int), logits)
    assert found.logits.shape == logits.shape


def test_a_broken_file_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_predictions(tmp_path)
    path = tmp_path / PREDICTIONS_FILE
    make([0, 1], [0, 0]).write(path)
    for content in (path.read_bytes()[:-100], path.read_bytes()[:100], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError):
            read_predictions(tmp_path)
    np.savez(path, indices=np.arange(2))
    with pytest.raises(ValueError, match="no predictions"):
        read_predictions(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(3, int)}, r"labels has shape \(3,\), not \(2,\)"),
        ({"indices": np.array([1, 1])}, "twice or out of order"),
        ({"indices": np.array([2, 1])}, "twice or out of order"),
        ({"logits": np.zeros(2, np.float16)}, "logits has shape"),
        ({"top_classes": np.zeros((2, 5), np.int32)}, "probabilities"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    values = {name: getattr(make([0, 1], [0, 0]), name) for name in FIELDS}
    with pytest.raises(ValueError, match=message):
        Predictions(**(values | changes))
