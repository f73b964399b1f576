"""A training that was interrupted ends in the same bits as one that was not: wherever it dies, whatever it trains."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from sttabt.cli.composition import compose_settings
from sttabt.data import load_splits
from sttabt.data.base import Splits, Subset
from sttabt.data.corpus import load_corpus
from sttabt.data.images import AugmentedImages
from sttabt.data.task import Task
from sttabt.lit import fit as fitting
from sttabt.lit.checkpoint import BEFORE, DAMAGED, LAST
from sttabt.lit.fit import Fitted, fit
from sttabt.lit.loggers import ContinuedCSVLogger
from sttabt.lit.modules import Approximation, BaseTraining, GeneralApproximation, Pruning
from sttabt.lit.stage import TrainingStage
from sttabt.methods import find_method
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.pruned import PrunedModel
from sttabt.pretrained.build import build_base
from sttabt.settings import Settings
from test_text_data import make_small_bert, sentences

pytestmark = pytest.mark.usefixtures("own_folder")

IMAGES = ["dataset=digits", "model=test_vit", "model.width=32", "model.heads=2", "model.depth=1", "model.patch_size=14"]
EVERY_STEP = "hardware.checkpoint_minutes=1e-9"
COMMON = ["name=test", "hardware=cpu", "hardware.batch_size=8", "hardware.accumulate_grad_batches=2", "logger=none"]
TRAINING = ["epochs=3", "warmup_epochs=1", "learning_rate=0.01", "grad_clip_norm=0.5"]
STAGES = {
    "base": ["model.training.mixup=0.8"],
    "approx": [],
    "general": [],
    "concrete": ["sparsity=concrete", "sparsity.ema=0.9", "sparsity.hard_from=0.67"],
    "ltp": ["sparsity=ltp", "sparsity.hard_from=0.67"],
    "scheduled": ["sparsity=concrete", "schedule=temperature_and_keep", "sparsity.held=macs"],
}
BATCHES = 4  # an epoch, of two weight updates
DEATHS = {  # before which batch of which epoch the process dies; -1: at the end of the epoch, -2: of validation
    "in the first epoch": (0, 3),
    "in the middle": (1, 2),
    "before an update": (1, 3),
    "before the last batch": (2, 3),
    "at the end of an epoch": (1, -1),
    "after validation": (1, -2),
}


class Dies(Callback):
    """Ends the training as a lost machine would end it."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch

    def _die(self, trainer: Any, place: int) -> None:
        if trainer.current_epoch == self.epoch and place == self.batch:
            raise OSError("the machine is gone")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self._die(trainer, index)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._die(trainer, -1)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self._die(trainer, -2)


class _Sees(Callback):
    """Notes the epoch and the batch of every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.seen.append((trainer.current_epoch, index))


@contextmanager
def _with(callback: Callback) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        own = fitting.new_callbacks
        patch.setattr(fitting, "new_callbacks", lambda *arguments: [*own(*arguments), callback])
        yield


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT, a file of sentences with classes, and one without."""
    folder = tmp_path_factory.mktemp("text")
    make_small_bert(folder / "bert", layers=1)
    lines = [f"{place % 2}\t{text}" for place, text in enumerate(sentences(80))]
    (folder / "texts.tsv").write_text("\n".join(["label\tsentence", *lines]), encoding="utf-8")
    (folder / "corpus.txt").write_text("\n".join(sentences(60, seed=3)), encoding="utf-8")
    return folder


def _settings(stage: str, words: Path | None, *overrides: str) -> Settings:
    node = {"base": "model.training", "approx": "approx.training", "general": "approx.corpus_training"}
    place = node.get(stage, "sparsity.training")
    kind = IMAGES
    if words is not None:
        kind = ["dataset=text_file", f"dataset.path={words / 'texts.tsv'}", "dataset.columns=[sentence]"]
        kind += ["dataset.label_column=label", "dataset.classes=2", "dataset.max_tokens=32", "dataset.name=texts"]
        kind += ["model=bert_base", f"model.huggingface={words / 'bert'}", "model.heads=2", "model.width=32"]
        kind += ["model.depth=1", f"approx.corpus={words / 'corpus.txt'}"]
    own = [each for each in STAGES[stage] if words is None or "mixup" not in each]
    return compose_settings([*COMMON, *kind, *own, *(f"{place}.{each}" for each in TRAINING), *overrides])


def _splits(settings: Settings, stage: str) -> Splits:
    """Thirty-two items to train on, and a few to validate."""
    if stage == "general":
        return load_corpus(settings.approx.corpus, settings.model, settings.dataset.max_tokens)
    whole = load_splits(settings.dataset, settings.model)
    train: Any = whole.train
    if isinstance(train, AugmentedImages):
        train = AugmentedImages(train.source, train.indices[: 8 * BATCHES], train.transform, seed=0)
    else:
        train = Subset(train, range(8 * BATCHES))
    return replace(whole, train=train, validation=Subset(whole.validation, range(8)))


def _module(stage: str, settings: Settings) -> TrainingStage:
    torch.manual_seed(1)
    data, task = settings.dataset, Task.of(settings.dataset)
    base = build_base(settings.model, data.classes, data.channels, data.image_size, pretrained=False).base
    if stage == "base":
        return BaseTraining(base, settings.model.training, task)
    network = ApproximateNetwork(base, settings.approx.factor)
    network.start_from(base)
    if stage == "general":
        return GeneralApproximation(network, base, settings.approx, task)
    if stage == "approx":
        return Approximation(network, base, settings.approx, task)
    method = find_method(settings.sparsity.method)(settings.sparsity, base.layers, base.outputs)
    return Pruning(PrunedModel(base, method, network), base, settings.sparsity, task)


def _state(module: TrainingStage) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _other_process() -> None:
    """Its random states are others."""
    torch.manual_seed(99)
    np.random.seed(98)
    random.seed(97)


def _interrupted(
    stage: str, settings: Settings, splits: Splits, folder: Path, death: tuple[int, int], loggers: Any = ()
) -> None:
    with _with(Dies(*death)), pytest.raises(OSError, match="the machine is gone"):
        fit(_module(stage, settings), splits, settings, folder, list(loggers))


def _cases() -> Iterator[Any]:
    for stage in STAGES:
        for death in DEATHS:
            for text in (False, True):
                if stage == "general" and not text:
                    continue
                # One of each kind on every change, all of them in the long run.
                brief = text == (stage == "general") or death == "in the middle"
                name = f"{stage}, {death}{', text' if text else ''}"
                yield pytest.param(stage, death, text, id=name, marks=[] if brief else pytest.mark.long)


@pytest.mark.parametrize(("stage", "death", "text"), list(_cases()))
def test_an_interrupted_training_ends_in_the_same_bits(stage: str, death: str, text: bool, words: Path) -> None:
    settings = _settings(stage, words if text else None, EVERY_STEP)
    splits = _splits(settings, stage)
    whole = _module(stage, settings)
    expected = fit(whole, splits, settings, Path("whole"), [])
    _interrupted(stage, settings, splits, Path("halved"), DEATHS[death])
    _other_process()
    again = _module(stage, settings)
    found = fit(again, splits, settings, Path("halved"), [])
    _check(whole, expected, again, found)


def _check(whole: TrainingStage, expected: Fitted, again: TrainingStage, found: Fitted) -> None:
    left, right = _state(whole), _state(again)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert (found.epochs, found.weights) == (expected.epochs, expected.weights)
    measured = [name for name in expected.metrics if name.endswith("/loss") or "/validation_" in name]
    assert len(measured) > 1 and all(found.metrics[name] == expected.metrics[name] for name in measured)


@pytest.mark.parametrize(("minutes", "first"), [(EVERY_STEP, (1, 2)), ("hardware.checkpoint_minutes=0", (1, 0))])
def test_it_goes_on_from_the_last_checkpoint(minutes: str, first: tuple[int, int]) -> None:
    """And computes no batch again that is in it: an update has two."""
    settings = _settings("base", None, minutes)
    splits = _splits(settings, "base")
    _interrupted("base", settings, splits, Path("halved"), (1, 3))
    with _with(sees := _Sees()):
        fit(_module("base", settings), splits, settings, Path("halved"), [])
    every = [(epoch, batch) for epoch in range(3) for batch in range(BATCHES)]
    assert sees.seen == every[every.index(first) :]


@pytest.mark.parametrize("damaged", [(LAST,), (LAST, BEFORE)])
def test_a_flipped_byte_is_named_and_the_training_goes_on_from_before_it(
    damaged: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    settings = _settings("base", None)
    splits = _splits(settings, "base")
    whole = _module("base", settings)
    expected = fit(whole, splits, settings, Path("whole"), [])
    _interrupted("base", settings, splits, Path("halved"), (2, 1))
    for name in damaged:
        path = Path("halved", name)
        content = bytearray(path.read_bytes())
        weight = torch.load(path, weights_only=True)["state_dict"]["trained.model.pos_embed"].numpy().tobytes()
        content[content.index(weight) + 5] ^= 1  # one bit of one number, which nothing else would show
        path.write_bytes(content)
    again = _module("base", settings)
    with caplog.at_level(logging.INFO):
        found = fit(again, splits, settings, Path("halved"), [])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == len(damaged) and all("is damaged and is set aside as damaged.ckpt" in w for w in warnings)
    assert ("goes on from the one before it" in warnings[0]) and Path("halved", DAMAGED).exists()
    assert any("resumes from" in message for message in caplog.messages) == (len(damaged) == 1)
    _check(whole, expected, again, found)


def test_what_was_logged_and_how_long_it_took_add_up(caplog: pytest.LogCaptureFixture) -> None:
    settings = _settings("base", None, "trainer.log_every_n_steps=1")
    splits = _splits(settings, "base")
    rows = {}
    for name in ("whole", "halved"):
        if name == "halved":
            loggers = [ContinuedCSVLogger("logs", name=name, version="base")]
            _interrupted("base", settings, splits, Path(name), (2, 1), loggers)
        fitted = fit(
            _module("base", settings), splits, settings, Path(name), [ContinuedCSVLogger("logs", name, "base")]
        )
        text = Path("logs", name, "base", "metrics.csv").read_text()
        header, *lines = [line.split(",") for line in text.splitlines()]
        columns = [header.index(each) for each in ("step", "base/loss", "base/validation_accuracy", "base/lr")]
        rows[name] = [[line[column] for column in columns] for line in lines]
    assert rows["halved"] == rows["whole"]
    assert len({row[0] for row in rows["whole"]}) == 3 * BATCHES // 2
    assert fitted.seconds_before > 0


TOGETHER = ["hardware=ddp_cpu", "hardware.batch_size=4", "hardware.accumulate_grad_batches=1"]


@pytest.mark.parametrize(
    ("stage", "minutes", "death"),
    [
        pytest.param("base", "hardware.checkpoint_minutes=0", "{epoch:1,batch:2}", id="base"),
        pytest.param("base", EVERY_STEP, "{epoch:1,batch:12}", marks=pytest.mark.long, id="base within an epoch"),
        pytest.param(
            "concrete", EVERY_STEP, "{epoch:2,batch:3}", marks=pytest.mark.long, id="concrete within an epoch"
        ),
        pytest.param("ltp", "hardware.checkpoint_minutes=0", "{epoch:2,batch:-2}", marks=pytest.mark.long, id="ltp"),
    ],
)
def test_processes_that_train_together_end_in_the_same_bits(stage: str, minutes: str, death: str) -> None:
    settings = _settings(stage, None, *TOGETHER, minutes)
    splits = _splits(settings, stage)
    if "12" in death:  # processes ask each other every tenth update
        splits = replace(splits, train=load_splits(settings.dataset, settings.model).train)
    whole = _module(stage, settings)
    expected = fit(whole, splits, settings, Path("whole"), [])
    dying = _settings(stage, None, *TOGETHER, minutes, f"callbacks.dies={{_target_:test_resume.Dies,{death[1:]}")
    with pytest.raises(RuntimeError, match="the machine is gone"):
        fit(_module(stage, settings), splits, dying, Path("halved"), [])
    assert Path("halved", LAST).exists()
    again = _module(stage, settings)
    found = fit(again, splits, settings, Path("halved"), [])
    _check(whole, expected, again, found)
