"""hparams_search: the space, the study and its front, and real searches that are interrupted and go on."""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode

import sttabt.pipeline.stages
from sttabt.cli.composition import compose_settings, config_folder
from sttabt.errors import UserError
from sttabt.report.build import draw_figures, make_report
from sttabt.report.front import front
from sttabt.report.reading import read_rows
from sttabt.run import main
from sttabt.search.plan import Plan
from sttabt.search.space import Choices, Range, describe, fit_space, read_space
from sttabt.search.study import SAMPLERS, Trial, open_study
from test_report import make_row, write_rows

SPACE = {"sparsity.p_logit": Range(-3.0, 2.0), "sparsity.lambda_mask": Range(1.0, 1e4, True), "f": Choices((2, 4))}
SEARCH = [
    *("experiment=debug", "hparams_search=concrete", "logger=none"),
    *("evaluation.timing_rounds=0", "evaluation.gallery=0"),
]


pytestmark = pytest.mark.usefixtures("own_folder")


# --- the front


def _slow_front(results: Sequence[tuple[float, float]]) -> list[int]:
    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    kept = [index for index, own in enumerate(results) if not any(beats(other, own) for other in results)]
    return sorted(kept, key=lambda index: (results[index][0], index))


def test_the_front_is_what_no_other_beats() -> None:
    draw = random.Random(0)
    for size in (0, 1, 2, 5, 30):
        for _ in range(200):
            results = [(draw.randint(1, 9) / 9, draw.randint(1, 9) / 9) for _ in range(size)]
            assert front(results) == _slow_front(results)


def test_the_front_is_optunas() -> None:
    import optuna

    study = optuna.create_study(directions=["maximize", "minimize"])
    draw = random.Random(1)
    results = [(draw.random(), draw.random()) for _ in range(40)]
    for cost, score in results:
        study.tell(study.ask().number, [score, cost])
    assert sorted(front(results)) == sorted(trial.number for trial in study.best_trials)


# --- the space


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ({}, "hydra.sweeper.space is empty: give a setting"),
        ({"a": 3}, "hydra.sweeper.space.a=3: give {low"),
        ({"a": {"low": 2, "high": 2}}, "hydra.sweeper.space.a: low=2 is not below high=2"),
        ({"a": {"low": 0, "high": 2, "log": True}}, "log=true needs low above 0, not low=0"),
        ({"a": {"low": 0, "high": 2, "log": 1}}, "hydra.sweeper.space.a.log=1 is neither"),
        ({"a": {"low": 0}}, "hydra.sweeper.space.a.high=None is no number"),
        ({"a": {"low": "x", "high": 2}}, "hydra.sweeper.space.a.low=x is no number"),
        ({"a": {"low": 0, "hihg": 2}}, "hydra.sweeper.space.a.hihg is unknown: did you mean 'high'?"),
        ({"a": {"choices": [1]}}, "hydra.sweeper.space.a.choices=[1]: give a list of two values"),
        ({"a": {"choices": [1, 1]}}, "1 is named twice"),
        ({"a": {"choices": [1, 2], "log": True}}, "has choices and log"),
    ],
)
def test_a_space_that_cannot_be_searched_is_named(space: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        read_space(space)
    assert line in str(error.value)


def test_a_space_may_be_nested_and_has_the_types_of_its_settings() -> None:
    nested = {"a": {"b": {"low": 1, "high": 3}, "c": {"d": {"choices": ["x", 2]}}}, "a.e": {"low": 1, "high": 8}}
    found = fit_space(read_space(nested), {"a.b": 0.5, "a.c.d": "x", "a.e": 4})
    assert found == {"a.b": Range(1.0, 3.0), "a.c.d": Choices(("x", 2)), "a.e": Range(1, 8)}
    assert [type(end) for key in ("a.b", "a.e") for end in found[key].ends] == [float, float, int, int]
    with pytest.raises(UserError, match="the setting is a whole number"):
        fit_space({"a.e": Range(1.5, 3)}, {"a.e": 4})
    with pytest.raises(UserError, match="the setting is no number but 'x'"):
        fit_space({"a.e": Range(1, 3)}, {"a.e": "x"})


# --- the study


def _result(trial: Trial) -> tuple[float, float]:
    """A made-up score and cost, between 0 and 1."""
    p_logit, factor = trial.values["sparsity.p_logit"], trial.values["f"]
    return 1 / (1 + abs(p_logit - factor)), (p_logit + 3) / 5


def _go_on(file: Path, sampler: str, asked: int, told: int, seed: int = 0) -> list[Trial]:
    with open_study(file, SPACE, {"space": describe(SPACE)}, sampler, seed) as study:
        for number in range(asked):
            (trial,) = study.ask(1)
            if number < told:
                study.tell(trial, *_result(trial), file.parent)
        return study.done


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupted_study_proposes_what_it_would_have_proposed_at_once(sampler: str, tmp_path: Path) -> None:
    whole = _go_on(tmp_path / "whole.journal", sampler, 24, 24)
    for asked, told, done in ((5, 5, 5), (8, 7, 12), (0, 0, 12), (12, 12, 24)):
        parts = _go_on(tmp_path / "parts.journal", sampler, asked, told)
        assert len(parts) == done
    assert [(one.number, one.values, one.score) for one in parts] == [
        (one.number, one.values, one.score) for one in whole
    ]
    assert len({one.values["sparsity.p_logit"] for one in whole}) > 10, "nsga2 passes values on to later generations"
    assert all(-3 <= one.values["sparsity.p_logit"] <= 2 and one.values["f"] in (2, 4) for one in whole)
    other = _go_on(tmp_path / "other.journal", sampler, 1, 1, seed=1)
    assert other[0].values != whole[0].values


def test_sqlite_holds_the_same_study(tmp_path: Path) -> None:
    _go_on(tmp_path / "study.db", "random", 2, 1)
    assert _go_on(tmp_path / "study.db", "random", 2, 2) == _go_on(tmp_path / "study.journal", "random", 3, 3)


def test_trials_asked_for_together_differ_and_a_failed_one_is_replaced(tmp_path) -> None:
    with open_study(tmp_path / "study.journal", SPACE, {}, "tpe", 0) as study:
        asked = study.ask(3)
        assert len({trial.values["sparsity.p_logit"] for trial in asked}) == 3
        study.fail(asked[1])
    with open_study(tmp_path / "study.journal", SPACE, {}, "tpe", 0) as study:
        again = study.ask(3)
        assert [trial.number for trial in again] == [0, 2, 3]
        assert [trial.values for trial in again[:2]] == [asked[0].values, asked[2].values]
        assert study.done == []


def test_another_study_in_the_file_is_refused_and_so_is_a_second_command(tmp_path) -> None:
    file = tmp_path / "study.journal"
    with ExitStack() as stack:
        stack.enter_context(open_study(file, SPACE, {"seed": 0}, "tpe", 0))
        with pytest.raises(UserError, match="is used by another command"):
            stack.enter_context(open_study(file, SPACE, {"seed": 0}, "tpe", 0))
    line = r"study.journal holds another study, with seed 0, here 1: give another file"
    with pytest.raises(UserError, match=line), open_study(file, SPACE, {"seed": 1}, "tpe", 0):
        pass
    for name in ("text.journal", "text.db"):
        (tmp_path / name).write_text("no study\nat all\n")
        line = rf"hydra.sweeper.storage=.*{name} cannot hold a study"
        with pytest.raises(UserError, match=line), open_study(tmp_path / name, SPACE, {}, "tpe", 0):
            pass


# --- what all trials share


def _plan(*arguments: str) -> Plan:
    with initialize_config_dir(str(config_folder()), version_base="1.3", job_name="sttabt"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", [*arguments], run_mode=RunMode.MULTIRUN)
        sweeper = Plugins.instance().instantiate_sweeper(
            hydra_context=HydraContext(config_loader=loader, callbacks=None),  # type: ignore[arg-type]
            task_function=print,  # type: ignore[arg-type]
            config=config,
        )
        return sweeper.plan([one for one in arguments if not one.startswith("hydra.")])  # type: ignore[attr-defined]


def test_a_search_has_the_experiments_settings_for_its_method(tmp_path: Path) -> None:
    plan = _plan("experiment=quickstart", "hparams_search=concrete")
    assert {"sparsity=concrete", "sparsity.p_logit_rate=40", "sparsity.training.epochs=8"} <= {*plan.fixed}
    assert not any(f"{key}=" in " ".join(plan.fixed) for key in plan.space)
    assert plan.settings.sparsity.training.grad_clip_norm == 1
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
    plan = _plan("experiment=deit_concrete", "hparams_search=concrete", f"dataset.path={tmp_path}")
    assert {"sparsity=concrete_vision", "approx.factor=4", "sparsity.training.global_batch_size=512"} <= {*plan.fixed}
    plan = _plan("experiment=fashion_mnist", "hparams_search=concrete", f"dataset.path={tmp_path}", "seed=2")
    assert {"sparsity=concrete", "seed=2"} <= {*plan.fixed}


def test_a_searched_setting_that_is_given_is_fixed() -> None:
    plan = _plan("experiment=debug", "hparams_search=concrete", "sparsity.p_logit=-1", "approx.factor=8")
    assert list(plan.space) == ["sparsity.lambda_mask", "sparsity.lambda_p", "sparsity.training.learning_rate"]
    assert {"sparsity.p_logit=-1", "approx.factor=8"} <= {*plan.fixed}


def test_a_schedule_can_be_searched() -> None:
    key = "sparsity.schedules.temperature.start"
    given = [*SEARCH, "schedule=temperature", f"+hydra.sweeper.space.{key}={{low:0.5,high:2}}"]
    plan = _plan(*given)
    assert plan.space[key] == Range(0.5, 2.0)
    assert plan.made_of["sparsity.schedules.temperature.until"] == 0.8 and key not in plan.made_of


def test_what_decides_the_results_makes_another_study_and_nothing_else_does() -> None:
    def made_of(*overrides: str, space: Any = SPACE, seed: int = 0) -> str:
        return str(Plan([], compose_settings(["experiment=debug", *overrides]), space, "tpe", seed).made_of)

    search = made_of()
    for same in ("logger=none", "hardware.threads=2", "evaluation.gallery=0", "sparsity.p_logit=1"):
        assert made_of(same) == search
    others = [made_of("seed=1"), made_of("approx.factor=2"), made_of(seed=1), made_of(space={"f": SPACE["f"]})]
    assert len({search, *others}) == 5


MISTAKES = {
    "hydra.sweeper.trials=0": "hydra.sweeper.trials=0 is out of range: it must be at least 1",
    "hydra.sweeper.trails=3": "did you mean 'hydra.sweeper.trials'?",
    "hydra.sweeper.sampler=tpee": "hydra.sweeper.sampler=tpee is unknown: did you mean 'tpe'?",
    "hydra.sweeper.storage=sqlite:///a.db": "hydra.sweeper.storage=sqlite:///a.db is no file",
    "+hydra.sweeper.space.sparsity.p_logitt={low:0,high:1}": "sparsity.p_logitt is not a setting: did you mean "
    "'sparsity.p_logit'?",
    "+hydra.sweeper.space.sparsity.schedules.temprature.start={low:1,high:2}": "schedules.temprature is no setting of "
    "concrete that can be scheduled",
    "+hydra.sweeper.space.model={low:0,high:1}": "model is a group of settings",
    "hydra.sweeper.space.sparsity.p_logit.low=3": "space.sparsity.p_logit: low=3 is not below high=2",
    "hydra.sweeper.space.sparsity.lambda_p={low:0,high:1,log:true}": "log=true needs low above 0",
    "hydra.sweeper.space.sparsity.lambda_p={low:-1,high:1,log:false}": "run: sparsity.lambda_p=-1.0 is out of range",
    "+hydra.sweeper.space.approx.factor={choices:[2,3]}": "approx.factor=3 cannot run: approx.factor=3 does not divide",
    "sparsity=random": "sparsity.p_logit is not a setting of this method but of concrete",
    "seed=0,1": "seed=0,1 names several values, but in a search each trial has one",
    "sparsity.p_logit=-1,0": "sparsity.p_logit=-1,0 names several values",
    "stages=[base]": "stages=['base'] gives a search no results: add evaluate",
    "hydra.sweeper.space.approx.factor={choices:[2,4]}": "not in the space of this search: put a + before",
    "sparsity=backtracking ~hydra.sweeper.space.sparsity +hydra.sweeper.space.approx.factor={choices:[2,4]}": "only "
    "methods that train have: sparsity.method=backtracking does not with sparsity.training.epochs=0",
    "sparsity=tome ~hydra.sweeper.space.sparsity +hydra.sweeper.space.sparsity.training.epochs={choices:[1,0]}": "only "
    "methods that train have: sparsity.method=tome does not with sparsity.training.epochs=0",
    "sparsity=dense ~hydra.sweeper.space.sparsity +hydra.sweeper.space.approx.factor={choices:[2,4]}": "only "
    "methods that train have: sparsity.method=dense does not",
}


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sttabt", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(mistake: str, tmp_path, monkeypatch, capsys) -> None:
    assert _main(monkeypatch, "experiment=debug", "hparams_search=concrete", *mistake.split()) == 2
    line = capsys.readouterr().err
    assert MISTAKES[mistake] in line and line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_optuna_one_line_says_what_to_install(monkeypatch, capsys) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "optuna" else found(name, *a))
    assert _main(monkeypatch, *SEARCH) == 2
    assert capsys.readouterr().err == 'hparams_search needs the package optuna: pip install "sttabt[search]"\n'


def test_a_setting_of_a_search_alone_says_so(monkeypatch, capsys) -> None:
    assert _main(monkeypatch, "experiment=debug", "hydra.sweeper.trials=3") == 2
    assert (
        "hydra.sweeper.trials is a setting of a search alone: choose one with hparams_search" in capsys.readouterr().err
    )


def test_every_search_begins_with_its_card() -> None:
    for path in (config_folder() / "hparams_search").glob("*.yaml"):
        card = path.read_text(encoding="utf-8").split("\n\n")[0]
        words = ("Question", "Data", "Cost", "Expect", "Command")
        assert path.stem == "none" or all(f"# {word} " in card for word in words), path


# --- real searches


def test_a_search_goes_on_where_it_was_interrupted_and_replaces_what_failed(tmp_path, monkeypatch, capsys) -> None:
    run, begun = sttabt.pipeline.stages.run_stages, []

    def ending(settings: Any, job: Any) -> None:
        begun.append(settings.sparsity.p_logit)
        if len(begun) == 2:
            raise KeyboardInterrupt
        if len(begun) == 4:
            raise RuntimeError("out of luck")
        run(settings, job)

    monkeypatch.setattr(sttabt.pipeline.stages, "run_stages", ending)
    command = [*SEARCH, "hydra.sweeper.trials=3", "hydra.sweeper.storage=mine.journal"]
    with pytest.raises(KeyboardInterrupt):
        _main(monkeypatch, *command)
    assert _main(monkeypatch, *command) == 1
    written = capsys.readouterr()
    assert begun[2] == begun[1], "the trial that was interrupted comes first"
    assert "RuntimeError: out of luck" in written.err.splitlines()[-1]
    shown = written.out + written.err
    assert "ERROR the job failed: RuntimeError: out of luck (its traceback is in the job's log)\n" in shown
    assert "Traceback" not in shown, "a line on the screen"
    assert any("Traceback" in path.read_text() for path in (tmp_path / "runs").glob("*/*/sttabt.log"))
    assert "## Front of 2 trials: accuracy and multiply-adds on the validation split" in written.out
    assert _main(monkeypatch, *command) == 0
    assert len(begun) == 5 and len(set(begun)) == 4, "one trial in place of the failed one"

    sweeps = sorted((tmp_path / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime)
    rows = read_rows([tmp_path / "runs"])
    told = {(row.knob_value, row.validation["score"], row.validation["macs_share"]) for row in rows if row.validation}
    assert len(told) == 3
    with (sweeps[-1] / "report" / "front.csv").open() as file:
        lines = list(csv.DictReader(file))
    names = ("sparsity.p_logit", "validation.score", "validation.macs_share")
    on_front = {tuple(float(line[name]) for name in names) for line in lines}
    results = sorted(told)
    assert on_front == {results[index] for index in _slow_front([(cost, score) for _, score, cost in results])}
    table = (sweeps[-1] / "report" / "table.md").read_text()
    assert table.count("| concrete | p_logit") == 3, "the report has the trials of all three commands"

    assert _main(monkeypatch, *command) == 0
    assert len(begun) == 5, "nothing is left to do"
    assert _main(monkeypatch, *command, "seed=1") == 2
    assert "mine.journal holds another study, with seed 0, here 1" in capsys.readouterr().err


# --- the figure


def make_search(dataset: str = "sketches") -> list[Any]:
    """Rows of a search over p_logit and a loss weight."""
    rows = []
    for number in range(9):
        share = 0.2 + 0.08 * number
        score = 0.9 - 0.3 * (1 - share) ** 2 - 0.05 * (number % 3)
        rows.append(
            make_row(
                share=share, dataset=dataset, config_hash=f"trial {number}", settings={"lambda_mask": 10.0**number},
                validation={"score": score, "macs_share": share},
            )
        )  # fmt: skip
    return rows


def test_the_figure_marks_the_front_and_needs_two_settings(tmp_path: Path) -> None:
    write_rows(tmp_path, make_search())
    files = make_report([tmp_path], along=["lambda_mask", "p_logit"])
    with (files.figures["search"].with_suffix(".csv")).open() as file:
        lines = list(csv.DictReader(file))
    results = [(float(line["validation.macs_share"]), float(line["validation.score"])) for line in lines]
    marked = [index for index, line in enumerate(lines) if line["front"] == "True"]
    assert marked == _slow_front(results) and 1 < len(marked) < len(lines)
    assert len({line["curve"] for line in lines}) == 1, "all trials are one curve"
    assert "lambda_mask 100" in files.table.read_text()
    one = [make_row(share=share, validation={"score": 0.5, "macs_share": share}) for share in (0.3, 0.6)]
    write_rows(tmp_path / "other", one)
    figures, missing, _ = draw_figures(["search"], [tmp_path / "other"])
    assert not figures and "differ in two settings" in missing["search"]


def test_what_a_budget_found_was_not_searched(tmp_path: Path) -> None:
    def budgeted(asked: float, epochs: int) -> Any:
        found = {"p_logit": asked, "lambda_mask": 100 * asked}
        budget = {"asked": asked, "reached": asked} | {f"found.{name}": value for name, value in found.items()}
        given = {"settings": found | {"training.epochs": epochs}, "validation": {"score": 0.5, "macs_share": asked}}
        return make_row(share=asked, budget=budget, budget_of="macs_share", config_hash=f"{asked}-{epochs}", **given)

    write_rows(tmp_path / "budgets", [budgeted(asked, 3) for asked in (0.3, 0.6)])
    figures, missing, _ = draw_figures(["search"], [tmp_path / "budgets"])
    assert not figures and "differ in two settings" in missing["search"]
    write_rows(tmp_path / "both", [budgeted(asked, epochs) for asked in (0.3, 0.6) for epochs in (3, 5)])
    figures, _, _ = draw_figures(["search"], [tmp_path / "both"])
    assert "search" in figures, "a budget is one of the settings that were tried"


def test_a_trial_is_a_job_that_runs_alone() -> None:
    settings = compose_settings([*SEARCH, "sparsity.p_logit=-1.25", "hydra.mode=RUN"])
    assert settings.sparsity.p_logit == -1.25
