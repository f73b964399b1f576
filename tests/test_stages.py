"""Stages hand over files: made once, found by what made them, gone on with after any interruption."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

import sttabt
import sttabt.pipeline.stages
from sttabt.cli.composition import compose_settings, config_folder
from sttabt.data import load_splits
from sttabt.data.base import Splits
from sttabt.errors import UserError
from sttabt.lit.fit import fit
from sttabt.lit.loggers import JobLoggers
from sttabt.lit.modules import BaseTraining
from sttabt.lit.stage import TrainingStage
from sttabt.pipeline.descriptions import hash_of_tested
from sttabt.pipeline.evaluation import find_device
from sttabt.pipeline.result import settings_of_row
from sttabt.pipeline.stage import Context
from sttabt.pipeline.stages import base_model, run_stages
from sttabt.pipeline.stages.base import BaseStage
from sttabt.pipeline.stages.evaluate import EvaluateStage
from sttabt.pipeline.stages.prune import PruneStage
from sttabt.report.gallery import read_gallery
from sttabt.report.predictions import read_predictions
from sttabt.report.rows import Row
from sttabt.run import main
from sttabt.settings import Settings
from sttabt.settings.methods.concrete import ConcreteSettings
from sttabt.store.job import Job
from sttabt.system.files import checksum

EXPERIMENTS = {path.stem: path for path in sorted((config_folder() / "experiment").rglob("*.yaml"))}
JOB = Job(command="python -m sttabt.run experiment=test", sweep="sweep", multirun=True, commit="0123")
# One layer, four patches, a few dozen steps a second.
SMALL = [
    "model=test_vit",
    "model.width=32",
    "model.heads=1",
    "model.depth=1",
    "model.patch_size=14",
    "dataset=digits",
    "dataset.augment=false",
    "hardware=cpu",
    "hardware.batch_size=32",
    "logger=none",
    "evaluation.batch_size=32",
    "evaluation.timing_batch=2",
    "evaluation.timing_rounds=1",
    "evaluation.gallery=2",
]
TWO_STEPS = [*SMALL, "fast_dev_run=2"]
ARCHITECTURE = {"patch_size": 14, "embed_dim": 32, "depth": 1, "num_heads": 1, "mlp_ratio": 2}


pytestmark = pytest.mark.usefixtures("own_folder")


def _settings(*overrides: str) -> Settings:
    return compose_settings(["name=test", *TWO_STEPS, *overrides], output="output")


def _context(settings: Settings) -> Context:
    return Context(settings, JOB, JobLoggers(settings, JOB))


def _run(*overrides: str) -> Row:
    settings = _settings(*overrides)
    run_stages(settings, JOB)
    return Row.read(Path(settings.paths.output) / "row.json")


def _made(stage: str) -> dict[str, int]:
    """When each finished artifact of a stage was made, by its folder's name."""
    return {path.parent.name: path.stat().st_mtime_ns for path in Path("artifacts", stage).glob("*/artifact.json")}


def _weights(stage: str, artifacts: str = "artifacts") -> dict[str, torch.Tensor]:
    (path,) = Path(artifacts, stage).glob("*/model.safetensors")
    return load_file(path)


def _equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# --- every experiment


@pytest.mark.parametrize("experiment", ["debug", "quickstart"])  # others: test_text_experiments, test_recipe
def test_every_job_of_every_experiment_of_images_runs(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sttabt", f"experiment={experiment}", *TWO_STEPS])
    main()
    jobs = sorted(path.parent for path in Path("runs").rglob(".hydra"))
    rows = [Row.read(job / "row.json") for job in jobs]
    assert rows
    for row in rows:
        assert row.experiment == experiment
        assert f"experiment={experiment}" in row.command
        assert row.samples == 64, "two batches of 32"
    assert len(list(Path("runs").glob("*/report/index.html"))) == 1
    grids = OmegaConf.select(OmegaConf.load(EXPERIMENTS[experiment]), "hydra.sweeper.grids")
    if experiment == "quickstart":
        assert grids and all("sparsity" in grid for grid in grids)
        configs = {str(name) for grid in grids for name in np.atleast_1d(OmegaConf.to_container(grid)["sparsity"])}
        assert {row.method for row in rows} == {
            compose_settings(["name=a", f"sparsity={name}"]).sparsity.method for name in configs
        }
        assert len(_made("evaluate")) == len(rows) > len(configs)
        assert len(_made("base")) == 1, "trained once for all"
    cards = [ModelCard.load(path) for path in Path("artifacts").glob("*/*/README.md")]
    assert sum(len(card.data.eval_results or ()) for card in cards) == len(rows), "each on the card of its model"


def test_choices_can_be_made_without_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: set[int] = set()

    class Noted(Dataset):
        def __init__(self, data: Any) -> None:
            self.data = data

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> Any:
            reads.add(index)
            return self.data[index]

    def noted(*given: Any) -> Splits:
        splits = load_splits(*given)
        return replace(splits, test=Noted(splits.test))

    monkeypatch.setattr("sttabt.pipeline.stage.load_splits", noted)
    chosen = _run("sparsity.p_logit=0", "evaluation.split=validation")
    assert reads <= {0}, "of one the shape is asked for"
    tested = _run("sparsity.p_logit=0")
    assert len(reads) >= 64, "two batches of 32, and what the gallery chooses from"
    assert (tested.split, chosen.split) == ("test", "validation") and tested.data == chosen.data
    assert chosen.time is not None and (chosen.folder / "tokens.npz").is_file()
    assert chosen.validation is not None and chosen.score == chosen.validation["score"]
    assert chosen.validation == tested.validation and chosen.loss != tested.loss
    assert (len(_made("prune")), len(_made("evaluate"))) == (1, 2), "nothing is trained again"
    with pytest.raises(UserError, match=r"evaluation\.split=train is unknown"):
        _settings("evaluation.split=train")


# --- what is made once


def test_jobs_share_what_their_settings_share() -> None:
    _run("sparsity.p_logit=0")
    base, approx = _made("base"), _made("approx")
    assert (len(base), len(approx), len(_made("prune"))) == (1, 1, 1)
    _run("sparsity.p_logit=1")
    assert (_made("base"), _made("approx")) == (base, approx), "nothing is trained again"
    assert len(_made("prune")) == 2
    assert _run("sparsity=backtracking", "approx.factor=8").factor == 8
    assert _made("base") == base
    assert len(_made("approx")) == 2
    assert approx.items() <= _made("approx").items()
    assert _run("sparsity=random").factor is None
    assert (len(_made("base")), len(_made("approx")), len(_made("prune"))) == (1, 2, 2)


def test_the_same_job_again_makes_nothing_and_gives_the_same_row(caplog: pytest.LogCaptureFixture) -> None:
    first = _run()
    made = [_made(stage) for stage in ("base", "approx", "prune", "evaluate")]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = _run("paths.output=elsewhere")
    assert again == first
    assert [_made(stage) for stage in ("base", "approx", "prune", "evaluate")] == made
    done = [f"stage {stage} is done already" for stage in ("base", "approx", "prune", "evaluate", "timing")]
    assert [message.split(":")[0] for message in caplog.messages] == [*done, "model"]
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == ["predictions.npz", "row.json", "tokens.npz"]
    predictions = read_predictions("elsewhere")
    assert len(predictions.indices) == first.samples and predictions.right.mean() == pytest.approx(first.score)
    assert not list(Path("artifacts").rglob("*.ckpt")), "a finished stage needs no checkpoint"


def test_time_is_measured_again_without_scoring_again() -> None:
    first = _run("evaluation.timing_rounds=0")
    assert first.time is None and not _made("timing")
    scored = _made("evaluate")
    timed = _run("evaluation.timing_rounds=2")
    assert _made("evaluate") == scored
    assert replace(timed, time=None, time_baseline=None) == first
    assert timed.time is not None and timed.time["rounds"] == 2 and timed.time_baseline == "batch"
    assert timed.single_time_ratio == timed.time["single_ratio"] > 0
    assert _run("evaluation.timing_rounds=2").time == timed.time
    assert len(_made("timing")) == 1


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("row.json", b"{", "it is no JSON"),
        ("row.json", None, "No such file"),
        ("tokens.npz", b"PK", "it is no gallery"),
        ("predictions.npz", b"PK", "holds no predictions"),
    ],
)
def test_a_result_that_cannot_be_read_is_set_aside_and_measured_again(file, content, named: str, caplog) -> None:
    """One of an earlier version, which kept no checksums of a result's files."""
    first = _run("sparsity=dense")
    (folder,) = Path("artifacts", "evaluate").glob("*/")
    _rewrite(folder / "artifact.json", lambda record: record.pop("files"))
    whole = (folder / file).read_bytes()
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    again = _run("sparsity=dense")
    assert replace(again, time=None, seconds={}) == replace(first, time=None, seconds={})
    (line,) = [message for message in caplog.messages if "cannot be read" in message]
    aside = Path("artifacts", "damaged", f"evaluate-{folder.name}").absolute()
    assert named in line and str(folder) in line and str(aside) in line
    assert content is None or (aside / file).read_bytes() == content, "nothing is thrown away"
    assert file == "row.json" or len((folder / file).read_bytes()) == len(whole)
    assert read_gallery("output/tokens.npz").layers == 1 and len(read_predictions("output").indices) == 64
    caplog.clear()
    _run("sparsity=dense")
    assert not [message for message in caplog.messages if "cannot be read" in message]


def _rewrite(path: Path, change: Callable[[dict], object]) -> dict:
    """An artifact's record as another version would have written it, without a checksum of its own."""
    record = json.loads(path.read_text())
    del record["own_sha256"]
    change(record)
    path.write_text(json.dumps(record))
    return record


def test_times_of_another_version_are_measured_again_and_block_no_other_job(caplog) -> None:
    _run("sparsity=dense")
    (path,) = Path("artifacts", "timing").glob("*/artifact.json")
    record = _rewrite(path, lambda record: record["notes"].update(time={"ratio": 1.0}))
    for job in (JOB, replace(JOB, multirun=False)):  # one alone writes its model's card
        settings = _settings("sparsity=random", "stages=[base,evaluate]")
        run_stages(settings, job)
        assert Row.read("output/row.json").method == "random"
    assert [message for message in caplog.messages if "the model card leaves out" in message and str(path) in message]
    row = _run("sparsity=dense")
    assert row.time is not None and row.time["rounds"] == 1
    (aside,) = Path("artifacts", "damaged").glob("timing-*")
    assert json.loads((aside / "artifact.json").read_text()) == record


def test_a_row_is_there_even_if_its_card_cannot_be_written(monkeypatch) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError(folder)

    monkeypatch.setattr(sttabt.pipeline.stages, "write_card", fail)
    with pytest.raises(RuntimeError):
        run_stages(_settings("sparsity=dense"), replace(JOB, multirun=False))
    assert Row.read("output/row.json").method == "dense"


def test_numbers_near_0_cost_no_time() -> None:
    _run("sparsity=dense")
    assert float(torch.tensor([1e-30]) * 1e-10) == 0, "a denormal number would be left"


def test_training_does_not_depend_on_what_was_made_before() -> None:
    _run()
    together = _weights("prune")
    base = _weights("base")
    assert any(not torch.equal(together[f"base.{name}"], value) for name, value in base.items()), "it trains the base"
    (folder,) = Path("artifacts", "prune").glob("*/")
    for path in folder.iterdir():
        path.unlink()
    _run()
    assert _equal(_weights("prune"), together), "the same from an approximate network that was there"


BASE_ONLY = ("stages=[base]",)
BASE_AND_APPROX = ("stages=[base,approx]",)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model.training.epochs=2",
        "model.training.learning_rate=0.002",
        "model.training.mixup=0.8",
        "model.training.global_batch_size=64",
        "hardware.batch_size=16",
        "dataset.augment=true",
        "fast_dev_run=1",
    ],
)
def test_a_setting_that_matters_makes_a_new_base_model(override: str) -> None:
    run_stages(_settings(*BASE_ONLY), JOB)
    kept = [each for each in TWO_STEPS if each.partition("=")[0] != override.partition("=")[0]]
    run_stages(compose_settings(["name=test", *kept, *BASE_ONLY, override]), JOB)
    assert len(_made("base")) == 2


def test_a_setting_that_does_not_matter_makes_nothing_new() -> None:
    run_stages(_settings(*BASE_AND_APPROX), JOB)
    base, approx = _made("base"), _made("approx")
    assert len(base) == len(approx) == 1
    other = ("paths.output=elsewhere", "logger.kind=csv", "resume=never", "hardware.workers=1", "sparsity.p_logit=2")
    other += ("dataset.broken_share=0.5", "model.training.global_batch_size=32")  # of hardware.batch_size=32
    run_stages(_settings(*BASE_AND_APPROX, *other), JOB)
    kept = [each for each in TWO_STEPS if not each.startswith("evaluation.")]
    evaluation = ("evaluation.batch_size=8", "evaluation.timing_rounds=3", "evaluation.gallery=0")
    run_stages(compose_settings(["name=other", *kept, *BASE_AND_APPROX, *evaluation]), JOB)
    assert (_made("base"), _made("approx")) == (base, approx)
    run_stages(_settings(*BASE_AND_APPROX, "approx.training.epochs=7"), JOB)
    assert _made("base") == base
    assert len(_made("approx")) == 2


def test_a_row_names_the_experiment_that_asked_for_it() -> None:
    assert _run("sparsity=dense").experiment == "test"
    kept = ["sparsity=dense", "name=mine", *TWO_STEPS]
    run_stages(compose_settings(kept, output="mine"), JOB)
    assert Row.read("mine/row.json").experiment == "mine"
    assert len(_made("base")) == 1


# --- the data, the code, and what is made again


def _folder(images: Path, *overrides: str) -> Settings:
    data = ["dataset=image_folder", f"dataset.path={images}", "dataset.image_size=28", "dataset.classes=2"]
    data.append("dataset.validation_share=0.5")
    kept = [each for each in TWO_STEPS if not each.startswith("dataset")]
    return compose_settings(["name=test", *kept, *data, "dataset.augment=false", *overrides], output="output")


def _all() -> dict[str, set[str]]:
    return {stage: set(_made(stage)) for stage in ("base", "approx", "prune", "evaluate", "timing")}


def test_the_same_files_elsewhere_are_the_same_data(images: Path) -> None:
    run_stages(_folder(images), JOB)
    made = _all()
    assert all(made.values())
    (images.parent / "moved").mkdir()
    moved = images.rename(images.parent / "moved" / images.name)
    run_stages(_folder(moved), JOB)
    assert _all() == made
    renamed = moved.rename(moved.with_name("pets"))
    run_stages(_folder(renamed), JOB)
    assert {stage for stage, each in _all().items() if each != made[stage]} == {"evaluate", "timing"}, "a row names it"
    rows = [Row.read(path) for path in Path("artifacts").glob("evaluate/*/row.json")]
    assert {row.dataset for row in rows} == {"images", "pets"}
    (hashed,) = {row.data for row in rows}
    assert len(hashed) == 8
    settings, others = _settings(), _settings("dataset.path=others")
    places = [hash_of_tested(each, {}) for each in (settings, settings, others)]
    assert places[0] == places[1] != places[2], "where the source cannot say what its data are"
    contents = [{"test": "0a" * 8, "train": "0c"}, {"all": "0b" * 8}]
    assert [hash_of_tested(settings, each) for each in contents] == ["0a" * 4, "0b" * 4]


@pytest.mark.parametrize("change", ["a pixel to train on", "a label to train on", "a pixel to test on"])
def test_other_contents_at_the_same_place_are_other_data(change: str, images: Path) -> None:
    run_stages(_folder(images), JOB)
    part = "val" if "test" in change else "train"
    path = images / part / "cat" / "0.png"
    times = path.stat()
    if "pixel" in change:
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0, 0] ^= 128
        Image.fromarray(pixels).save(path)
    else:
        path.rename(images / part / "dog" / "10.png")
    if path.exists():
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync or an archive would set it
    run_stages(_folder(images), JOB)
    again = {"base", "approx", "prune", "evaluate", "timing"} if part == "train" else {"evaluate", "timing"}
    assert {stage for stage, made in _all().items() if len(made) == 2} == again
    hashes = {Row.read(path).data for path in Path("artifacts").glob("evaluate/*/row.json")}
    assert len(hashes) == (2 if part == "val" else 1), "of the test data"


def test_other_code_makes_nothing_again_but_times() -> None:
    """What computes other numbers says so by its `computation`: tests/test_computations.py."""
    _run()
    made = _all()
    settings = _settings()
    run_stages(settings, replace(JOB, commit="4567"))
    assert {stage for stage, each in _all().items() if each != made[stage]} == {"timing"}
    row = Row.read(Path(settings.paths.output) / "row.json")
    assert row.commit == JOB.commit, "of the code that scored it"


@pytest.mark.parametrize(
    ("owner", "again"),
    [
        (BaseStage, {"base", "approx", "prune", "evaluate", "timing"}),
        (PruneStage, {"prune", "evaluate", "timing"}),
        (EvaluateStage, {"evaluate", "timing"}),
        (ConcreteSettings, {"prune", "evaluate", "timing"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_another_computation_makes_again_what_rests_on_it(
    owner: type, again: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _run()
    monkeypatch.setattr(owner, "computation", owner.computation + 1)
    _run()
    assert {stage for stage, made in _all().items() if len(made) == 2} == again


def test_remake_makes_a_stage_again_and_what_is_made_of_other_weights(caplog: pytest.LogCaptureFixture) -> None:
    _run()
    before = {stage: _made(stage) for stage in _all()}
    single = replace(JOB, multirun=False)
    run_stages(_settings("remake=[base]"), single)
    after = {stage: _made(stage) for stage in before}
    assert {stage for stage in before if before[stage] != after[stage]} == {"base"}, "the same bits"
    assert all(before[stage].keys() == after[stage].keys() for stage in before)
    weights, record = _edited("base")
    with caplog.at_level(logging.INFO):
        _run()
    made_again = [message for message in caplog.messages if "is made again" in message]
    assert [message.split(",")[0] for message in made_again] == [
        f"stage {stage} is made again" for stage in ("approx", "prune", "evaluate", "timing")
    ]
    assert "since the stage base gave other weights" in made_again[0]
    assert weights.exists() and record.exists()


def test_a_stage_that_is_left_out_is_not_made_again_either() -> None:
    _run()
    made = _all()
    _edited("base")
    for overrides, remedy in (
        (("stages=[evaluate]",), "approx in stages"),
        (("skip_approx=true",), "skip_approx=false"),
        (("stages=[evaluate]", "remake=[base]"), "base in stages"),
    ):
        with pytest.raises(UserError, match=rf"must be made again, since .*: make it with {remedy}$"):
            run_stages(_settings(*overrides), replace(JOB, multirun=False))
    assert _all() == made


def _edited(stage: str) -> tuple[Path, Path]:
    """Other weights in a finished artifact, as other code would have given."""
    (folder,) = Path("artifacts", stage).glob("*/")
    state = {name: value + 0.01 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors")
    record = json.loads((folder / "artifact.json").read_text())
    record["sha256"] = checksum(folder / "model.safetensors")
    del record["own_sha256"]
    (folder / "artifact.json").write_text(json.dumps(record))
    return folder / "model.safetensors", folder / "artifact.json"


def test_jobs_of_a_sweep_remake_what_they_share_once() -> None:
    _run()
    before = _made("base")
    sweep = replace(JOB, sweep="another")
    made = []
    for p_logit in (0, 1):
        run_stages(_settings("remake=[base]", f"sparsity.p_logit={p_logit}"), sweep)
        made.append(_made("base"))
    assert before != made[0] == made[1]


@pytest.mark.parametrize("stage", ["base", "approx", "prune", "evaluate", "timing"])
@pytest.mark.parametrize("what", ["artifact.json", "weights or row"])
def test_a_damaged_artifact_is_one_line_and_the_next_run_goes_on(stage: str, what: str) -> None:
    first = _run()
    (folder,) = Path("artifacts", stage).glob("*/")
    name = {"evaluate": "row.json"}.get(stage, "model.safetensors") if what != "artifact.json" else what
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    aside = Path("artifacts/damaged").absolute() / f"{stage}-{folder.name}"
    expected = (
        rf"{name} is damaged \(.+\): its folder is now {aside}, and the same command makes the stage {stage} again"
    )
    with pytest.raises(UserError, match=expected):
        _run()
    again = _run()
    assert replace(again, time=None) == replace(first, time=None)
    assert aside.is_dir() and folder.is_dir()


# --- what is left out


@pytest.mark.parametrize("method", ["dense", "backtracking", "concrete"])
def test_a_stage_that_is_left_out_and_not_there_is_named(method: str) -> None:
    with pytest.raises(UserError, match=r"no finished 'base' artifact for these settings in .*/artifacts"):
        _run(f"sparsity={method}", "stages=[evaluate]")
    run_stages(_settings("stages=[base]"), JOB)
    if method == "dense":
        assert _run(f"sparsity={method}", "stages=[evaluate]").method == "dense"
        return
    with pytest.raises(UserError, match="no finished 'approx' artifact for these settings"):
        _run(f"sparsity={method}", "stages=[evaluate]")
    with pytest.raises(UserError, match=r"differs in seed \(0 there, 1 here\)"):
        _run(f"sparsity={method}", "stages=[evaluate]", "seed=1")


def test_skip_approx_needs_an_approximate_network() -> None:
    with pytest.raises(UserError, match="no finished 'approx' artifact"):
        _run("sparsity=backtracking", "skip_approx=true")
    assert not _made("approx")
    run_stages(_settings("stages=[base,approx]"), JOB)
    assert _run("sparsity=backtracking", "skip_approx=true").method == "backtracking"
    with pytest.raises(UserError, match=r"approx\.factor \(4 there, 8 here\)"):
        _run("sparsity=backtracking", "skip_approx=true", "approx.factor=8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_accelerator_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"hardware\.accelerator=gpu is not on this machine: set hardware=cpu"):
        find_device("gpu")


# --- other processes, and their end

TRAINING = ("fast_dev_run=0", "model.training.epochs=60", "approx.training.epochs=40", "dataset.validation_share=0.5")


class Process:
    """A training command in a process of its own, on a few random images; it writes what it says to a file."""

    def __init__(self, images: Path, *overrides: str) -> None:
        kept = [each for each in SMALL if not each.startswith("dataset")]
        data = ["dataset=image_folder", f"dataset.path={images}", "dataset.image_size=28", "dataset.classes=2"]
        data += ["dataset.augment=false"]
        self.overrides = ["experiment=debug", *kept, *data, *TRAINING, *overrides]
        variables = {**os.environ, "PYTHONPATH": str(Path(sttabt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        self.file = Path("process.log")
        with self.file.open("w") as output:
            command = [sys.executable, "-m", "sttabt.run", *self.overrides]
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)

    @property
    def output(self) -> str:
        return self.file.read_text(encoding="utf-8")

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait until something is so while the process runs."""
        end = time.monotonic() + 60
        while not reached():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.005)

    def settings(self, *overrides: str) -> Settings:
        """The same settings for this process."""
        return compose_settings([*self.overrides, *overrides], output="output")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten images of noise in each of two classes, to train on, and two to test."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(generator.integers(0, 256, (28, 28, 3), np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "images"


def _checkpoints(stage: str) -> list[Path]:
    return list(Path("artifacts", stage).glob("*/last.ckpt"))


def test_a_killed_stage_ends_as_if_it_had_not_been(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = Process(images, "stages=[base]")
    settings = process.settings()
    process.until(lambda: bool(_checkpoints("base")))
    # It dies while this process waits for what it makes.
    waiting = "waiting for another job"

    def kill() -> None:
        process.until(lambda: any(message.startswith(waiting) for message in caplog.messages))
        process.process.kill()

    with caplog.at_level(logging.INFO), ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        run_stages(settings, JOB)
        killed.result()
    assert process.process.wait() == -signal.SIGKILL
    said = _said_of_stages(caplog)
    assert said[0].startswith(waiting)
    # Killed between two renames, it leaves the checkpoint before the last one.
    assert re.match(r"stage base resumes from \S+/(last|before)\.ckpt", said[1])
    epochs = [int(message.split()[1].partition("/")[0]) for message in caplog.messages if message.startswith("epoch")]
    assert epochs == list(range(epochs[0], 61, 6))
    run_stages(process.settings("paths.artifacts=whole"), JOB)
    assert _equal(_weights("base"), _weights("base", "whole"))


def _said_of_stages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Without what the data say."""
    return [record.getMessage() for record in caplog.records if not record.name.startswith("sttabt.data")]


def test_two_processes_train_a_stage_once_and_sigterm_ends_one_that_can_go_on(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process(images, "stages=[base,approx]")
    process.until(lambda: bool(_checkpoints("base")))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run_stages(process.settings("stages=[base]"), JOB)
    assert [message.split(":")[0].split(",")[0] for message in _said_of_stages(caplog)] == [
        "waiting for another job",
        "stage base is done already",
        "model",
    ]
    base = _made("base")
    process.until(lambda: bool(_checkpoints("approx")))
    process.process.terminate()
    assert process.process.wait(timeout=60) == 143, process.output
    assert "stage approx was interrupted by SIGTERM: the same command resumes it" in process.output
    assert "Traceback" not in process.output
    assert not _made("approx")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run_stages(process.settings(), JOB)
    assert [re.sub(r"(:| /).*", "", message) for message in _said_of_stages(caplog)[:2]] == [
        "stage base is done already",
        "stage approx resumes from",
    ]
    assert _made("base") == base
    run_stages(process.settings("paths.artifacts=whole"), JOB)
    for stage in ("base", "approx"):
        assert _equal(_weights(stage), _weights(stage, "whole"))


# --- weights that are given


def _given(path: Path, depth: int = 1, seed: int = 1) -> torch.nn.Module:
    """A timm model and its weights in a file, in the form that the file's name says."""
    torch.manual_seed(seed)
    model = timm.create_model(
        "test_vit", num_classes=10, in_chans=1, img_size=28, **(ARCHITECTURE | {"depth": depth})
    ).eval()
    state = model.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 3} if "nested" in path.name else state, path)
    return model


@pytest.mark.parametrize("name", ["plain.pth", "nested.pt", "weights.safetensors"])
def test_a_checkpoint_of_timm_is_the_base_model(name: str, tmp_path: Path) -> None:
    model = _given(tmp_path / name)
    settings = _settings(f"model.checkpoint={name}")
    base, artifacts = base_model(_context(settings))
    images = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(base(images), model(images))
    assert "weights" not in artifacts["base"].notes, "nothing is trained"
    # Other weights under the same name are other weights.
    model = _given(tmp_path / name, seed=2)
    base, others = base_model(_context(settings))
    with torch.no_grad():
        assert torch.equal(base(images), model(images))
    assert others["base"].key != artifacts["base"].key


def test_a_given_base_model_is_pruned_and_evaluated(tmp_path: Path) -> None:
    _given(tmp_path / "plain.pth")
    row = _run("model.checkpoint=plain.pth", "sparsity=backtracking")
    assert row.method == "backtracking"
    assert list(_made("base")) and list(_made("approx"))


@pytest.mark.parametrize("name", ["plain.pth", "weights.safetensors"])
def test_a_checkpoint_that_does_not_fit_is_named(name: str, tmp_path: Path) -> None:
    settings = [f"model.checkpoint={name}", "sparsity=dense"]
    _given(tmp_path / name, depth=2)
    expected = rf"model\.checkpoint=\S+{name} belongs to another architecture.*: blocks\.1\..* is unexpected"
    with pytest.raises(UserError, match=expected):
        _run(*settings)
    _given(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:size])
        damaged = rf"model\.checkpoint=\S+{name} (cannot be read|is empty|is truncated)"
        with pytest.raises(UserError, match=damaged) as one:
            _run(*settings)
        assert "\n" not in str(one.value)
    assert not _made("base")


def test_a_checkpoint_without_names_is_refused(tmp_path: Path) -> None:
    torch.save(torch.rand(3), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match=r"model\.checkpoint=\S+tensor.pth holds a Tensor: give a file of tensors"):
        _run("model.checkpoint=tensor.pth", "sparsity=dense")


@pytest.mark.parametrize(
    ("name", "value", "built"), [("depth", 3, 1), ("width", 128, 64), ("heads", 4, 2), ("patch_size", 7, 16)]
)
def test_a_size_that_the_built_model_does_not_have_is_named(name: str, value: int, built: int) -> None:
    # A named timm model that takes no size from the settings: test_vit as timm has it, of one layer.
    stated = {"depth": 1, "width": 64, "heads": 2, "patch_size": 16} | {name: value}
    settings = _settings()
    settings.dataset.image_size = 112
    settings.model.arguments = {"depth": 1}
    for key, size in stated.items():
        setattr(settings.model, key, size)
    with pytest.raises(UserError, match=rf"model\.{name}={value}, but test_vit .*{built}.*set model\.{name}={built}"):
        base_model(_context(settings))


def test_a_row_says_how_ltp_was_set() -> None:
    row = _run("sparsity=ltp", "sparsity.mask_weight=0.3", "sparsity.temperature=0.002")
    assert (row.method, row.label, row.knob, row.knob_value, row.factor) == ("ltp", "LTP", "mask_weight", 0.3, None)
    assert row.settings["temperature"] == 0.002
    assert {"hard_from", "threshold_rate", "training.epochs"} <= set(row.settings)
    assert not {"method", "training"} & set(row.settings)
    assert row.score_soft is not None
    assert len(_made("prune")) == 1 and not _made("approx")
    _run("sparsity=ltp", "sparsity.mask_weight=0.4", "sparsity.temperature=0.002")
    assert (len(_made("base")), len(_made("prune"))) == (1, 2)


def test_a_row_says_how_it_was_tuned_where_it_was() -> None:
    """So that rows from before a method could be tuned are seeds of the same point."""
    untuned = settings_of_row(_settings("sparsity=forward_topk"))
    assert untuned == {"keep_ratio": 0.5}
    tuned = settings_of_row(_settings("sparsity=forward_topk", "sparsity.training.epochs=2"))
    assert tuned["training.epochs"] == 2 and {"distillation", "ema", "training.global_batch_size"} < set(tuned)
    assert not {"method", "training"} & set(tuned)


def test_what_is_not_tuned_is_asked_once_for_its_budget(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="sttabt.models.budget"):
        row = _run("sparsity=evit", "budget.macs=0.8")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "sttabt.models.budget"]
    assert "sparsity.keep_ratio=" in line and row.budget is not None
    assert len(_made("budget")) == 1 and not _made("prune")


def test_more_tokens_than_the_model_has_are_refused_before_anything_trains() -> None:
    with pytest.raises(UserError, match=r"sparsity\.counts=\[99\] begins with 99 tokens, but the model has 5"):
        run_stages(_settings("sparsity=backtracking", "sparsity.counts=[99]"), JOB)
    assert not _made("base")


def test_a_dynamic_count_has_no_knob() -> None:
    row = _run("sparsity=backtracking", "sparsity.dynamic=true")
    assert (row.knob, row.settings["dynamic"], row.settings["counts"]) == (None, True, "")
    row = _run("sparsity=backtracking", "sparsity.counts=[3]")
    assert (row.knob, row.settings["counts"]) == (None, "3")
    row = _run("sparsity=backtracking", "sparsity.keep_ratio=0.5")
    assert (row.knob, row.knob_value, row.settings["attention"]) == ("keep_ratio", 0.5, "approximate")


# --- weights that are not finite


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_that_diverges_says_so_again_and_leaves_nothing(epochs: int) -> None:
    overrides = ["stages=[base]", "model.training.learning_rate=1e39", f"model.training.epochs={epochs}"]
    overrides += ["dataset.validation_share=0.5", "model.training.warmup_epochs=0"]
    settings = _settings(*overrides)
    settings.fast_dev_run = 0 if epochs > 1 else 1
    messages = []
    for _ in range(2):
        with pytest.raises(UserError, match="training diverged in stage base") as error:
            run_stages(settings, JOB)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert not list(Path("artifacts").rglob("*.ckpt")) and not _made("base")


def test_a_checkpoint_that_is_not_finite_becomes_no_artifact() -> None:
    """One of an earlier version, which wrote the weights before it looked at them."""
    settings = _settings("stages=[base]")
    context = _context(settings)
    folder = context.store.folder("base", BaseStage(context).description())
    run_stages(settings, JOB)
    (folder / "artifact.json").unlink()
    module = BaseTraining(BaseStage(context).model, settings.model.training, context.task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStage, "on_save_checkpoint", lambda *_: None)
        patch.setattr(TrainingStage, "check_finite", lambda *_: None)
        with torch.no_grad():
            module.trained.model.norm.bias.fill_(torch.inf)
        module.training_settings.learning_rate = 1e-30
        patch.setattr(TrainingStage, "training_step", lambda self, *_: sum(p.sum() for p in self.parameters()) * 0)
        fit(module, context.splits, settings, folder, [])
    assert (folder / "last.ckpt").exists()
    with pytest.raises(UserError, match=r"training diverged in stage base, the last step \(model\.\S+ is not finite\)"):
        run_stages(_settings("stages=[base]"), JOB)
    assert not _made("base")


@pytest.mark.parametrize("key", ["model.checkpoint", "approx.checkpoint"])
def test_given_weights_that_are_not_finite_are_named(key: str, tmp_path: Path) -> None:
    run_stages(_settings("stages=[base,approx]"), JOB)
    stage, _, _ = key.partition(".")
    if stage == "model":
        model = _given(tmp_path / "given.pth")
        state = model.state_dict()
        name = "head.bias"
    else:
        state = _weights("approx")
        name = next(name for name in state if name.endswith("head.bias"))
    state[name][1] = torch.nan
    torch.save(state, tmp_path / "given.pth")
    before = _made("base"), _made("approx")
    with pytest.raises(UserError, match=rf"{key}=\S+given\.pth gives weights that are not finite \(\S*head\.bias\)"):
        _run(f"{key}=given.pth", "sparsity=backtracking")
    assert (_made("base"), _made("approx")) == before
