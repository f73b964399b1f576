"""Schedules: what they move, when, and that a training without one is what it was."""

from __future__ import annotations

import csv
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sttabt.cli.composition import compose_settings
from sttabt.cli.messages import MISTAKES, explain
from sttabt.core.schedule import scheduled
from sttabt.data import load_splits
from sttabt.data.base import Batch, Splits, Subset
from sttabt.data.images import AugmentedImages
from sttabt.data.task import Task
from sttabt.errors import UserError
from sttabt.lit.fit import fit
from sttabt.lit.loggers import ContinuedCSVLogger
from sttabt.lit.modules import Pruning
from sttabt.methods import find_method, restored_method
from sttabt.methods.schedules import settings_at
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.descriptions import method_of
from sttabt.pipeline.stages import run_stages
from sttabt.pretrained.build import build_base
from sttabt.settings import Settings, TrainedSettings, method_names, method_settings
from sttabt.settings.fields import describe
from sttabt.settings.schedules import KEEP, ScheduleSettings, scheduled_names
from sttabt.store.artifacts import read_record
from sttabt.store.job import Job

pytestmark = pytest.mark.usefixtures("own_folder")

JOB = Job("test", "test", True, "")
IMAGES = ["dataset=digits", "model=test_vit", "model.width=32", "model.heads=2", "model.depth=2", "model.patch_size=14"]
COMMON = ["name=test", "hardware=cpu", "hardware.batch_size=8", "logger=none", *IMAGES]
TRAINING = ["sparsity.training.epochs=4", "sparsity.training.warmup_epochs=0", "sparsity.training.learning_rate=0.001"]
TRAINED = [name for name in method_names() if issubclass(method_settings(name), TrainedSettings)]
# Two values of settings between which others may be too near to each other to tell.
VALUES = {"p_logit": (2.0, -1.0), "temperature": (1.0, 0.01), "merged": (0.0, 1.0), "keep_target": (1.0, 0.1)}


def _settings(*overrides: str) -> Settings:
    return compose_settings([*COMMON, *TRAINING, *overrides])


def _splits(settings: Settings) -> Splits:
    """Thirty-two images to train on, and a few to validate."""
    whole = load_splits(settings.dataset)
    train: Any = whole.train
    few = AugmentedImages(train.source, train.indices[:32], train.transform, seed=0)
    return replace(whole, train=few, validation=Subset(whole.validation, range(8)))


def _module(settings: Settings) -> Pruning:
    torch.manual_seed(1)
    data = settings.dataset
    base = build_base(settings.model, data.classes, data.channels, data.image_size, pretrained=False).base
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network = ApproximateNetwork(base, settings.approx.factor)
    network.start_from(base)
    method = find_method(settings.sparsity.method)(settings.sparsity, base.layers, base.outputs)
    return Pruning(PrunedModel(base, method, network), base, settings.sparsity, Task.of(data))


class _Sees:
    """Notes a setting's value while batches are trained on, and while they are validated."""

    def __init__(self, module: Pruning, name: str) -> None:
        self.module, self.name = module, name
        self.training: list[float] = []
        self.validation: list[float] = []
        run, soft = module.trained.run, module.trained.soft
        module.trained.run = lambda inputs: self._note(run, inputs)
        module.trained.soft = lambda inputs: self._note(soft, inputs)

    def _note(self, run: Any, inputs: Any) -> Any:
        seen = self.training if self.module.training else self.validation
        seen.append(getattr(self.module.trained.method.settings, self.name))
        return run(inputs)


def _fit(settings: Settings, name: str) -> tuple[_Sees, list[dict[str, str]]]:
    """What a training saw of a setting, and the rows of its log."""
    module = _module(settings)
    sees = _Sees(module, name)
    fit(module, _splits(settings), settings, Path("folder"), [ContinuedCSVLogger("logs", name="a", version="b")])
    assert module.trained.method.settings == settings.sparsity
    with Path("logs/a/b/metrics.csv").open() as lines:
        return sees, list(csv.DictReader(lines))


# --- what a training reads


@pytest.mark.parametrize("shape", ["linear", "geometric", "cosine"])
def test_the_logged_temperature_goes_as_asked_and_validation_has_its_own(shape: str) -> None:
    schedule = f"sparsity.schedules.temperature={{start:1.0,until:0.5,shape:{shape}}}"
    settings = _settings("sparsity=concrete", schedule, "trainer.log_every_n_steps=1")
    sees, rows = _fit(settings, "temperature")
    expected = [scheduled(1.0, 0.1, 0.5, shape, update / 16) for update in range(16)]
    assert sees.training == expected and expected[0] == 1 and expected[8:] == [0.1] * 8
    assert sees.validation == [0.1] * 4
    logged = [float(row["prune/scheduled_temperature"]) for row in rows if row["prune/scheduled_temperature"]]
    assert logged == pytest.approx(expected)


def test_batches_of_one_update_read_the_same_value() -> None:
    settings = _settings("sparsity=concrete", "schedule=temperature", "hardware.accumulate_grad_batches=2")
    sees, _ = _fit(settings, "temperature")
    assert len(sees.training) == 16 and len(set(sees.training)) == 8, "seven on the way, and the own value"
    assert sees.training[::2] == sees.training[1::2]


def test_where_training_drops_tokens_a_schedule_has_ended() -> None:
    """Its share is one of the updates on the soft run, which alone read such settings."""
    settings = _settings("sparsity=ltp", "sparsity.hard_from=0.3", "sparsity.schedules.temperature.start=1")
    sees, _ = _fit(settings, "temperature")  # soft epochs are those before 1.2: two of four
    own = settings.sparsity.temperature
    assert sees.training[:8] == [scheduled(1.0, own, 1.0, "linear", update / 8) for update in range(8)]
    assert sees.training[8:] == [own] * 8


def test_a_tuned_method_begins_with_all_tokens() -> None:
    sees, _ = _fit(_settings("sparsity=forward_topk", "schedule=keep"), "keep_ratio")
    assert sees.training[0] == 1 and sees.training[-1] == 0.5 == sees.validation[0]
    assert sees.training == sorted(sees.training, reverse=True) and len(set(sees.training)) > 10


def test_learned_logits_move_with_their_target() -> None:
    """What was learned stays, and so does its distance from the target in the loss."""
    module = _module(_settings("sparsity=concrete", "sparsity.schedules.p_logit={start:2,until:0.5}"))
    method, own = module.trained.method, module.trained.method.settings
    with torch.no_grad():
        method.p_logit.copy_(torch.tensor([0.5, -0.5]))
    for done, expected in ((0.0, [2.5, 1.5]), (0.25, [1.5, 0.5]), (0.5, [0.5, -0.5])):
        method.settings = settings_at(own, done)
        assert method.logits.tolist() == expected
        loss = module.trained.soft(torch.randn(2, 1, 28, 28)).terms["p_logit"]
        assert loss.item() == pytest.approx(own.lambda_p * 0.5)
    assert method.settings == own


@pytest.mark.parametrize("method", TRAINED)
def test_every_setting_that_can_be_scheduled_is_read_at_each_step(method: str) -> None:
    settings = _settings(f"sparsity={method}")
    module = _module(settings).eval()  # without draws
    torch.manual_seed(3)
    batch = Batch(torch.randn(6, 1, 28, 28), torch.arange(6))
    with torch.no_grad():
        for parameter, _ in module.trained.method.rates():
            parameter.add_(0.01 * torch.randn_like(parameter))
    names = [name for name in scheduled_names(type(settings.sparsity)) if name != KEEP]
    assert names
    for name in names:
        rule = next(describe(each).rule for each in fields(settings.sparsity) if each.name == name)
        high, low = VALUES.get(name, (0.9, 0.3) if rule is not None and rule.high == 1 else (3.0, 1.0))
        losses = []
        for value in (high, low):
            module.trained.method.settings = replace(settings.sparsity, **{name: value})
            losses.append(torch.stack(list(module.terms(batch).values())).sum().item())
        assert losses[0] != losses[1], name


@pytest.mark.parametrize("method", TRAINED)
def test_keep_begins_with_all_tokens_whatever_the_method_calls_it(method: str) -> None:
    settings = _settings(f"sparsity={method}", "schedule=keep").sparsity
    begun = settings_at(settings, 0.0)
    values = {"p_logit": pytest.approx(4.595, abs=1e-3), "merged": 0}  # logit of 0.99; no pairs
    assert getattr(begun, settings.kept_by) == values.get(settings.kept_by, 1.0)
    assert settings_at(settings, 0.8) == settings


# --- what is made of it


def test_without_a_schedule_nothing_is_said_of_it() -> None:
    """So that artifacts that were trained before there were schedules are found."""
    for method in method_names():
        said = method_of(
            _settings(f"sparsity={method}") if method in TRAINED else compose_settings([*COMMON, f"sparsity={method}"])
        )
        assert "schedules" not in said and "held" not in said
    said = method_of(_settings("sparsity=concrete", "schedule=temperature", "sparsity.held=macs"))
    assert said["held"] == "macs"
    assert said["schedules"] == {"temperature": {"start": 1.0, "until": 0.8, "shape": "geometric"}}


def _run(output: str, *overrides: str) -> None:
    given = ["experiment=debug", "logger=none", "evaluation.gallery=0", "evaluation.timing_rounds=0", *overrides]
    run_stages(compose_settings(given, output=output), JOB)


def test_under_a_budget_the_target_ends_at_what_was_found_and_the_aim_is_shared() -> None:
    for output, schedule in (("plain", "none"), ("scheduled", "temperature_and_keep")):
        _run(output, "sparsity=concrete", "budget.macs=0.5", f"schedule={schedule}")
    records = {
        name: [read_record(path) for path in Path("artifacts", name).glob("*/artifact.json")]
        for name in ("prune", "budget")
    }
    plain, timed = sorted((record["description"]["sparsity"] for record in records["prune"]), key=len)
    assert plain["p_logit"] == timed["p_logit"] != 0
    assert timed.keys() - plain.keys() == {"schedules"}
    assert sum("prune" not in record["description"] for record in records["budget"]) == 1
    assert len(records["budget"]) == 3
    card = (
        next(
            path.parent
            for path in Path("artifacts/prune").glob("*/artifact.json")
            if "schedules" in read_record(path)["description"]["sparsity"]
        )
        / "README.md"
    )
    assert "keep from 1 (cosine, until 0.8)" in card.read_text(encoding="utf-8")


def test_a_saved_method_comes_back_with_its_schedules() -> None:
    settings = _settings("sparsity=concrete", "schedule=temperature")
    base = _module(settings).trained.base
    found = restored_method(method_of(settings), base).settings
    assert found == settings.sparsity
    assert found.schedules == {"temperature": ScheduleSettings(1.0, 0.8, "geometric")}


def test_a_budget_may_find_what_a_geometric_schedule_cannot_reach() -> None:
    settings = _settings("sparsity=concrete", "budget.macs=0.5", "sparsity.schedules.p_logit={start:2,shape:geometric}")
    settings.sparsity.p_logit = -0.7
    with pytest.raises(UserError, match=r"schedule of sparsity\.p_logit cannot go from 2 to -0\.7"):
        _module(settings)


# --- mistakes


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            "sparsity=dense schedule=keep",
            "sparsity.schedules is for methods that train, as this one never does: set schedule=none, or choose",
        ),
        (
            "sparsity=backtracking schedule=keep",
            "sparsity.schedules.keep has no effect: sparsity.training.epochs=0 trains nothing: set epochs, or",
        ),
        (
            "sparsity=concrete sparsity.training.epochs=0 sparsity.training.warmup_epochs=0 schedule=keep",
            "sparsity.schedules.keep has no effect: sparsity.training.epochs=0 trains nothing",
        ),
        (
            "sparsity=ltp sparsity.hard_from=0 schedule=temperature",
            "sparsity.schedules.temperature has no effect: sparsity.hard_from=0 trains without a soft run, which",
        ),
        (
            "sparsity.schedules=keep",
            "sparsity.schedules=keep: sparsity.schedules holds names and values: give sparsity.schedules.NAME=VALUE",
        ),
        ("sparsity.schedules=[keep]", "sparsity.schedules=[keep]: sparsity.schedules holds names and values: give"),
        (
            "sparsity.schedules.temprature.start=1",
            "sparsity.schedules.temprature is no setting of concrete that can be scheduled: did you mean 'temperature",
        ),
        (
            "sparsity=forward_topk sparsity.training.epochs=1 schedule=temperature",
            "sparsity.schedules.temperature is no setting of forward_topk that can be scheduled: choose one of: keep,",
        ),
        ("sparsity.schedules.temperature.strat=1", "sparsity.schedules.temperature.strat is not a setting: did you"),
        ("sparsity.schedules.temperature.until=0.5", "sparsity.schedules.temperature.start is missing: give"),
        ("sparsity.schedules.temperature=0.5", "sparsity.schedules.temperature=0.5 is no schedule: give"),
        ("sparsity.schedules.temperature.start=high", "sparsity.schedules.temperature.start=high cannot be read: give"),
        ("sparsity.schedules.temperature.start=0", "sparsity.schedules.temperature.start=0.0 is out of range: it must"),
        ("sparsity.schedules.temperature={start:1,until:0}", "sparsity.schedules.temperature.until=0.0 is out"),
        ("sparsity.schedules.temperature={start:1,shape:step}", "sparsity.schedules.temperature.shape=step is unknown"),
        ("schedule=keep sparsity.schedules.keep.start=2", "sparsity.schedules.keep.start=2.0 is out of range: it"),
        ("schedule=keep sparsity.schedules.p_logit.start=2", "sparsity.schedules.keep and sparsity.schedules.p_logit"),
        ("schedule=keeep", "schedule=keeep is unknown: did you mean 'keep'?"),
        (
            "sparsity.schedules.p_logit={start:2,shape:geometric}",
            "a geometric schedule of sparsity.p_logit cannot go from 2 to 0, as it needs two values of one sign: set",
        ),
        (
            "sparsity=tome sparsity.training.epochs=1 schedule=keep sparsity.schedules.keep.start=0.9",
            "sparsity.schedules.keep.start=0.9 is no number of pairs: set it to 1",
        ),
        (
            "sparsity=backtracking sparsity.training.epochs=1 sparsity.dynamic=true schedule=keep",
            "sparsity.schedules.keep moves sparsity.keep_ratio, which has no effect here: sparsity.dynamic=true",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(overrides: str, line: str) -> None:
    given = ["experiment=debug", "sparsity=concrete"] if "sparsity=" not in overrides else ["experiment=debug"]
    with pytest.raises(MISTAKES) as raised:
        compose_settings([*given, *overrides.split()])
    assert explain(raised.value).removeprefix("schedule/keep.yaml: ").startswith(line)
