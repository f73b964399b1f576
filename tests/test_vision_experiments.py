"""Experiments on ImageNet run from end to end on a stand-in: a folder of tiny images, two steps a stage."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sttabt.pretrained.lvvit import build_lvvit
from sttabt.pretrained.timm_model import build_timm
from sttabt.report.rows import Row
from sttabt.run import main

CLASSES = ("cat", "dog", "owl")
SIZES = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL = [
    *("dataset.image_size=32", "dataset.classes=3", "dataset.validation_share=0.3", "dataset.augment=false"),
    *("model.width=32", "model.depth=2", "model.heads=2", "model.patch_size=8", "model.pretrained=false"),
    f"+model.arguments={{{','.join(f'{name}:{value}' for name, value in SIZES.items())}}}",
    *("hardware=cpu", "hardware.batch_size=8", "logger=none", "evaluation.batch_size=8", "evaluation.timing_rounds=0"),
    *("evaluation.gallery=2", "fast_dev_run=2", "approx.training.global_batch_size=8"),
]
RUNS = {  # what narrows the grids, and the methods of the rows
    "deit_concrete": (
        ["sparsity.p_logit=-1,0.5", "approx.factor=4", "sparsity.training.global_batch_size=8"],
        ["concrete", "concrete", "dense"],
    ),
    "lvvit_concrete": (
        ["sparsity.p_logit=0", "sparsity.training.global_batch_size=8"],
        ["concrete", "dense"],
    ),
    "deit_topk": (
        ["sparsity.keep_ratio=0.4"],
        ["backtracking actual", "backtracking approximate", "dense", "forward_topk"],
    ),
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has its own folder with images and weights, and gets back the log handlers that Hydra replaces."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for place, name in enumerate(CLASSES):
            folder = Path("imagenet", part, name)
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.normal(60 * (place + 1), 40, (36, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.jpg")
    torch.manual_seed(0)
    torch.save(build_timm("deit_small_patch16_224", SIZES, 3, 3, 32).model.state_dict(), "deit.pth")
    released = build_lvvit("small", SIZES, 3, 3, 32, auxiliary=True).model.state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in released.items()}}, "lvvit.pth.tar")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def _run(monkeypatch: pytest.MonkeyPatch, experiment: str, *overrides: str) -> list[Row]:
    weights = "lvvit.pth.tar" if experiment.startswith("lvvit") else "deit.pth"
    given = [f"experiment={experiment}", "dataset.path=imagenet", f"model.checkpoint={weights}", *SMALL, *overrides]
    monkeypatch.setattr(sys, "argv", ["sttabt", *given])
    main()
    return [Row.read(path) for path in Path("runs").rglob("row.json")]


@pytest.mark.parametrize("experiment", RUNS)
def test_an_experiment_on_imagenet_runs(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    narrowed, methods = RUNS[experiment]
    rows = _run(monkeypatch, experiment, *narrowed)
    assert sorted(" ".join(filter(None, (row.method, row.settings.get("attention")))) for row in rows) == methods
    assert {row.experiment for row in rows} == {experiment}
    masked = [row for row in rows if row.score_masked is not None]
    assert masked and all(row.score_masked == row.score for row in masked)
    made = {stage: len(list(Path("artifacts", stage).glob("*/artifact.json"))) for stage in ("base", "approx")}
    assert made == {"base": 1, "approx": 1}, "given once, distilled once"
    (page,) = Path("runs").rglob("index.html")
    assert (page.parent / "table.md").is_file() and (page.parent / "pareto.png").is_file()


@pytest.mark.parametrize("override", ["approx.stem=shared", "model.auxiliary=true"])
def test_the_other_choices_of_lvvit_run(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    narrowed = ("sparsity.p_logit=0", "sparsity.training.global_batch_size=8")
    (row,) = _run(monkeypatch, "lvvit_concrete", "sparsity=concrete_vision", *narrowed, override)
    assert row.score_masked == row.score and row.approx is not None
    if override == "model.auxiliary=true":
        assert row.occupancy_by_boundary[-1] == row.occupancy_by_boundary[-2]
        assert row.macs["head"] > 32 * 3
    else:
        assert row.occupancy_by_boundary[-1] == pytest.approx(1 / 17) and row.macs["head"] == 32 * 3


def test_an_approximate_network_that_is_given_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    _run(monkeypatch, "deit_topk", "sparsity=backtracking", "sparsity.keep_ratio=0.4")
    (made,) = Path("artifacts", "approx").glob("*/model.safetensors")
    Path("given.safetensors").write_bytes(made.read_bytes())
    rows = _run(
        monkeypatch,
        "deit_topk",
        *("sparsity=backtracking", "sparsity.keep_ratio=0.4", "approx.checkpoint=given.safetensors"),
        "paths.artifacts=elsewhere",
    )
    first, second = rows
    assert first.approx == second.approx and first.occupancy == second.occupancy
    (again,) = Path("elsewhere", "approx").glob("*/model.safetensors")
    assert again.read_bytes() == made.read_bytes()
