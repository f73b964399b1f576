"""The recipe of training: mixed images, averaged weights, total batches, and the experiment that uses them all."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Subset

from images import make_idx
from sttabt.cli.composition import compose_settings
from sttabt.data import load_splits
from sttabt.data.base import Batch, Splits, train_loader
from sttabt.data.images import AugmentedImages
from sttabt.data.task import Task
from sttabt.errors import UserError
from sttabt.lit.fit import fit
from sttabt.lit.loggers import JobLoggers
from sttabt.lit.modules import BaseTraining, Pruning
from sttabt.methods import find_method
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.stage import Context
from sttabt.pipeline.stages import pruned_model, run_stages
from sttabt.report.rows import Row
from sttabt.run import main
from sttabt.settings import Settings
from sttabt.store.artifacts import load_folder
from sttabt.store.job import Job
from test_lit import TASK, _base

SMALL = ["name=test", "dataset=digits", "model=test_vit", "hardware.batch_size=16", "logger=none"]
PRUNE = ["sparsity.training.epochs=2", "sparsity.training.warmup_epochs=0", "sparsity.training.learning_rate=0.01"]


pytestmark = pytest.mark.usefixtures("own_folder")


def _settings(*overrides: str) -> Settings:
    return compose_settings([*SMALL, *overrides], output="output")


@pytest.fixture(scope="module")
def splits() -> Splits:
    """48 images to train on, and 16 to validate."""
    whole = load_splits(_settings().dataset)
    train: Any = whole.train
    few = AugmentedImages(train.source, train.indices[:48], train.transform, seed=0)
    return replace(whole, train=few, validation=Subset(whole.validation, range(16)))


def _pruning(settings: Settings) -> Pruning:
    base = _base()
    method = find_method("ltp")(settings.sparsity, 2, 1)
    return Pruning(PrunedModel(base, method), base, settings.sparsity, TASK)


# --- mixup and CutMix


def _mixed(step: int, *overrides: str) -> tuple[Tensor, Tensor, Tensor]:
    """What a training step makes of a batch: its images, the images mixed, the shares of classes."""
    settings = _settings(*overrides)
    module = BaseTraining(_base(), settings.model.training, TASK)
    module.seed = 3
    seen: list[Batch] = []

    def terms(batch: Batch) -> dict[str, Tensor]:
        seen.append(batch)
        return {"task": module.trained(batch.inputs).sum()}

    module.terms = terms  # type: ignore[method-assign]
    module.log_dict = lambda *_, **__: None  # type: ignore[assignment, method-assign]
    images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(1)) + torch.arange(8)[:, None, None, None]
    module.training_step(Batch(images.clone(), torch.arange(8)), step)
    return images, seen[0].inputs, seen[0].labels


def test_mixup_blends_an_image_and_its_label_with_those_of_another() -> None:
    images, mixed, shares = _mixed(0, "model.training.mixup=0.8")
    own = shares[0, 0]
    assert 0 < own < 1 and torch.allclose(shares.sum(1), torch.ones(8))
    assert torch.allclose(mixed, own * images + (1 - own) * images.flip(0), atol=1e-5)
    assert torch.allclose(shares[3], own * F.one_hot(torch.tensor(3), 10) + (1 - own) * F.one_hot(torch.tensor(4), 10))


def test_cutmix_pastes_a_part_and_its_area_is_the_labels_share() -> None:
    images, mixed, shares = _mixed(1, "model.training.cutmix=1.0")
    pasted = (mixed == images.flip(0)).all(1)[0]
    assert 0 < pasted.sum() < 28 * 28
    assert torch.equal(mixed[0, 0][~pasted], images[0, 0][~pasted])
    assert shares[0, 7] == pytest.approx(float(pasted.float().mean()))


def test_a_steps_mix_depends_on_seed_and_step_alone() -> None:
    first = _mixed(0, "model.training.mixup=0.8", "model.training.cutmix=1.0")[1]
    np.random.seed(5)
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    again = _mixed(0, "model.training.mixup=0.8", "model.training.cutmix=1.0")[1]
    assert torch.equal(again, first)
    assert (np.random.get_state()[1] == before).all(), "others' draws stay as they are"  # type: ignore[index]
    assert not torch.equal(_mixed(1, "model.training.mixup=0.8", "model.training.cutmix=1.0")[1], first)


def test_only_the_share_asked_for_is_mixed() -> None:
    labels = [_mixed(step, "model.training.mixup=0.8", "model.training.mix_share=0.5")[2] for step in range(30)]
    whole = sum(bool((shares.max(1).values == 1).all()) for shares in labels)
    assert 8 <= whole <= 22
    assert _mixed(0)[2].dtype == torch.long, "classes stay classes without mixing"


def test_shares_of_classes_and_smoothing_are_timms() -> None:
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(6)
    found = TASK.loss(logits, mixup_target(labels, 10, 0.3), label_smoothing=0.1)
    expected = -(mixup_target(labels, 10, 0.3, smoothing=0.1) * logits.log_softmax(-1)).sum(-1).mean()
    assert torch.allclose(found, expected)


# --- averaged weights


def test_averaged_weights_are_those_of_a_slow_loop(splits: Splits, tmp_path: Path) -> None:
    """Also with several steps a weight update, of which only the last counts."""
    settings = _settings(
        "sparsity=ltp", *PRUNE, "sparsity.ema=0.9", "hardware.accumulate_grad_batches=3", "hardware.batch_size=8"
    )
    module = _pruning(settings)
    seen: list[dict[str, Tensor]] = []
    step = module.optimizer_step

    def look(*arguments: Any, **named: Any) -> None:
        step(*arguments, **named)
        seen.append({name: value.clone() for name, value in module.trained.state_dict().items()})

    module.optimizer_step = look  # type: ignore[method-assign]
    fit(module, splits, settings, tmp_path, [])
    assert len(seen) == 2 * 2, "48 images in updates of 24"
    expected = seen[0]
    for values in seen[1:]:
        expected = {name: 0.9 * expected[name] + 0.1 * values[name] for name in expected}
    averaged = module.averaged.module.state_dict()
    for name, value in expected.items():
        assert torch.allclose(averaged[name], value, atol=1e-6), name
    assert not torch.equal(averaged["base.model.head.weight"], seen[-1]["base.model.head.weight"])
    assert {"prune/validation_accuracy", "prune/validation_ema_accuracy"} <= set(module.trainer.callback_metrics)


class _StopsInEpoch(Pruning):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            raise OSError("the machine is gone")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_run_has_the_same_weights_and_averages(precision: str, splits: Splits, tmp_path: Path) -> None:
    recipe = ["sparsity=ltp", *PRUNE, "sparsity.ema=0.9", "sparsity.training.mixup=0.8", "sparsity.training.cutmix=1"]
    recipe += ["sparsity.training.grad_clip_norm=0.5", "hardware.accumulate_grad_batches=3", "hardware.batch_size=8"]
    settings = _settings(*recipe, f"hardware.precision={precision}")
    whole = _pruning(settings)
    fit(whole, splits, settings, tmp_path / "whole", [])
    interrupted = _pruning(settings)
    interrupted.__class__ = _StopsInEpoch
    with pytest.raises(OSError, match="the machine is gone"):
        fit(interrupted, splits, settings, tmp_path / "halved", [])
    torch.manual_seed(99)
    np.random.seed(98)
    again = _pruning(settings)
    fit(again, splits, settings, tmp_path / "halved", [])
    expected, found = whole.state_dict(), again.state_dict()
    assert any(name.startswith("averaged.module.") for name in expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_row_tells_the_averaged_weights_apart() -> None:
    run = ["fast_dev_run=2", "evaluation.timing_rounds=0", "evaluation.gallery=0", "sparsity.p_logit_rate=50", *PRUNE]
    for ema in (0, 0.5, 1e-9):
        settings = _settings(*run, f"sparsity.ema={ema}")
        run_stages(settings, Job(command="test", sweep="s", multirun=True, commit=""))
        row = Row.read(Path(settings.paths.output) / "row.json")
        (folder,) = {path.parent for path in Path("artifacts/prune").glob("*/artifact.json")} - set(_seen)
        _seen.append(folder)
        tensors, _ = load_folder(folder)
        averaged = {name.removeprefix("averaged."): t for name, t in tensors.items() if name.startswith("averaged.")}
        assert bool(averaged) == (ema > 0)
        assert (row.score_ema is None) == (row.ema is None) == (ema == 0)
        if ema == 0.5:
            assert averaged.keys() == {name for name in tensors if not name.startswith("averaged.")}
            assert not torch.equal(averaged["method.p_logit"], tensors["method.p_logit"])
            job = Job("", "", True, "")
            model, beside, *_ = pruned_model(Context(settings, job, JobLoggers(settings, job)))
            assert beside is not None and torch.equal(beside.state_dict()["method.p_logit"], averaged["method.p_logit"])
            assert not torch.equal(model.state_dict()["method.p_logit"], averaged["method.p_logit"])
        if ema == 1e-9:  # almost the last weights
            assert row.ema is not None and row.score_ema == row.score
            assert row.ema["occupancy"] == pytest.approx(row.occupancy, abs=1e-3)
            assert row.ema["score_soft"] == row.score_soft
            assert row.ema["macs"] == pytest.approx(row.macs_total, rel=1e-3)


_seen: list[Path] = []


# --- total batches


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_weight_update_has_as_many_samples(steps: int, splits: Splits) -> None:
    loader = train_loader(splits.train, 8, 0, seed=0, steps=steps)
    assert len(loader) == 48 // (8 * steps) * steps
    assert all(len(batch.labels) == 8 for batch in loader)


@pytest.mark.parametrize(("share", "batches"), [(1.0, 6), (0.5, 3), (0.4, 2), (0.01, 1)])
def test_an_epoch_may_be_a_share_of_the_images_others_in_each(share: float, batches: int, splits: Splits) -> None:
    loader = train_loader(splits.train, 8, 0, seed=0, share=share)
    assert len(loader) == len(list(loader)) == batches
    if share < 1:
        first = {index for _, index in loader.sampler}
        loader.sampler.set_epoch(1)
        assert {index for _, index in loader.sampler} != first


def test_an_update_of_more_than_there_is_is_named(splits: Splits) -> None:
    with pytest.raises(UserError, match="a weight update of 56 samples is more than the 48 that there are to train on"):
        train_loader(splits.train, 8, 0, seed=0, steps=7)


def test_a_total_batch_needs_no_accumulate(splits: Splits, tmp_path: Path) -> None:
    """24 images in steps of 8, or in one step of 24, move the weights alike."""
    ends = []
    for size in (8, 24):
        settings = _settings(
            "model.training.global_batch_size=24", "model.training.epochs=1", f"hardware.batch_size={size}"
        )
        module = BaseTraining(_base(), settings.model.training, TASK)
        fit(module, splits, settings, tmp_path / str(size), [])
        assert module.trainer.accumulate_grad_batches == 24 // size
        assert module.trainer.global_step == 2
        ends.append(module.trained.state_dict())
    apart = torch.cat([(ends[0][name] - ends[1][name]).abs().flatten() for name in ends[0]])
    assert (apart < 1e-5).float().mean() > 0.98, "AdamW moves a weight of no gradient either way"


BATCH_MISTAKES = {
    "model.training.global_batch_size=40": (
        "model.training.global_batch_size=40 does not make 3 equal steps of at most hardware.batch_size=16:"
        " set 39 or 42"
    ),
    "approx.training.global_batch_size=35": "approx.training.global_batch_size=35 does not make 3 equal steps",
    "sparsity.training.mixup=0.8 hardware.batch_size=15": "hardware.batch_size=15 makes 15 images a step, but"
    " sparsity.training.mixup",
    "model.training.cutmix=1 model.training.global_batch_size=33 hardware.batch_size=11": (
        "model.training.global_batch_size=33 makes 11 images"
    ),
    "model.training.mixup=-1": "model.training.mixup=-1.0 is out of range",
    "model.training.mix_share=0": "model.training.mix_share=0.0 is out of range",
    "sparsity.ema=1": "sparsity.ema=1.0 is out of range: it must be at least 0 and below 1",
    "sparsity=dense sparsity.ema=0.9": "sparsity.ema is not a setting of this method but of concrete, backtracking",
}


@pytest.mark.parametrize("command", BATCH_MISTAKES)
def test_a_batch_that_does_not_fit_is_one_line(command: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["sttabt", *SMALL, *command.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1
    assert BATCH_MISTAKES[command] in line


@pytest.mark.parametrize("override", ["model.training.mixup=0.8", "sparsity.training.cutmix=1"])
def test_texts_are_not_mixed(override: str, tmp_path: Path) -> None:
    text = [*SMALL, "model=bert_base", f"model.huggingface={tmp_path}", "dataset=text_file", f"dataset.path={tmp_path}"]
    with pytest.raises(UserError, match=r"mixup=0\.8 blends images|cutmix=1\.0 blends images") as error:
        compose_settings([*text, override])
    assert "which texts cannot be: set " in str(error.value)


def test_the_papers_recipe_is_a_choice() -> None:
    sparsity = compose_settings([*SMALL, "sparsity=concrete_vision", "hardware.batch_size=64"]).sparsity
    training = sparsity.training
    assert (sparsity.method, sparsity.ema, sparsity.distillation, sparsity.lambda_mask) == (
        "concrete",
        0.9999,
        0.5,
        100,
    )
    assert (training.epochs, training.learning_rate, training.final_learning_rate) == (20, 1e-5, 5e-7)
    assert (training.warmup_epochs, training.weight_decay, training.global_batch_size) == (14, 0.05, 512)
    assert (training.mixup, training.cutmix, training.label_smoothing) == (0.8, 1.0, 0.1)


# --- top-5


def test_top5_counts_labels_among_the_five_likeliest() -> None:
    task = Task("accuracy", 10)
    logits = torch.randn(40, 10, generator=torch.Generator().manual_seed(4))
    labels = torch.arange(40) % 10
    metric = task.new_metric("top5")
    for part in (slice(0, 25), slice(25, 40)):
        metric.update(task.readings("top5", logits[part]), labels[part])
    expected = [int(label) in np.argsort(row)[-5:] for row, label in zip(logits.numpy(), labels, strict=True)]
    assert float(metric.compute()) == pytest.approx(np.mean(expected))
    assert (
        "top5" in task.metrics
        and "top5" not in Task("accuracy", 5).metrics
        and "top5" not in Task("pearson", 1).metrics
    )


# --- the experiment


def test_fashion_mnist_runs_from_images_to_the_report(monkeypatch) -> None:
    make_idx(Path("files"), train=120, test=40)
    narrowed = ["seed=0", "sparsity.keep_ratio=0.3", "sparsity.p_logit=0", "model.depth=2", "hardware.batch_size=20"]
    narrowed += ["dataset.path=files", "logger=none", "fast_dev_run=2"]
    narrowed += ["dataset.validation_share=0.2", "evaluation.timing_rounds=2", "evaluation.gallery=2"]
    monkeypatch.setattr(sys, "argv", ["sttabt", "experiment=fashion_mnist", *narrowed])
    main()
    rows = [Row.read(path) for path in Path("runs").rglob("row.json")]
    kinds = Counter(
        " ".join(map(str, filter(None, (row.method, row.settings.get("attention"), row.factor)))) for row in rows
    )
    assert kinds == {
        "dense": 1,
        "random": 1,
        "forward_topk": 1,
        "backtracking actual": 1,
        "backtracking approximate 4": 1,
        "backtracking approximate 8": 1,
        "concrete 4": 1,
    }
    for row in rows:
        assert row.samples == 40 and set(row.other_scores) == {"top5", "matthews"}
        assert len(row.occupancy_by_boundary) == 3
        if row.factor:
            assert row.approx is not None and row.approx["kl_random"] > 0 < row.approx["kl_interpolated"]
    (concrete,) = [row for row in rows if row.method == "concrete"]
    assert concrete.score_ema is not None and concrete.score_soft is not None
    (table,) = Path("runs").glob("*/report/table.md")
    assert all(word in table.read_text() for word in ("averaged weights %", "top-5 accuracy %", "KL interpolated"))
