"""The ImageNet run of eight GPUs that docs/SCALE.md describes, dry: of whole size, by two processes on the CPU."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sttabt.pretrained.lvvit import build_lvvit
from sttabt.run import main

pytestmark = pytest.mark.usefixtures("own_folder")

CLASSES = 4
SIZE, BYTES = (375, 500), 110_000  # a file of ImageNet in the mean, in pixels and on disk
COMMAND = [
    *("experiment=lvvit_concrete", "hardware=ddp_cpu", "dataset.path=imagenet", f"dataset.classes={CLASSES}"),
    *("sparsity=concrete_vision", "sparsity.p_logit=0", "hydra.mode=RUN", "stages=[base,approx,prune]"),
    *("model.pretrained=false", "model.checkpoint=lvvit.pth.tar", "dataset.validation_share=0.25", "logger=csv"),
    # 512 images an update are 64 a GPU; here they are 4, two a process.
    *("hardware.batch_size=2", "approx.training.global_batch_size=4", "sparsity.training.global_batch_size=4"),
    *("hardware.workers=1", "hardware.threads=1", "fast_dev_run=1", "trainer.log_every_n_steps=1"),
]


def _make_files() -> None:
    """Random JPEG files in ImageNet's layout, as large as its own."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 1)):
        for name in range(CLASSES):
            folder = Path("imagenet", part, f"n{name:08}")
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.JPEG", quality=75)


@pytest.mark.timeout(1200)
def test_the_run_of_eight_gpus_runs_dry_on_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    _make_files()
    sizes = [file.stat().st_size for file in Path("imagenet").rglob("*.JPEG")]
    assert np.mean(sizes) == pytest.approx(BYTES, rel=0.1)
    torch.manual_seed(0)
    torch.save(build_lvvit("small", {}, CLASSES, 3, 224, auxiliary=True).model.state_dict(), "lvvit.pth.tar")
    monkeypatch.setattr(sys, "argv", ["sttabt", *COMMAND])
    main()
    made = {stage: list(Path("artifacts", stage).glob("*/model.safetensors")) for stage in ("base", "approx", "prune")}
    assert {stage: len(files) for stage, files in made.items()} == dict.fromkeys(made, 1)
    pruned = load_file(made["prune"][0])
    assert all(value.isfinite().all() for value in pruned.values() if value.is_floating_point())
    for stage in ("approx", "prune"):
        (metrics,) = Path("runs").glob(f"*/metrics/{stage}/metrics.csv")
        with metrics.open() as lines:
            rows = list(csv.DictReader(lines))
        measured = {name for row in rows for name, value in row.items() if value}
        assert {
            f"{stage}/{name}" for name in ("loss", "samples_per_second", "waiting_share", "peak_memory_mb")
        } <= measured
