"""Rows of this schema and of older ones, in row.json and in table.csv."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttabt.report.csv_rows import read_table, write_table
from sttabt.report.points import to_points
from sttabt.report.reading import read_rows
from sttabt.report.rows import Row
from test_report import APPROX, TIMES, make_row, make_sweep, write_rows
from test_report_figures import make_ablation_lambda
from test_report_texts import make_text_sweep

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

# --- older schemas

OWN = {  # fields that rows had until schema 5
    "attention": None,
    "p_logit": None,
    "keep_ratio": None,
    "merged": None,
    "mask_weight": None,
    "propagation": None,
}
TRAINING = {"training.batch": 32, "training.clip": 1.0, "training.epochs": 8}
NAMED_NOW = {"training.global_batch_size": 32, "training.grad_clip_norm": 1.0, "training.epochs": 8}


def older(schema: int, method: str, own: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What a file of that schema holds."""
    values = make_row(method).to_dict() | OWN | own | {"schema": schema, "method": method, "settings": settings}
    later = ["label", "knob", "left_to_torch", "budget", "budget_of"]
    later += ["validation"] * (schema < 5) + ["ema"] * (schema < 4) + ["validation_loss"] * (schema < 3)
    if schema < 2:
        later += ["other_scores", "occupancy_padded", "time_baseline"]
    return {name: value for name, value in values.items() if name not in later}


@pytest.mark.parametrize("schema", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("method", "own", "settings", "label", "knob", "converted"),
    [
        ("dense", {}, {}, "dense", None, {}),
        (
            *("concrete", {"p_logit": -1.5, "propagation": 0.1}, {"temperature": 0.1, **TRAINING}, "concrete"),
            *("p_logit", {"p_logit": -1.5, "propagation": 0.1, "temperature": 0.1, **NAMED_NOW}),
        ),
        (
            *("backtracking", {"attention": "actual", "keep_ratio": 0.3, "propagation": 0.1}, {"counts": ""}),
            *("back-tracking (actual attention)", "keep_ratio"),
            {"attention": "actual", "keep_ratio": 0.3, "propagation": 0.1, "dynamic": False, "counts": ""},
        ),
        (
            *("backtracking", {"attention": "approximate", "propagation": 0.1}, {}),
            *("back-tracking (approximate attention)", None),
            {"attention": "approximate", "propagation": 0.1, "dynamic": True, "counts": ""},
        ),
        (
            *("backtracking", {"attention": "approximate", "propagation": 0.1}, {"counts": "18 10 4"}),
            *("back-tracking (approximate attention)", None),
            {"attention": "approximate", "propagation": 0.1, "dynamic": False, "counts": "18 10 4"},
        ),
        ("ltp", {"mask_weight": 0.1}, {"batch": 24}, "LTP", "mask_weight",
         {"mask_weight": 0.1, "training.global_batch_size": 24}),
        ("forward_topk", {"keep_ratio": 0.4}, {}, "forward top-k", "keep_ratio", {"keep_ratio": 0.4}),
        ("tome", {"merged": 8}, {}, "ToMe", "merged", {"merged": 8}),
        ("random", {"keep_ratio": 0.4}, {"seed": 1}, "random", "keep_ratio", {"keep_ratio": 0.4, "seed": 1}),
        ("my_method", {"keep_ratio": 0.4}, {}, "my method", None, {"keep_ratio": 0.4}),
    ],
)  # fmt: skip
def test_older_rows_are_read(schema, method, own, settings, label, knob, converted, tmp_path):
    values = older(schema, method, own, settings)
    (tmp_path / "row.json").write_text(json.dumps(values))
    row = Row.read(tmp_path / "row.json")
    assert (row.schema, row.label, row.knob, row.settings) == (7, label, knob, converted)
    assert row.knob_value == (None if knob is None else converted[knob])
    expected = replace(make_row(method), label=label, knob=knob, settings=converted)
    assert row == expected and row.left_to_torch == []
    if schema == 1:
        (tmp_path / "row.json").write_text(json.dumps(values | {"time": None}))
        assert Row.read(tmp_path / "row.json") == replace(expected, time=None, time_baseline=None)


def test_a_row_without_budget_is_read(tmp_path):
    row = make_row("concrete", settings={"p_logit": -1.0, "note": "18"})
    values = row.to_dict() | {"schema": 6}
    (tmp_path / "row.json").write_text(json.dumps({n: v for n, v in values.items() if not n.startswith("budget")}))
    assert Row.read(tmp_path / "row.json") == row
    write_table([row], tmp_path / "table.csv")
    head, line = (text.split(",") for text in (tmp_path / "table.csv").read_text().splitlines())
    cells = dict(zip(head, line, strict=True))
    assert not any(name.startswith("budget") and text for name, text in cells.items())
    cells = {name: text for name, text in cells.items() if not name.startswith("budget")} | {"schema": "6"}
    (tmp_path / "table.csv").write_text(f"{','.join(cells)}\n{','.join(cells.values())}\n")
    assert read_table(tmp_path / "table.csv") == ([row], []), "a text that looks like a number stays a text"


def test_a_broken_older_row_is_refused(tmp_path):
    for changes, message in (({"settings": [1]}, "no JSON object"), ({"warmth": 1}, "unknown warmth")):
        (tmp_path / "row.json").write_text(json.dumps(older(5, "dense", {}, {}) | changes))
        with pytest.raises(ValueError, match=message):
            Row.read(tmp_path / "row.json")


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*/table.csv")), ids=lambda path: path.parent.name)
def test_the_tables_of_the_experiments_are_read_and_written_again(path, tmp_path):
    rows, broken = read_table(path)
    assert broken == [] and len(rows) == len(path.read_text().splitlines()) - 1
    assert len({row.label for row in rows}) > 1
    assert all((row.knob is None) == (row.method == "dense") for row in rows)
    assert not {"batch", "training.batch", "training.clip"} & {name for row in rows for name in row.settings}
    write_table(rows, tmp_path / "table.csv")
    assert read_table(tmp_path / "table.csv") == (rows, [])


# --- table.csv


@pytest.mark.parametrize(
    "rows", [make_sweep(), make_text_sweep(), make_ablation_lambda()], ids=["all", "text", "settings"]
)
def test_rows_survive_a_table(rows, tmp_path):
    write_table(rows, tmp_path / "table.csv")
    assert read_rows([tmp_path / "table.csv"]) == rows


LETTERS = st.characters(exclude_categories=["Cs"])  # all that UTF-8 can say
NAMES = st.one_of(st.text("abcdefgz_.0123", min_size=1, max_size=8), st.text(LETTERS, max_size=4))
TEXTS = st.one_of(
    st.text(LETTERS, max_size=12),
    st.sampled_from(["", "null", "true", "False", "1", "1.0", "-0", "1e3", "NaN", '"', '""', "[1]", "18 10 4", "a,b"]),
    st.sampled_from(["\n", "\r", "a\r\nb", "\u2028", "'", "None"]),
)
NUMBERS = st.one_of(
    st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
)
COUNTS = st.one_of(st.integers(0, 2**60), st.floats(0, 1e30, allow_subnormal=False))
SETTINGS = st.dictionaries(NAMES, st.one_of(TEXTS, NUMBERS, st.booleans(), st.none()), max_size=5)
SHARES = st.one_of(st.floats(0, 1, allow_subnormal=False), st.sampled_from([0, 1]))


@st.composite
def any_row(draw: st.DrawFn) -> Row:
    """A row with whatever its fields may hold."""
    own = draw(SETTINGS)
    counts = {key: draw(NUMBERS) for key in draw(st.sampled_from([(), ("single_ms",)]))}
    changes = {
        **{name: draw(TEXTS) for name in ("experiment", "command", "commit", "device", "dataset", "label", "sweep")},
        **{name: draw(SHARES) for name in ("score", "occupancy")},
        **{name: draw(st.one_of(st.none(), SHARES)) for name in ("score_soft", "score_ema", "occupancy_padded")},
        "seed": draw(st.integers(-3, 2**40)),
        "factor": draw(st.one_of(st.none(), st.integers(1, 16))),
        "knob": draw(st.sampled_from([None, *own])),
        "loss": draw(NUMBERS),
        "occupancy_by_boundary": draw(st.lists(SHARES, max_size=12)),
        "macs": draw(st.dictionaries(NAMES, COUNTS, max_size=3)),
        "seconds": draw(st.dictionaries(NAMES, NUMBERS, max_size=3)),
        "other_scores": draw(st.dictionaries(st.sampled_from(["f1", "top5"]), SHARES)),
        "time": draw(st.sampled_from([None, TIMES | counts])),
        "time_baseline": draw(st.one_of(st.none(), TEXTS)),
        "approx": draw(st.sampled_from([None, APPROX])),
        "left_to_torch": draw(st.lists(TEXTS, max_size=3)),
    }
    return replace(make_row(), settings=own, **changes)


@given(st.lists(any_row(), min_size=1, max_size=4))
@settings(deadline=None)  # files are synced to the disk
def test_any_rows_are_the_same_in_a_table_and_in_files(rows):
    with tempfile.TemporaryDirectory() as folder:
        write_table(rows, Path(folder) / "table.csv")
        write_rows(Path(folder) / "rows", rows)
        found, broken = read_table(Path(folder) / "table.csv")
        assert broken == []
        files = [Row.read(path) for path in sorted((Path(folder) / "rows").glob("*/row.json"))]
        # As text, since 1 == 1.0 == True.
        assert [json.dumps(row.to_dict(), sort_keys=True) for row in found] == [
            json.dumps(row.to_dict(), sort_keys=True) for row in files
        ]


@given(st.lists(any_row(), min_size=1, max_size=3), st.integers(1, 3))
@settings(deadline=None)
def test_seeds_in_a_table_are_averaged_with_those_in_files(rows, more):
    """Of each row one seed is in a table and the others are in files; the first row is in both."""
    rows = [replace(row, label=f"method {number}") for number, row in enumerate(rows)]
    others = [replace(row, seed=row.seed + extra) for row in rows for extra in range(1, more + 1)]
    with tempfile.TemporaryDirectory() as folder:
        write_table(rows, Path(folder) / "table.csv")
        write_rows(Path(folder) / "rows", [rows[0], *others])
        for places in (["rows", "table.csv"], ["table.csv", "rows"]):
            found = read_rows([Path(folder) / place for place in places])
            assert [len(point.rows) for point in to_points(found)] == [more + 1] * len(rows)
            beside = next(row for row in found if row == rows[0])
            assert beside.folder == Path(folder) / "rows" / "job-0", "whose gallery is shown"


def test_a_setting_that_older_tables_left_out_is_one_that_is_empty():
    rows = [make_row(seed=seed, settings=own) for seed, own in enumerate(({"note": ""}, {}, {"note": None}))]
    (point,) = to_points(rows)
    assert len(point.rows) == 3 and point.variant == ""
    assert len(to_points([*rows, make_row(seed=3, settings={"note": "0"})])) == 2
