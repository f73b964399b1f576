"""What a user sets of Lightning itself, which weights decay, and what every training logs and checks."""

from __future__ import annotations

import csv
import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import Dataset, Subset

from conftest import make_approx, make_backbone
from sttabt.cli.composition import compose_settings
from sttabt.data import load_splits
from sttabt.data.base import Batch, Splits
from sttabt.data.images import AugmentedImages
from sttabt.errors import UserError
from sttabt.lit.callbacks import BestWeights
from sttabt.lit.checkpoint import LAST
from sttabt.lit.configured import HARMLESS_ARGUMENTS, OWNED, influences, new_callbacks
from sttabt.lit.data import StageData
from sttabt.lit.decay import undecayed
from sttabt.lit.fit import fit
from sttabt.lit.modules import BaseTraining
from sttabt.lit.stage import warmup_cosine
from sttabt.run import main
from sttabt.settings import Settings
from test_lit import TASK, _base

pytestmark = pytest.mark.usefixtures("own_folder")

SMALL = ["name=test", "dataset=digits", "model=test_vit", "hardware.batch_size=16", "logger=none"]
EPOCHS = ["model.training.epochs=6", "model.training.warmup_epochs=0", "model.training.learning_rate=0.01"]
STOP = "callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:validation,patience:2,min_delta:2}"


def _settings(*overrides: str) -> Settings:
    return compose_settings([*SMALL, *EPOCHS, *overrides], output="output")


@pytest.fixture(scope="module")
def splits() -> Splits:
    """32 images to train on, augmented, and 16 to validate."""
    whole = load_splits(compose_settings(SMALL).dataset)
    train: Any = whole.train
    few = AugmentedImages(train.source, train.indices[:32], train.transform, seed=0)
    return replace(whole, train=few, validation=Subset(whole.validation, range(16)))


def _training(settings: Settings, kind: type[BaseTraining] = BaseTraining) -> BaseTraining:
    return kind(_base(), settings.model.training, TASK)


def _values(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


# --- arguments of the trainer

REFUSED = {
    "trainer.gradient_clip_val=1": "trainer.gradient_clip_val=1: set grad_clip_norm of model.training",
    "trainer.max_epochs=3": "trainer.max_epochs=3: set epochs of model.training",
    "trainer.accelerator=gpu": "trainer.accelerator=gpu: set hardware.accelerator instead",
    "trainer.determinstic=true": "trainer.determinstic is no argument of Lightning's Trainer: did you mean"
    " 'deterministic'?",
    "trainer.self=1": "trainer.self is no argument of Lightning's Trainer",
    "callbacks.x=3": "callbacks.x=3 names no class: give callbacks.x._target_=package.module.Class",
    "callbacks.x.monitor=loss": "callbacks.x={'monitor': 'loss'} names no class",
    "callbacks.x._target_=foo.Bar": "callbacks.x._target_=foo.Bar cannot be imported: No module named 'foo'",
    "callbacks.x._target_=lightning.pytorch.callbacks.EarlyStoping": (
        "callbacks.x._target_=lightning.pytorch.callbacks.EarlyStoping cannot be imported: module"
    ),
    "callbacks.x._target_=sttabt.errors.UserError": (
        "callbacks.x._target_=sttabt.errors.UserError is no Lightning Callback: give a subclass of"
    ),
    "callbacks.x._target_=lightning.pytorch.callbacks.EarlyStopping": "callbacks.x.monitor is missing: give",
    "callbacks=early_stopping callbacks.early_stopping.patiense=2": (
        "callbacks.early_stopping.patiense is no argument of EarlyStopping: did you mean 'patience'?"
    ),
}


@pytest.mark.parametrize("command", REFUSED)
def test_a_mistake_is_one_line_before_anything_runs(command: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["sttabt", "experiment=debug", *command.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    written = capsys.readouterr().err
    assert stop.value.code == 2 and written.count("\n") == 1, written
    assert REFUSED[command] in written
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "callbacks.x._target_=own_callbacks.not_one",
            r"callbacks\.x\._target_=own_callbacks\.not_one is no Lightning",
        ),
        (
            "callbacks=lr_monitor",
            r"Lightning refuses what trainer or callbacks set: .*LearningRateMonitor",
        ),  # no logger
        (
            "callbacks=early_stopping callbacks.early_stopping.monitor=val_loss",
            r"^callbacks: .*metric `val_loss` which",
        ),
        ("trainer.profiler=unknown", r"Lightning refuses what trainer or callbacks set: .*profiler"),
        ("callbacks.x={_target_:sttabt.lit.callbacks.BestWeights,mode:up}", r"callbacks\.x cannot be made: mode=up is"),
        (
            "callbacks=best_checkpoint callbacks.best_checkpoint.monitor=base/validation_acuracy",
            r"=base/validation_acuracy of BestWeights is not measured: did you mean 'base/validation_accuracy'\?",
        ),
    ],
)
def test_what_shows_only_in_a_stage_is_a_users_mistake_too(
    override: str, expected: str, splits: Splits, tmp_path: Path
) -> None:
    settings = _settings(*override.split())
    with pytest.raises(UserError, match=expected):
        fit(_training(settings), splits, settings, tmp_path, [])


def test_every_argument_is_passed_or_named() -> None:
    arguments = inspect.signature(Trainer.__init__).parameters.keys() - {"self"}
    assert OWNED.keys() <= arguments and set(HARMLESS_ARGUMENTS) <= arguments - OWNED.keys()
    assert {"deterministic", "benchmark", "profiler", "min_epochs", "detect_anomaly"} <= arguments - OWNED.keys()


def test_arguments_reach_the_trainer(splits: Splits, tmp_path: Path) -> None:
    profiler = "trainer.profiler={_target_:lightning.pytorch.profilers.SimpleProfiler,filename:times}"
    settings = _settings("trainer=deterministic", "trainer.check_val_every_n_epoch=3", profiler)
    module = _training(settings)
    fit(module, splits, settings, tmp_path, [])
    assert not torch.are_deterministic_algorithms_enabled(), "the next job of this process has its own setting"
    assert module.trainer.check_val_every_n_epoch == 3
    assert type(module.trainer.profiler).__name__ == "SimpleProfiler"
    assert module.trainer.max_epochs == 6


def test_help_imports_no_torch() -> None:
    code = "import sys, sttabt.cli.composition, sttabt.cli.task; assert not {'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- callbacks


def test_groups_combine_and_a_users_own_is_found() -> None:
    own = "callbacks.mine={_target_:own_callbacks.EpochFile,file:epochs,stage:'{stage}'}"
    settings = _settings("callbacks=[early_stopping,best_checkpoint,lr_monitor]", "callbacks.lr_monitor=null", own)
    stop, best, mine = new_callbacks(settings, "general", "general/validation_attention", "min")
    assert isinstance(stop, EarlyStopping) and isinstance(best, BestWeights)
    assert (stop.monitor, stop.mode, stop.patience) == ("general/validation_attention", "min", 5)
    assert (best.monitor, best.mode) == ("general/validation_attention", "min")
    assert mine.stage == "general"  # type: ignore[attr-defined]


def test_what_may_change_weights_is_in_the_fingerprint() -> None:
    assert influences(_settings()) == {}
    harmless = ("callbacks=[lr_monitor,model_summary]", "trainer=profiler", "trainer.log_every_n_steps=2")
    assert influences(_settings(*harmless)) == {}
    assert influences(_settings("callbacks=early_stopping", "callbacks.early_stopping=null")) == {}
    changed = influences(_settings("callbacks=[lr_monitor,early_stopping]", "trainer.benchmark=true"))
    assert changed["trainer"] == {"benchmark": True}
    assert changed["callbacks"].keys() == {"early_stopping"}
    own = _settings("callbacks.mine={_target_:own_callbacks.EpochFile,file:a,stage:b}")
    assert influences(own)["callbacks"].keys() == {"mine"}, "nobody knows what it does"


class _DiesInEpoch(BaseTraining):
    """Ends as a lost machine would end it, in the epoch that `dies` says."""

    dies = 3

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == self.dies:
            raise OSError("the machine is gone")


class _DiesAtItsEnd(BaseTraining):
    """Dies when all is trained and saved, before anybody has seen it."""

    def on_train_end(self) -> None:
        raise OSError("the machine is gone")


RESUMED = {
    "best": ["callbacks=best_checkpoint"],
    "stop": [STOP],
    "stop and best": [STOP, "callbacks=best_checkpoint"],
    "averaging": ["callbacks.swa={_target_:lightning.pytorch.callbacks.StochasticWeightAveraging,swa_lrs:0.01}"],
    "own": ["callbacks.mine={_target_:own_callbacks.EpochFile,file:epochs,stage:base}"],
    "twice an epoch": ["trainer.val_check_interval=0.5", "callbacks=best_checkpoint"],
    "seldom": ["trainer.check_val_every_n_epoch=2", "trainer.num_sanity_val_steps=1", "callbacks=best_checkpoint"],
    "a user's checkpoint": ["callbacks.c={_target_:lightning.pytorch.callbacks.ModelCheckpoint,dirpath:kept}"],
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("kind", [_DiesInEpoch, _DiesAtItsEnd])
def test_a_resumed_training_ends_as_if_it_had_not_been_interrupted(
    name: str, kind: type[BaseTraining], splits: Splits, tmp_path: Path
) -> None:
    settings = _settings(*RESUMED[name])
    whole = _training(settings)
    expected = fit(whole, splits, settings, tmp_path / "whole", [])
    interrupted = _training(settings, kind)
    _DiesInEpoch.dies = 1 if expected.epochs < 6 else 3
    with pytest.raises(OSError, match="the machine is gone"):
        fit(interrupted, splits, settings, tmp_path / "halved", [])
    again = _training(settings)
    found = fit(again, splits, settings, tmp_path / "halved", [])
    assert _equal(_values(again.trained), _values(whole.trained))
    assert (found.weights, found.epochs) == (expected.weights, expected.epochs)
    for metric in ("base/validation_accuracy", "base/loss"):
        assert found.metrics[metric] == expected.metrics[metric]
    if "stop" in name:
        assert expected.epochs == 3, "patience of 2 after the first"
    else:
        assert expected.epochs == 6


def test_what_a_callback_sets_at_the_end_comes_from_several_processes(splits: Splits, tmp_path: Path) -> None:
    ends = []
    for number, extra in enumerate((RESUMED["averaging"], [])):
        settings = _settings("hardware=ddp_cpu", "hardware.batch_size=8", *extra)
        module = _training(settings)
        fit(module, splits, settings, tmp_path / str(number), [])
        ends.append(_values(module.trained))
    assert not _equal(*ends)


class _Scored(BaseTraining):
    """Validation accuracy by epoch as given."""

    scores = (0.1, 0.5, 0.3, 0.5, 0.4, 0.2)
    seen: dict[int, dict[str, torch.Tensor]]

    def on_validation_epoch_end(self) -> None:
        self.log("base/validation_given", self.scores[self.current_epoch])
        self.seen = {**getattr(self, "seen", {}), self.current_epoch: _values(self.trained)}


@pytest.mark.parametrize(("mode", "epoch"), [("max", 2), ("min", 1)])
def test_best_weights_are_those_of_the_first_best_epoch(mode: str, epoch: int, splits: Splits, tmp_path: Path) -> None:
    given = ["callbacks.best_checkpoint.monitor='{stage}/validation_given'", f"callbacks.best_checkpoint.mode={mode}"]
    settings = _settings("callbacks=best_checkpoint", *given)
    module = _training(settings, _Scored)
    fitted = fit(module, splits, settings, tmp_path, [])
    assert fitted.weights == f"best by validation given, epoch {epoch}"
    assert fitted.metrics["base/validation_given"] == pytest.approx(_Scored.scores[epoch - 1])
    assert _equal(_values(module.trained), module.seen[epoch - 1])
    assert not _equal(_values(module.trained), module.seen[5])


def test_best_weights_come_from_several_processes(splits: Splits, tmp_path: Path) -> None:
    common = ("callbacks=best_checkpoint", "hardware.batch_size=8")
    found = []
    for hardware in (["hardware.accumulate_grad_batches=2"], ["hardware=ddp_cpu", "hardware.batch_size=8"]):
        settings = _settings(*hardware, *common)
        module = _training(settings)
        fitted = fit(module, splits, settings, tmp_path / str(len(found)), [])
        checkpoint = torch.load(tmp_path / str(len(found)) / LAST, weights_only=True)
        best = BestWeights.of(checkpoint)
        assert _equal({f"trained.{name}": value for name, value in _values(module.trained).items()}, best)
        found.append(fitted)
    assert all(fitted.weights.startswith("best by validation accuracy, epoch ") for fitted in found)


def test_without_a_callback_the_last_weights_are_used(splits: Splits, tmp_path: Path) -> None:
    settings = _settings()
    fitted = fit(_training(settings), splits, settings, tmp_path, [])
    assert (fitted.weights, fitted.epochs) == ("last epoch", 6)


# --- weight decay


@pytest.mark.parametrize(
    ("name", "embeddings"),
    [
        ("layer_scale_registers", {"model.cls_token", "model.pos_embed", "model.reg_token"}),
        ("distilled", {"model.cls_token", "model.pos_embed", "model.dist_token"}),
        ("lvvit", {"model.cls_token", "model.pos_embed"}),
        ("bert", {"model.bert.embeddings.position_embeddings.weight"}),
        ("distilbert", {"model.distilbert.embeddings.position_embeddings.weight"}),
    ],
)
def test_norms_biases_and_embeddings_of_position_do_not_decay(name: str, embeddings: set[str]) -> None:
    base = make_backbone(name)
    for module, prefix in ((base, ""), (make_approx(base, name), "backbone.")):
        plain = undecayed(module)
        parameters = dict(module.named_parameters())
        flat = {each for each, value in parameters.items() if value.ndim <= 1}
        assert {each for each in flat if "norm" in each.lower() or each.endswith(("bias", "gamma"))} <= flat <= plain
        assert plain - flat == {f"{prefix}{each}" for each in embeddings}


def test_what_a_module_lists_itself_does_not_decay() -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.relative_position_bias_table, self.weight = (
                torch.nn.Parameter(torch.ones(2, 2)) for _ in range(3)
            )

        def no_weight_decay(self) -> set[str]:
            return {"table"}

    whole = torch.nn.ModuleDict({"one": Own(), "two": torch.nn.Linear(2, 2)})
    assert undecayed(whole) == {"one.table", "one.relative_position_bias_table", "two.bias"}


# --- batches


@pytest.mark.parametrize(("hardware", "pinned"), [("cpu", False), ("gpu", True)])
def test_a_gpu_gets_pinned_memory_and_workers_stay(hardware: str, pinned: bool, splits: Splits) -> None:
    settings = _settings(f"hardware={hardware}", "hardware.workers=1", "hardware.batch_size=8")
    data = StageData(splits, settings, "base")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert (loader.pin_memory, loader.persistent_workers, loader.num_workers) == (pinned, True, 1)
    alone = StageData(splits, _settings("hardware.workers=0"), "base")
    assert not alone.train_dataloader().persistent_workers


# --- what is logged


def test_the_share_of_waiting_is_that_of_loading(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by 1 with every image that is loaded, and by 48 with every step of 16."""
    now = [0]
    monkeypatch.setattr("sttabt.lit.callbacks.time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(Dataset):
        def __init__(self, items: Any) -> None:
            self.items = items

        def __len__(self) -> int:
            return len(self.items)

        def __getitem__(self, key: Any) -> Batch:
            now[0] += 1
            return self.items[key]

    class Slowly(BaseTraining):
        def terms(self, batch: Batch) -> dict[str, torch.Tensor]:
            now[0] += 48
            return super().terms(batch)

    slow = replace(splits, train=Slow(splits.train), validation=Slow(splits.validation))
    settings = _settings("model.training.epochs=2", "trainer.log_every_n_steps=1")
    fit(_training(settings, Slowly), slow, settings, tmp_path, [CSVLogger(tmp_path, name="", version="logged")])
    with (tmp_path / "logged" / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["base/loss"]]
    assert [float(row["base/waiting_share"]) for row in rows] == [0.25] * 4
    assert [float(row["base/samples_per_second"]) for row in rows] == [0.25] * 4


def test_rate_speed_and_memory_are_logged(splits: Splits, tmp_path: Path) -> None:
    settings = _settings("callbacks=lr_monitor", "trainer.log_every_n_steps=1")
    module = _training(settings)
    fit(module, splits, settings, tmp_path, [CSVLogger(tmp_path, name="", version="logged")])
    with (tmp_path / "logged" / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["base/loss"]]
    assert len(rows) == 12
    rates = [float(row["base/lr"]) for row in rows]
    assert rates[0] == pytest.approx(0.01) and rates == sorted(rates, reverse=True) and rates[-1] < 0.001
    assert rates == pytest.approx([0.01 * warmup_cosine(step, 12, 0, 0.0) for step in range(12)])
    assert all(float(row["base/samples_per_second"]) > 0 for row in rows)
    assert 50 < float(rows[-1]["base/peak_memory_mb"]) < 1e5
    assert all(0 < float(row["base/waiting_share"]) < 1 for row in rows)
    with (tmp_path / "logged" / "metrics.csv").open() as lines:
        assert any(name.startswith("base/lr/pg") for name in csv.DictReader(lines).fieldnames or ())
    assert any(isinstance(callback, LearningRateMonitor) for callback in module.trainer.callbacks)  # type: ignore[attr-defined]
