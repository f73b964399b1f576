"""The comparison of runtimes: real processes on a small measurement, its table, and mistakes in one line."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from sttabt.bench.runtimes import main, read_options
from sttabt.bench.runtimes_process import Variant, time_in_turn
from sttabt.bench.runtimes_table import RuntimeRow, format_rows
from sttabt.errors import UserError


def test_variants_are_measured_in_processes_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runtimes = ["torch", "frozen", *(["onnx"] if find_spec("onnxruntime") and find_spec("onnxscript") else [])]
    given = [f"runtimes=[{','.join(runtimes)}]", "budgets=[0.5]", "batches=[1,2]", "rounds=1", "threads=1"]
    assert main(["model=deit_tiny", "int8=false", f"out={tmp_path}", *given]) == 0
    rows = [json.loads(line) for line in (tmp_path / "runtimes.jsonl").read_text().splitlines()]
    assert [(row["runtime"], row["budget"], row["batch"]) for row in rows if row["runtime"] == "torch"] == [
        (name, budget, batch) for batch in (1, 2) for name in ("torch",) for budget in (None, 0.5)
    ]
    assert {row["runtime"] for row in rows} == set(runtimes)
    dense, pruned = rows[0], next(row for row in rows if row["budget"])
    assert dense["macs_share"] == dense["ratio"] == dense["own_ratio"] == 1 and set(dense["counts"][:-1]) == {197}
    assert pruned["macs_share"] == pytest.approx(0.5, abs=0.02) and pruned["counts"][0] < 197
    for row in rows:
        assert row["ms"] >= row["ms_least"] > 0 and row["peak_mebibytes"] > 10 and row["file_mebibytes"] > 20
    assert (tmp_path / "runtimes.md").read_text() in capsys.readouterr().out


def test_a_table_has_a_line_a_row_by_batch_and_runtime() -> None:
    common = {"machine": "m", "threads": 2, "torch": "2", "commit": "c", "model": "deit_tiny", "rounds": 3}
    rows = [
        RuntimeRow(
            **common, runtime=name, int8=int8, budget=budget, macs_share=budget or 1.0, counts=(4, 2, 1),
            file_mebibytes=3.0, batch=batch, ms=8.0, ms_least=7.0, ratio=0.6, own_ratio=0.3, peak_mebibytes=50.0,
        )
        for budget in (None, 0.5) for name, int8 in (("onnx", False), ("onnx", True)) for batch in (8, 1)
    ]  # fmt: skip
    lines = [line.split(" | ") for line in format_rows(rows).splitlines() if line.startswith("| 1 |")]
    assert [(line[1], line[2], line[7]) for line in lines] == [
        ("onnx", "dense", ""), ("onnx", "budget 0.5", "0.60"),
        ("onnx int8", "dense", ""), ("onnx int8", "budget 0.5", "0.60"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "argument, line",
    [
        ("modle=deit_tiny", "did you mean 'model'?"),
        ("model=deit_smal", "did you mean 'deit_small'?"),
        ("runtimes=[onx]", "did you mean 'onnx'?"),
        ("budgets=[1.5]", "budgets=[1.5]: give a value like [0.7, 0.5, 0.35]"),
        ("batches=[0]", "batches=[0]: give a value like [1, 8]"),
        ("rounds=many", "rounds=many: give a value like 15"),
        ("int8=yes", "int8=yes: give a value like true"),
        ("out", "cannot read 'out': give out=VALUE"),
    ],
)
def test_a_mistake_is_one_line(argument: str, line: str, capsys: pytest.CaptureFixture) -> None:
    assert main([argument]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_settings_are_read() -> None:
    read = read_options(["budgets=[0.6,0.4]", "batches=4", "int8=false", "runtimes=[torch]"])
    assert (read["budgets"], read["batches"], read["int8"]) == ([0.6, 0.4], [4], False)
    assert read["runtimes"] == ["torch"] and read["out"] == Path("runs/runtimes_deit_small")


def test_a_process_that_ends_is_one_line(tmp_path: Path) -> None:
    gone = Variant("deit_tiny", "torch", False, None, 1.0, (197,) * 12 + (1,), str(tmp_path / "gone"), 0.0)
    with pytest.raises(UserError, match="the process of deit_tiny in torch ended by itself: give fewer") as caught:
        list(time_in_turn([gone], [1], rounds=1, threads=1))
    assert "\n" not in str(caught.value)
