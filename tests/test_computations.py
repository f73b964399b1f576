"""What each stage and each method computed when its `computation` was last raised.

Where these numbers change, the artifacts that users have are not what the same command would make any more: raise
`computation` of the stage, or of the method's settings, and record the numbers: `python tests/test_computations.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sttabt.cli.composition import compose_settings
from sttabt.pipeline.stages import run_stages
from sttabt.pipeline.stages.approx import ApproxStage
from sttabt.pipeline.stages.base import BaseStage
from sttabt.pipeline.stages.evaluate import EvaluateStage
from sttabt.pipeline.stages.general import GeneralStage
from sttabt.pipeline.stages.prune import PruneStage
from sttabt.report.rows import Row
from sttabt.settings import TrainedSettings, TunedSettings, method_names, method_settings
from sttabt.store.artifacts import Store
from sttabt.store.job import Job
from test_text_data import make_small_bert, sentences

RECORDED = Path(__file__).with_name("computations.json")
STAGES = {stage.name: stage for stage in (BaseStage, GeneralStage, ApproxStage, PruneStage, EvaluateStage)}
TOLERANCE = 2e-3  # relative: other instructions and threads round otherwise, and training makes that larger
# Random tokens are drawn by the bytes of an image, and Gumbel noise decides by last bits: AVX-512 gives other ones.
SAME_EVERYWHERE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
COMMON = ["name=test", "hardware=cpu", "hardware.batch_size=32", "logger=none", "evaluation.timing_rounds=0"]
COMMON += ["evaluation.gallery=0", "fast_dev_run=20", "stages=[base,general,approx,prune,evaluate]"]
TRAINING = ["epochs=1", "warmup_epochs=0", "learning_rate=0.01", "weight_decay=0.5", "label_smoothing=0.1"]
IMAGES = ["dataset=digits", "model=test_vit", "model.width=32", "model.heads=2", "model.depth=2", "model.patch_size=14"]
IMAGES += ["model.training.mixup=0.8", "model.training.cutmix=1.0", "model.training.grad_clip_norm=1"]

SHARPER = {
    name: ["sparsity.keep_ratio=0.5"] for name in ("pitome", "evit")
}  # else four patches are too few to lose any


@dataclass(frozen=True)
class Found:
    """versions: of what a name stands for; numbers: what it gave."""

    versions: dict[str, int]
    numbers: dict[str, dict[str, float]]


def compute() -> Found:
    """In the current folder."""
    numbers: dict[str, dict[str, float]] = {}
    for kind, given in (("images", IMAGES), ("text", _text())):
        names = (
            method_names()
            if kind == "images"
            else ("dense", "backtracking", "concrete", "ltp", "tome", "pitome", "power_bert", "diffrate")
        )
        for name in names:
            common = [*COMMON, *given, f"sparsity={name}", *SHARPER.get(name, []), *_training(name)]
            jobs = {f"{kind}, {name}": common}
            if issubclass(method_settings(name), TunedSettings):
                jobs[f"{kind}, {name}, untuned"] = [*common, "sparsity.training.epochs=0"]
            for job, overrides in jobs.items():
                settings = compose_settings(overrides, output=job)
                run_stages(settings, Job("test", "test", True, ""))
                numbers[job] = _of_row(Row.read(Path(settings.paths.output) / "row.json"))
    for _, record in Store("artifacts").records():
        if record["stage"] in ("approx", "general"):
            notes = record["notes"]
            kind = "text" if notes["settings"]["dataset"]["max_tokens"] else "images"
            errors = {f"{who} {what}": v for who, each in notes.get("errors", {}).items() for what, v in each.items()}
            numbers[f"{kind}, {record['stage']}"] = errors | notes["validation"]
    versions = {name: stage.computation for name, stage in STAGES.items()}
    return Found(versions | {name: method_settings(name).computation for name in method_names()}, numbers)


def _training(method: str) -> list[str]:
    nodes = ["model.training", "approx.training"]
    own = []
    if issubclass(method_settings(method), TrainedSettings):
        nodes.append("sparsity.training")
        own = ["sparsity.distillation=0.5", "sparsity.ema=0.5"]
    return [*own, *(f"{node}.{each}" for node in nodes for each in TRAINING)]


def _of_row(row: Row) -> dict[str, float]:
    found: dict[str, Any] = {"loss": row.loss, "occupancy": row.occupancy, "macs": row.macs_total}
    found |= {"validation loss": row.validation_loss, "attention kl": (row.approx or {}).get("kl")}
    return {name: value for name, value in found.items() if value is not None}


def _text() -> list[str]:
    """Settings of sentences, whose files it writes."""
    make_small_bert(Path("bert"), layers=2, positions=64)
    lines = [f"{place % 2}\t{text}" for place, text in enumerate(sentences(200))]
    Path("texts.tsv").write_text("\n".join(["label\tsentence", *lines]), encoding="utf-8")
    Path("corpus.txt").write_text("\n".join(sentences(200, seed=3)), encoding="utf-8")
    data = ["dataset=text_file", "dataset.path=texts.tsv", "dataset.columns=[sentence]", "dataset.label_column=label"]
    data += ["dataset.classes=2", "dataset.max_tokens=32", "model=bert_base", "model.huggingface=bert"]
    data += ["model.heads=2", "model.width=32", "model.depth=2", "approx.start=general", "approx.corpus=corpus.txt"]
    return [*data, *(f"approx.corpus_training.{each}" for each in TRAINING[:4])]


def compute_alike() -> Found:
    """`compute` in a process of its own, which may use no instructions that some machines lack."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "found.json")
        command = [sys.executable, str(Path(__file__).resolve()), str(made)]
        ended = subprocess.run(command, cwd=folder, env=os.environ | SAME_EVERYWHERE, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-3000:]
        return Found(**json.loads(made.read_text()))


def test_stages_and_methods_compute_what_they_did() -> None:
    recorded = json.loads(RECORDED.read_text())
    found = compute_alike()
    assert found.versions == recorded["versions"], "record the numbers of the new version: run this file"
    assert found.numbers.keys() == recorded["numbers"].keys(), "record the numbers of what is new: run this file"
    for name, numbers in recorded["numbers"].items():
        expected = {key: pytest.approx(value, rel=TOLERANCE) for key, value in numbers.items()}
        assert found.numbers[name] == expected, f"{name} computes other numbers: raise its `computation`, run this file"


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(asdict(compute())))
    else:
        RECORDED.write_text(json.dumps(asdict(compute_alike()), indent=1) + "\n")
