"""The comparison of runtimes: real processes on a small measurement, its table, and mistakes in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch

import sttabt
from conftest import make_text
from sttabt.bench.runtimes import main, read_options
from sttabt.bench.runtimes_process import Variant, predict, time_in_turn, write_inputs
from sttabt.bench.runtimes_subject import Subject
from sttabt.bench.runtimes_table import RuntimeRow, format_rows
from sttabt.data import load_splits
from sttabt.data.base import Batch, evaluation_loader
from sttabt.errors import UserError
from sttabt.pipeline.samples import even_sample
from sttabt.runtimes.graph import Graph
from sttabt.runtimes.saved import batches_of
from sttabt.settings.noted import noted_dataset
from sttabt.store.artifacts import RECORD, read_record
from sttabt.testing.models import make_example, make_pruned

ONNX = find_spec("onnxruntime") and find_spec("onnxscript")


def test_variants_are_measured_in_processes_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runtimes = ["torch", "frozen", *(["onnx"] if ONNX else [])]
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


def test_what_a_run_trained_has_an_accuracy_in_every_runtime(
    artifacts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["budgets=[0.8]", "batches=[2]", "rounds=1", "threads=1", "runtimes=[torch,frozen]", "items=90"]
    assert main([f"model={artifacts['prune']}", f"out={tmp_path}", *given]) == 0
    rows = [json.loads(line) for line in (tmp_path / "runtimes.jsonl").read_text().splitlines()]
    assert [(row["runtime"], row["budget"]) for row in rows] == [
        ("torch", None), ("frozen", None), ("torch", 0.8), ("frozen", 0.8)
    ]  # fmt: skip
    assert rows[0]["counts"] and rows[2]["counts"] == [], "each image has its own"
    pruned, record = sttabt.load(artifacts["prune"]), read_record(artifacts["prune"] / RECORD)
    splits = load_splits(noted_dataset(record["notes"]["settings"]))
    (batch,) = evaluation_loader(even_sample(splits.test, 90), 90)
    with torch.inference_mode():
        dense = pruned.base(batch.inputs).argmax(-1)
        sttabt.calibrate(pruned, 0.8, list(batches_of(splits.validation, 256)))
        kept = pruned(batch.inputs).argmax(-1)
    for row in rows:
        classes = dense if row["budget"] is None else kept
        assert row["items"] == 90 and row["accuracy"] == pytest.approx(float((classes == batch.labels).double().mean()))
        assert row["same"] == pytest.approx(float((classes == dense).double().mean()))
    assert main([f"model={artifacts['prune']}", "batches=[400]"]) == main([f"model={artifacts['base']}"]) == 2
    said = capsys.readouterr()
    assert "batches=[400]: the test split has 360 samples" in said.err and "is no artifact of a run that is" in said.err
    assert "| accuracy % | same % |" in said.out and "Accuracy is on 90 items" in said.out and "random" not in said.out


@pytest.mark.skipif(not ONNX, reason="the extra sttabt[export] is not installed")
@pytest.mark.usefixtures("own_folder")
@torch.no_grad()
def test_texts_of_unequal_length_keep_a_share_in_torch_and_a_number_in_a_file() -> None:
    text = make_text()
    pruned, tokens = make_pruned(make_example("bert"), "backtracking"), text.ids.shape[1]
    subject = Subject("texts", pruned, [text], {4: text}, tokens, Batch(text, torch.tensor([0, 1, 0, 1])))
    made = subject.at(0.8)
    assert made.own_share == pytest.approx(0.8, abs=0.05) and made.file_share == pytest.approx(0.8, abs=0.05)
    write_inputs(subject, Path("inputs.pt"))
    made.export(Path("model.onnx"), format="onnx")
    paths = {"torch": str(made.pruned.save_pretrained("saved")), "onnx": "model.onnx"}
    common: dict[str, Any] = {"model": "texts", "int8": False, "budget": 0.8, "macs_share": 0.8, "file_mebibytes": 0.0}
    common |= {"counts": tuple(made.boundaries), "inputs": "inputs.pt"}
    variants = [Variant(**common, runtime=name, path=path) for name, path in paths.items()]
    own, file = (found.tolist() for _, found in predict(variants, threads=1))
    assert own == made.pruned.run(text).logits.argmax(-1).tolist()
    graph = Graph(pruned, made.counts, tokens)
    assert file == graph.expected(graph.tensors(text)).argmax(-1).tolist()


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
        ("model=deit_smal", "model=deit_smal is no folder, and unknown: did you mean 'deit_small'?"),
        ("model=artifacts/none", "model=artifacts/none is no artifact of a run that is pruned: give artifacts/approx/"),
        ("items=3", "items=3 has no effect on random weights: leave it out"),
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


@pytest.mark.usefixtures("own_folder")
def test_a_process_that_ends_or_fails_is_one_line() -> None:
    example = make_example("digits")
    saved = make_pruned(example, "dense").save_pretrained("saved")
    torch.save({"timed": {1: [example.inputs[:1]], 2: [example.inputs[:2]]}, "test": []}, "inputs.pt")
    model = Variant("digits", "torch", False, None, 1.0, (50, 50, 1), str(saved), "inputs.pt", 0.0)
    turns = time_in_turn([model], [1, 2], rounds=1, threads=1)
    assert next(turns)[1].ms > 0
    for child in active_children():
        child.kill()
    with pytest.raises(UserError, match="the process of digits in torch ended by itself: give fewer") as caught:
        next(turns)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="gone is not there: give the folder of a model"):
        next(time_in_turn([model, replace(model, path="gone")], [1], rounds=1, threads=1))
    assert not active_children(), "one that is stopped would keep this process from ending"
    torch.save({"timed": {}, "test": []}, "inputs.pt")
    with pytest.raises(UserError, match="digits does not run in torch: 1"):
        next(turns := time_in_turn([model], [1], rounds=1, threads=1))
    turns.close()
