"""The table of rivals: who is best under a budget, paired tests, agreement with dense; files and page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sttabt.report.build import make_report
from sttabt.report.points import points_by_dataset
from sttabt.report.predictions import PREDICTIONS_FILE, Predictions, exact_p_value
from sttabt.report.reading import read_rows
from sttabt.report.rivals import LEVEL, divergence, holm, rival_lines, same_class, verdicts, write_rivals
from sttabt.report.rows import Row
from test_report import make_row

ITEMS = 60
LABELS = np.arange(ITEMS) % 3


def said(wrong: range, sharpness: float = 4.0, items: int = ITEMS) -> Predictions:
    """Of items of three classes, those in `wrong` are put into the next class."""
    found = LABELS[:items].copy()
    found[list(wrong)] = (found[list(wrong)] + 1) % 3
    return Predictions.of(np.arange(items), LABELS[:items], found, sharpness * np.eye(3)[found])


def budgeted(
    method: str, share: float, wrong: range, seed: int = 0, asked: float = 0.5, **changes
) -> tuple[Row, Predictions]:
    budget = {"asked": asked, "reached": share, "found.keep_ratio": share}
    row = make_row(method, share, seed, budget=budget, budget_of="macs_share", score=1 - len(wrong) / ITEMS, **changes)
    return row, said(wrong)


def write(folder: Path, results: list[tuple[Row, Predictions | None]]) -> list[Row]:
    for index, (row, predictions) in enumerate(results):
        row.write(folder / f"job-{index}" / "row.json")
        if predictions is not None:
            predictions.write(folder / f"job-{index}" / PREDICTIONS_FILE)
    return read_rows([folder])


def make_rivals(folder: Path) -> list[Row]:
    """Under one budget: random 20 of 60 wrong, forward top-k 3, ToMe 4 (2 of them the same), two seeds of each."""
    results: list[tuple[Row, Predictions | None]] = []
    for seed in (0, 1):
        results.append((make_row("dense", seed=seed, score=1.0), said(range(0))))
        results.append(budgeted("random", 0.5, range(20), seed))
        results.append(budgeted("forward_topk", 0.49, range(3), seed))
        results.append(budgeted("tome", 0.48, range(1, 5), seed, knob="keep_ratio", settings={"keep_ratio": 0.48}))
    return write(folder, results)


def test_the_best_of_a_budget_and_what_the_items_say_of_the_others(tmp_path):
    lines = rival_lines(points_by_dataset(make_rivals(tmp_path))["digits"])
    assert [line.point.rows[0].method for line in lines] == ["dense", "forward_topk", "tome", "random"]
    dense, best, near, far = lines
    assert not dense.best and dense.p_value is None, "it has no budget"
    assert best.best and best.p_value is None
    # ToMe alone is wrong in items 3 and 4, forward top-k in item 0; two seeds; the second smallest p of two stays
    assert near.p_value == pytest.approx(exact_p_value(4, 2)) and near.behind == pytest.approx(1 / 60)
    assert far.p_value == pytest.approx(2 * exact_p_value(34, 0)), "the smallest of two, doubled"
    assert [line.same_class for line in lines] == pytest.approx([1, 57 / 60, 56 / 60, 40 / 60])
    (text,) = verdicts(lines)
    assert text.startswith("0.5 of macs: best is forward top-k (95.00). The items do not tell it from")
    assert text.endswith(f"1 of 2 are worse (p below {LEVEL}).")


def test_the_files(tmp_path):
    rows = make_rivals(tmp_path)
    assert write_rivals(points_by_dataset(rows), tmp_path) == tmp_path / "rivals.md"
    text = (tmp_path / "rivals.md").read_text()
    assert text.count("**") == 2 and "**95.00 ± 0.00**" in text
    assert "compared with the dense model" in text
    frame = pd.read_csv(tmp_path / "rivals.csv").set_index("method")
    assert frame.loc["random", "behind"] == pytest.approx(17 / 60) and frame.loc["random", "budget"] == 0.5
    assert frame["seeds"].eq(2).all()
    latex = (tmp_path / "rivals.tex").read_text()
    assert "**" not in latex and latex.count(r"\textbf{") == 1
    assert r"& \textbf{95.00 $\pm$ 0.00} &" in latex
    assert r"\begin{tabular}{llrr" in latex, "a number in bold is a number"


def test_each_budget_has_a_best(tmp_path):
    rows = write(
        tmp_path,
        [
            budgeted("random", 0.5, range(10)),
            budgeted("forward_topk", 0.5, range(3)),
            budgeted("random", 0.3, range(4), asked=0.3),
            budgeted("forward_topk", 0.3, range(9), asked=0.3),
        ],
    )
    lines = rival_lines(points_by_dataset(rows)["digits"])
    assert [(line.budget[1], line.point.rows[0].method) for line in lines if line.best] == [
        (0.5, "forward_topk"),
        (0.3, "random"),
    ]
    assert all(line.same_class is None and line.divergence is None for line in lines), "no dense row"
    assert len(verdicts(lines)) == 2
    text = write_rivals(points_by_dataset(rows), tmp_path).read_text()
    assert "McNemar" in text and "dense model of the same seed" not in text, "a note of columns that are not there"


def test_no_two_methods_under_one_budget_give_no_table(tmp_path):
    rows = write(tmp_path, [(make_row("dense"), said(range(0))), budgeted("random", 0.5, range(5))])
    assert write_rivals(points_by_dataset(rows), tmp_path) is None


def test_rows_without_predictions_or_of_other_items_are_not_tested(tmp_path):
    """A row from a table has no predictions beside it; one of fewer items is of another sample size."""
    few, _ = budgeted("random", 0.5, range(5), samples=40)
    rows = write(
        tmp_path,
        [
            budgeted("forward_topk", 0.5, range(3)),
            (few, said(range(5), items=40)),
            (budgeted("tome", 0.5, range(9), knob="keep_ratio", settings={"keep_ratio": 0.5})[0], None),
        ],
    )
    lines = rival_lines(points_by_dataset(rows)["digits"])
    assert [line.p_value for line in lines] == [None] * 3
    assert verdicts(lines)[0].endswith("2 could not be tested.")


def test_a_damaged_file_of_predictions_is_named(tmp_path, caplog):
    rows = write(tmp_path, [budgeted("forward_topk", 0.5, range(3)), budgeted("random", 0.5, range(5))])
    (tmp_path / "job-1" / PREDICTIONS_FILE).write_bytes(b"no archive")
    assert rival_lines(points_by_dataset(rows)["digits"])[1].p_value is None
    assert str(tmp_path / "job-1" / PREDICTIONS_FILE) in caplog.text


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_against_its_definition(values):
    """A p-value is at most LEVEL after the correction exactly if the step-down procedure rejects it at that level."""
    corrected = holm(dict(enumerate(values)))
    for level in (0.01, 0.05, 0.5):
        rejected: set[int] = set()
        for place, key in enumerate(sorted(range(len(values)), key=lambda key: values[key])):
            if values[key] * (len(values) - place) > level:
                break
            rejected.add(key)
        assert {key for key, value in corrected.items() if value <= level} == rejected
    assert all(corrected[key] >= value for key, value in enumerate(values) if value <= 1)


def test_divergence_against_torch():
    generator = np.random.default_rng(0)
    one, other = (
        Predictions.of(np.arange(9), LABELS[:9], logits.argmax(1), logits)
        for logits in generator.normal(size=(2, 9, 3)).astype(np.float16).astype(np.float64)
    )
    logs = [torch.tensor(each.logits.astype(np.float64)).log_softmax(1) for each in (one, other)]
    expected = torch.nn.functional.kl_div(logs[1], logs[0], log_target=True, reduction="batchmean")
    assert divergence(one, other) == pytest.approx(expected.item(), rel=1e-9)
    assert divergence(one, one) == 0 and same_class(one, one) == 1
    many = replace(one, logits=np.zeros((9, 0), np.float16))
    assert divergence(one, many) is None, "of many classes the most probable alone are kept"


def test_the_page_and_the_report_have_the_table(tmp_path):
    make_rivals(tmp_path)
    files = make_report([tmp_path])
    assert files.figures["rivals"] == tmp_path / "report" / "rivals.md"
    page = files.page.read_text()
    assert "Methods under one budget" in page and '<tr class="best">' in page
    assert page.count("best is forward top-k (95.00)") == 1


def test_what_is_over_the_budget_is_compared_with_nothing(tmp_path):
    """The best score costs 0.98 where 0.5 was asked."""
    rows = write(
        tmp_path,
        [
            budgeted("tome", 0.98, range(1), knob="keep_ratio", settings={"keep_ratio": 0.98}),
            budgeted("random", 0.5, range(9)),
            budgeted("forward_topk", 0.505, range(4)),
        ],
    )
    lines = rival_lines(points_by_dataset(rows)["digits"])
    assert [(line.point.rows[0].method, line.best, line.over) for line in lines] == [
        ("forward_topk", True, False),
        ("random", False, False),
        ("tome", False, True),
    ]
    assert lines[1].p_value == exact_p_value(5, 0) and lines[2].p_value is None
    (text,) = verdicts(lines)
    assert text.endswith("Over the budget, and not compared: ToMe (98.33).")
    assert verdicts(lines[2:]) == ["0.5 of macs: no method keeps it."]
