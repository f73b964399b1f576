"""The ablations run from end to end: two values each, two steps a stage, and the sweep's report has their figure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sttabt.report.rows import Row
from sttabt.run import main

SMALL = ["hardware.threads=1", "logger=none", "fast_dev_run=2", "seed=0", "evaluation.timing_rounds=0"]
RUNS = {  # what narrows the grids to two jobs or four
    "ablation_p": ["sparsity=backtracking", "approx.factor=4", "sparsity.propagation=0,1"],
    "ablation_lambda": ["sparsity.lambda_mask=1,100", "sparsity.lambda_p=1e-5,1e-1"],
    "ablation_factor": ["sparsity=backtracking", "sparsity.keep_ratio=0.2", "approx.factor=8,16"],
}


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize("experiment", RUNS)
def test_an_ablation_ends_with_its_figure(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [f"experiment={experiment}", *RUNS[experiment], *SMALL, "hydra.sweep.dir=out"]
    monkeypatch.setattr(sys, "argv", ["sttabt", *arguments])
    main()
    rows = [Row.read(path) for path in sorted(Path("out").glob("*/row.json"))]
    assert len(rows) == (4 if experiment == "ablation_lambda" else 2)
    assert {row.experiment for row in rows} == {experiment}
    assert (Path("out") / "report" / f"{experiment}.png").exists()
