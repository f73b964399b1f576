"""Experiments of text run from end to end on stand-ins: a tiny BERT, a few sentences a task, two steps a stage.

Of each grid one value is run, of what is chosen by validation two; test_conf.py checks the settings of the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from sttabt.cli.composition import config_folder
from sttabt.report.rows import Row
from sttabt.run import main
from sttabt.settings import method_names
from test_conf import TEXT_MODELS
from test_text_data import glue_settings, glue_tables, make_small_bert, sentences

TASKS = ("cola", "stsb")  # a sentence with a class, two with a score
SMALL = [
    *("model.width=32", "model.heads=4", "model.depth=2", "hardware=cpu", "hardware.batch_size=32", "logger=none"),
    *("evaluation.timing_rounds=0", "evaluation.gallery=0", "fast_dev_run=2"),
]
RUNS = {  # what narrows the grids, and the methods of a task's rows
    "glue_topk": (
        ["sparsity.keep_ratio=0.3", "approx.factor=4"],
        ["dense", "forward_topk", "backtracking actual", "backtracking approximate"],
    ),
    "glue_concrete": (["sparsity.p_logit=0", "approx.factor=4"], ["dense", "concrete"]),
    "glue_ltp": (
        ["sparsity.mask_weight=0.1", "sparsity.temperature=0.1,0.5", "sparsity.training.learning_rate=1e-2"],
        ["dense", "ltp", "ltp"],
    ),
    "glue_search": (
        ["sparsity.p_logit=0", "sparsity.training.learning_rate=1e-2", "sparsity.training.global_batch_size=24,48"],
        ["dense", "concrete", "concrete"],
    ),
    "movie_reviews": (
        [
            *("sparsity.keep_ratio=0.3", "approx.factor=4", "sparsity.p_logit=0", "sparsity.mask_weight=0.1"),
            "sparsity.temperature=0.1",
        ],
        ["dense", "forward_topk", "backtracking actual", "backtracking approximate", "concrete", "ltp"],
    ),
    "movie_review_scores": (["sparsity.p_logit=-1", "sparsity.mask_weight=0.1"], ["dense", "concrete", "ltp"]),
}
RIVALS = "rivals_movie_reviews"


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bert/, glue/TASK/, reviews.txt and corpus.txt."""
    folder = tmp_path_factory.mktemp("text")
    make_small_bert(folder / "bert", layers=2, heads=4)
    (folder / "corpus.txt").write_text("\n".join(sentences(80, seed=3)), encoding="utf-8")
    for task in TASKS:
        tables = glue_tables(glue_settings(task, f"model.huggingface={folder / 'bert'}"))
        frames = {split: Dataset.from_pandas(frame, preserve_index=False) for split, frame in tables.items()}
        DatasetDict(frames).save_to_disk(str(folder / "glue" / task))
    scores = np.linspace(-3.9, 3.9, 200)
    reviews = [
        f"{place}\t{score:.3f}\t{text}" for place, (score, text) in enumerate(zip(scores, sentences(200), strict=True))
    ]
    (folder / "reviews.txt").write_text("\n".join(reviews), encoding="utf-8")
    return folder


pytestmark = pytest.mark.usefixtures("own_folder")


def test_every_experiment_of_text_is_run_here() -> None:
    experiments = {path.stem: path.read_text() for path in (config_folder() / "experiment").glob("*.yaml")}
    of_text = {name for name, text in experiments.items() if any(f"/model: {model}" in text for model in TEXT_MODELS)}
    assert {*RUNS, RIVALS} == of_text


def test_the_rivals_of_text_run(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [f"model.huggingface={stand_in / 'bert'}", f"approx.corpus={stand_in / 'corpus.txt'}"]
    files += [f"dataset.path={stand_in / 'reviews.txt'}", "budget.macs=0.5"]
    monkeypatch.setattr(sys, "argv", ["sttabt", f"experiment={RIVALS}", *SMALL, *files])
    main()
    rows = [Row.read(path) for path in Path("runs").rglob("row.json")]
    assert {row.method for row in rows} == set(method_names())
    assert [sum(row.seed == seed for row in rows) for seed in (0, 1, 2)] == [26, 7, 7], "more seeds of the best"
    assert sum(row.budget is None for row in rows) == 4, "dense, of three seeds, and the control have none"
    assert list(Path("runs").rglob("rivals.md"))


@pytest.mark.parametrize("experiment", RUNS)
def test_an_experiment_of_text_runs(experiment: str, stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrowed, methods = RUNS[experiment]
    glue = experiment.startswith("glue")
    tasks = [f"glue_{task}" for task in (TASKS if experiment == "glue_concrete" else TASKS[:1])]
    files = [f"model.huggingface={stand_in / 'bert'}", f"approx.corpus={stand_in / 'corpus.txt'}"]
    files += [f"dataset.path={stand_in / ('glue' if glue else 'reviews.txt')}"]
    if glue:
        narrowed = [*narrowed, f"dataset={','.join(tasks)}"]
    arguments = [f"experiment={experiment}", *SMALL, *files, *narrowed]
    if experiment == "glue_ltp":
        arguments = [each for each in arguments if not each.startswith("approx.")]
    monkeypatch.setattr(sys, "argv", ["sttabt", *arguments])
    main()
    rows = [Row.read(path) for path in Path("runs").rglob("row.json")]
    names = tasks if glue else [experiment]
    found = {
        name: sorted(" ".join(filter(None, (r.method, r.settings.get("attention")))) for r in rows if r.dataset == name)
        for name in names
    }
    assert found == {name: sorted(methods) for name in names}
    assert {row.metric for row in rows} <= {"matthews", "pearson", "accuracy"}
    for row in rows:
        assert (row.validation_loss is not None) == (row.method in ("concrete", "ltp"))
        assert row.experiment == experiment and row.score_masked is not None
    (sweep,) = Path("runs").iterdir()
    pages = sorted(path.parent.relative_to(sweep).as_posix() for path in sweep.rglob("index.html"))
    assert pages == ["report"], "one report, in which data sets stay apart"
    if experiment in ("glue_ltp", "glue_search"):
        _check_choice(
            rows,
            sweep / pages[0],
            tasks[0],
            "temperature" if experiment == "glue_ltp" else "training.global_batch_size",
        )


def _check_choice(rows: list[Row], report: Path, dataset: str, setting: str) -> None:
    tried = [row for row in rows if row.dataset == dataset and row.method != "dense"]
    assert len({row.settings[setting] for row in tried}) == 2
    assert len({row.validation_loss for row in tried}) == 2
    best = min(tried, key=lambda row: row.validation_loss or 0)
    (shown,) = pd.read_csv(report / "table.csv").query("method != 'dense'").to_dict("records")
    assert shown[f"settings.{setting}"] == best.settings[setting]
    assert f"{setting} {best.settings[setting]:g}" in (report / "table.md").read_text(encoding="utf-8")
    if setting == "training.global_batch_size":
        models = {stage: len(list(Path("artifacts", stage).glob("*/artifact.json"))) for stage in ("base", "approx")}
        assert models == {"base": 1, "approx": 1}, "the batch is that of the method's training alone"
