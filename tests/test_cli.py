"""The command line: every mistake is one line and exit code 2, and a sweep runs to its end."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import sttabt
from sttabt.cli.checks.effects import Unused, without_effect
from sttabt.cli.composition import compose_settings
from sttabt.cli.sweep import Progress, assignments, duration, union_of_grids
from sttabt.run import main
from sttabt.settings import method_names, method_settings
from sttabt.settings.fields import walk

SOURCE = str(Path(sttabt.__file__).parents[1])
MISTAKES = {
    "": "no experiment is chosen: give experiment=NAME, one of: ",
    "experiment=quikstart": "experiment=quikstart is unknown: did you mean 'quickstart'?",
    "experiment=debug schedule=null": "schedule=null names no file of this group: give schedule=none for none of them,"
    " or one of keep, temperature, temperature_and_keep",
    "experiment=debug callbacks@callbacks=3": "callbacks=3 names no file of this group: give one of best_checkpoint,"
    " default, device_stats, early_stopping, lr_monitor, model_summary",
    "experiment=debug +hparams_search=True": "hparams_search=True names no file of this group: give"
    " hparams_search=none for none of them, or one of concrete",
    "experiment=debug model=digts_vit": "model=digts_vit is unknown: did you mean 'digits_vit'?",
    "modle=test_vit": "modle is not a setting: did you mean 'model'?",
    "experiment=debug approx.facter=4": "approx.facter is not a setting: did you mean 'approx.factor'?",
    "experiment=debug +approx.facter=4": "approx.facter is not a setting: did you mean 'approx.factor'?",
    "experiment=debug facter=4": "facter is not a setting: did you mean 'approx.factor'?",
    "experiment=debug sparsity.p_logitt=4": "sparsity.p_logitt is not a setting: did you mean 'sparsity.p_logit'?",
    "experiment=debug sparsity.keep_ratio=1": "sparsity.keep_ratio is not a setting of this method but of back",
    "experiment=debug hydra.sweper=1": "hydra.sweper is not a setting: did you mean 'hydra.sweeper'?",
    "experiment=debug approx.factor=four": "approx.factor=four: Value 'four' of type 'str' could not be converted",
    "experiment=debug ++approx.factor=x": "++approx.factor=x: Value 'x' of type 'str' could not be converted",
    "experiment=debug stages=base": "stages=base: Invalid value assigned",
    "experiment=debug model=null": "model=null names no file of this group: give one of bert_base, ",
    "experiment=debug paths.artifacts=null": "paths.artifacts=null: field 'paths.artifacts' is not Optional",
    "experiment=debug stages=[": "cannot read 'stages=['",
    "quickstart": "cannot read 'quickstart': write key=value",
    "experiment=debug --foo": "cannot read '--foo': give options first",
    "experiment=debug seed=1,2": "seed=1,2 names several values: add -m",
    "--config-dir nowhere experiment=debug": "Additional config directory",
    "experiment=quickstart hydra.mode=RUN": "no method is chosen: give sparsity=NAME",
    "experiment=debug sparsity.method=concreet": "sparsity.method=concreet is unknown: did you mean 'concrete'?",
    "experiment=debug sparsity.p_logit=nan": "sparsity.p_logit=nan is not a finite number",
    "experiment=debug approx.hidden_weight=inf": "approx.hidden_weight=inf is not a finite number",
    "experiment=debug +model.arguments.x=nan": "model.arguments.x=nan is not a finite number",
    "experiment=debug approx.factor=0": "approx.factor=0 is out of range: it must be at least 1",
    "experiment=debug approx.factor=3": "approx.factor=3 does not divide the head width 16 (model.width=32, "
    "model.heads=2): choose one of: 1, 2, 4, 8, 16",
    "experiment=debug approx.factor=32": "approx.factor=32 does not divide the head width 16",
    "experiment=debug model.heads=3": "model.width=32 is no multiple of model.heads=3",
    "experiment=debug sparsity=random sparsity.keep_ratio=0": "sparsity.keep_ratio=0.0 is out of range: it must be",
    "experiment=debug sparsity=random sparsity.keep_ratio=1.1": "sparsity.keep_ratio=1.1 is out of range",
    "experiment=debug sparsity.propagation=-0.1": "sparsity.propagation=-0.1 is out of range: it must be between",
    "experiment=debug sparsity.temperature=0": "sparsity.temperature=0.0 is out of range: it must be above 0",
    "experiment=movie_reviews sparsity=backtracking sparsity.counts=[9,8,7]": "sparsity.counts=[9, 8, 7] keeps as "
    "many tokens of every sample, which texts of unequal length do not have: set sparsity.keep_ratio instead",
    "experiment=debug sparsity=backtracking sparsity.counts=[9,10]": "sparsity.counts=[9, 10] must not rise",
    "experiment=debug sparsity=backtracking sparsity.counts=[9]": "sparsity.counts=[9] has 1 entries",
    "experiment=debug model.pretrained=true model.class_names=[a,b]": "model.class_names=['a', 'b'] are 2 names for "
    "dataset.classes=10: give as many",
    "experiment=debug model.patch_size=5": "model.patch_size=5 does not divide dataset.image_size=28",
    "experiment=debug model.arguments.depth=3": "model.arguments.depth=3 contradicts model.depth=2",
    "experiment=debug +model.arguments.img_size=8": "model.arguments.img_size=8: set dataset.image_size instead",
    "experiment=debug sparsity.training.global_batch_size=65": (
        "sparsity.training.global_batch_size=65 does not make 2 equal steps of at most "
        "hardware.batch_size=64: set 64 or 66"
    ),
    "experiment=debug sparsity.training.global_batch_size=-1": "sparsity.training.global_batch_size=-1 is out of range",
    "experiment=debug evaluation.precision=bf16": "evaluation.precision=bf16 is for GPUs: set float32, or hardware=gpu",
    "experiment=debug hardware.devices=0": "hardware.devices=0 is out of range: it must be at least 1",
    "experiment=debug budget.macs=1.5": "budget.macs=1.5 is out of range: it must be above 0 and at most 1, or 0",
    "experiment=debug budget=0.5": "budget=0.5: budget holds settings of its own: give one of budget.baseline, "
    "budget.batch, budget.macs",
    "experiment=debug budget.macs=0.5 budget.time=0.5": "budget.macs=0.5 and budget.time=0.5 cannot both be kept: give",
    "experiment=debug budget.macs=0.5 sparsity=dense": "budget.macs=0.5: dense has no setting that moves its cost: ",
    "experiment=debug budget.macs=0.5 sparsity.p_logit=-1": "budget.macs=0.5 finds sparsity.p_logit: leave "
    "sparsity.p_logit=-1.0 out, or the budget",
    "experiment=debug budget.time=0.5 sparsity=backtracking sparsity.dynamic=true": "budget.time=0.5 moves "
    "sparsity.keep_ratio, which has no effect here: sparsity.dynamic=true chooses the count",
    "experiment=debug budget.mac=0.5": "budget.mac is not a setting: did you mean 'budget.macs'?",
    "-m experiment=debug sparsity=random budget.macs=0.5 sparsity.keep_ratio=0.1,0.2": "job 1/2 (experiment=debug "
    "sparsity=random budget.macs=0.5 sparsity.keep_ratio=0.1): budget.macs=0.5 finds sparsity.keep_ratio",
    "experiment=debug stages=[base,report]": "add evaluate, or leave report out",
    "experiment=debug model.training.epochs=-1": "model.training.epochs=-1 is out of range",
    "experiment=debug sparsity.training.learning_rate=-1": "sparsity.training.learning_rate=-1.0 is out of range",
    "experiment=debug approx.training.grad_clip_norm=-1": "approx.training.grad_clip_norm=-1.0 is out of range",
    "experiment=debug dataset.validation_share=1": "dataset.validation_share=1.0 is out of range",
    "experiment=debug stages=[]": "stages=[] leaves nothing to do",
    "experiment=debug sparsity=cascade approx.prediction_weight=0": "sparsity=cascade answers by what the approximate"
    " network predicts, which approx.prediction_weight=0 does not teach it: set it above 0",
    "experiment=debug stages=[bse]": "stages=bse is unknown: did you mean 'base'?",
    "experiment=debug logger.kind=wandb_ofline": "logger.kind=wandb_ofline is unknown: did you mean 'wandb_offline'?",
    "experiment=debug resume=atuo": "resume=atuo is unknown: did you mean 'auto'?",
    "experiment=debug sparsity=backtracking sparsity.attention=actul": "did you mean 'actual'?",
    "experiment=debug dataset.source=digit": "dataset.source=digit is unknown: did you mean 'digits'?",
    "experiment=debug dataset=image_folder": "dataset.path is missing: give dataset.path=FOLDER",
    "experiment=debug dataset=image_folder model=deit_tiny dataset.path=nowhere": "nowhere is no folder",
    "experiment=debug model.checkpoint=nowhere.pt": "nowhere.pt is no file: give a weights file",
    "experiment=debug approx.checkpoint=nowhere.pt": "nowhere.pt is no file: give a weights file",
    "experiment=debug approx.stem=shard": "approx.stem=shard is unknown: did you mean 'shared'?",
    "experiment=debug model.sha256=cd65": "model.sha256=cd65 is no checksum: give the 64 hex digits",
    "experiment=debug model.lvvit=small": "model.timm='test_vit', model.lvvit='small', model.huggingface='': give",
    "experiment=debug model.timm= model.lvvit=smal": "model.lvvit=smal is unknown: did you mean 'small'?",
    "experiment=deit_topk dataset.path=x dataset.channels=1": "has 3 numbers: give one for each of 1 channels",
    "experiment=deit_topk dataset.path=x model.std=[0,1,1]": "model.std=[0.0, 1.0, 1.0] is out of range",
    "experiment=deit_topk": "dataset.path is missing: give dataset.path=FOLDER",
    "experiment=quickstart sparsity.keep_ratio=0.5,1.5": "job 3/19 (experiment=quickstart sparsity=random "
    "sparsity.keep_ratio=1.5): sparsity.keep_ratio=1.5 is out of range",
    "-m experiment=debug approx.factor=1,2,3": "job 3/3 (experiment=debug approx.factor=3): approx.factor=3",
}
BAD_YAML = {
    "approx: {facter: 4}": "experiment/mine.yaml: approx.facter is not a setting: did you mean 'approx.factor'?",
    "approx: {factor: four}": "experiment/mine.yaml: approx.factor: Value 'four' of type 'str' could not be converted",
    "sparsity: {p_logitt: 4}": "experiment/mine.yaml: sparsity.p_logitt is not a setting: did you mean",
    "defaults: [override /modle: test_vit]": "experiment/mine.yaml: modle is not a setting: did you mean 'model'?",
    "defaults: [override /model: tst_vit]": "model=tst_vit is unknown: did you mean 'test_vit'?",
    "model: {width: '${model.widht}'}": "model.width: ${model.widht} leads nowhere",
    "approx: [": "mine.yaml",
    "hydra: {mode: MULTIRUN, sweeper: {gridz: []}}": "did you mean 'hydra.sweeper.grids'?",
}
GRIDS = [
    {"sparsity": ["sparsity=dense"]},
    {"sparsity": ["sparsity=random"], "sparsity.keep_ratio": ["sparsity.keep_ratio=0.3", "sparsity.keep_ratio=0.7"]},
    {"sparsity": ["sparsity=concrete"], "sparsity.p_logit": ["sparsity.p_logit=0"]},
]


pytestmark = pytest.mark.usefixtures("own_folder")


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sttabt.run", *arguments]
    variables = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


def _mistake(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What main() writes on stderr, once it has ended with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["sttabt", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(command: str, tmp_path: Path, monkeypatch, capsys) -> None:
    line = _mistake(command.split(), monkeypatch, capsys)
    assert MISTAKES[command] in line
    assert line.count("\n") == 1
    assert "Traceback" not in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", BAD_YAML)
def test_a_mistake_in_an_experiment_is_one_line(content: str, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\nname: mine\n{content}\n")
    line = _mistake(["--config-dir", str(tmp_path), "experiment=mine"], monkeypatch, capsys)
    assert BAD_YAML[content] in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("part", ["train", "val"])
def test_an_empty_data_folder_is_named(part: str, tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("train", "val"):
        (tmp_path / "data" / name / ("cat" if name != part else "")).mkdir(parents=True)
    command = "experiment=debug dataset=image_folder model=deit_tiny dataset.path=data"
    assert f"{part}/ is empty" in _mistake(command.split(), monkeypatch, capsys)


def test_a_typo_in_a_process_of_its_own_is_quick_and_one_line() -> None:
    start = time.monotonic()
    typo = _run("experiment=debug", "approx.facter=4")
    assert typo.returncode == 2
    assert typo.stderr == "approx.facter is not a setting: did you mean 'approx.factor'?\n"
    assert typo.stdout == ""
    assert time.monotonic() - start < 10, "it takes 0.6 s, and 10 s with torch and lightning imported"


def test_the_traceback_shows_on_demand() -> None:
    ended = _run("experiment=debug", "approx.factor=0", HYDRA_FULL_ERROR="1")
    assert ended.returncode == 2
    assert "Traceback" in ended.stderr
    assert ended.stderr.endswith("approx.factor=0 is out of range: it must be at least 1\n")


def _help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `--help` prints; no line is longer than 100 columns, but for a key with a long value."""
    monkeypatch.setattr(sys, "argv", ["sttabt", "--help", *arguments])
    main()
    text = capsys.readouterr().out
    assert all(len(line) <= 100 or "=" in line for line in text.splitlines())
    return text


def test_help_names_every_setting_with_value_meaning_and_range(monkeypatch, capsys) -> None:
    text = " ".join(_help(monkeypatch, capsys).split())
    for key, value, description in walk(compose_settings(["name=test", "sparsity=concrete"])):
        if not is_dataclass(value) and "training." not in key and key != "sparsity.method":
            assert f" {key}" in text and description.meaning in text, key
    for method in method_names():
        assert f"sparsity={method}: {method_settings(method).title} (" in text
    for name in ("TRAINING.epochs=???", "resume=auto", "(one of auto, never)", "(above 0 and at most 1)"):
        assert name in text
    assert "sparsity=each_job is no method: every job of a sweep chooses its own." in text


def test_help_shows_what_is_chosen(monkeypatch, capsys) -> None:
    text = " ".join(_help(monkeypatch, capsys, "sparsity=tome", "model=lvvit_small", "sparsity.merged=3").split())
    assert "sparsity=tome: ToMe (Bolya" in text
    assert "sparsity.merged=3.0 pairs that every layer but the last merges, at most half of the tokens" in text
    assert "model=lvvit_small: the base model" in text
    assert (
        "model.width=384 " in text
        and "model.training.* how the base stage trains: see TRAINING; here epochs=300" in text
    )
    assert "p_logit" not in text, "other methods are left out"
    assert "every job of a sweep chooses one" in _help(monkeypatch, capsys, "experiment=quickstart")


def test_help_names_a_mistake(monkeypatch, capsys) -> None:
    assert "did you mean 'sparsity.merged'?" in _mistake(
        ["--help", "sparsity=tome", "sparsity.mergd=3"], monkeypatch, capsys
    )
    assert "did you mean 'tome'?" in _mistake(["--help", "sparsity=tom"], monkeypatch, capsys)


def test_help_and_cfg_and_own_experiments(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults: [debug]\nname: mine\nseed: 3\n")
    text = _help(monkeypatch, capsys, "--config-dir", str(tmp_path))
    assert "experiment=NAME" in text
    groups = " ".join(text.split("Groups (group=choice):")[1].split("Settings (key=value):")[0].split())
    shown = groups.partition(" experiment ")[2].partition(" hardware ")[0].split(", ")
    expected = {"ablation_p", "debug", "deit_topk", "fashion_mnist", "glue_concrete", "lvvit_concrete", "quickstart"}
    assert expected | {"mine"} <= set(shown)
    monkeypatch.setattr(sys, "argv", ["sttabt", "--config-dir", str(tmp_path), "experiment=mine", "--cfg", "job"])
    main()
    text = capsys.readouterr().out
    assert re.search("^name: mine$", text, re.MULTILINE)
    assert re.search("^seed: 3$", text, re.MULTILINE)


def test_a_sweep_outlives_a_failed_job_and_makes_its_report(tmp_path: Path) -> None:
    ended = _run("-m", "experiment=debug", "sparsity=dense", "model.timm=no_such_model,test_vit", "approx.factor=8")
    lines = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert lines[-1].startswith(
        "job 1/2 (experiment=debug sparsity=dense model.timm=no_such_model approx.factor=8) failed: model"
    )
    assert "Traceback" not in ended.stderr
    assert re.search(r"job 1/2 failed \(1 of 1\) after \d+ s, about \d+ s left", ended.stdout)
    assert re.search(r"job 2/2 done in \d+ s\n", ended.stdout)
    assert ended.stdout.count("approx.factor=8 has no effect: dense uses no approximate network here") == 1
    assert "| dense " in ended.stdout
    (sweep,) = (tmp_path / "runs").iterdir()
    assert (sweep / "1" / "row.json").exists()
    assert (sweep / "report" / "index.html").exists()
    assert f"page: {sweep.relative_to(tmp_path)}/report/index.html" in ended.stdout
    assert not (sweep / "1" / "report").exists(), "a sweep makes one report"


def test_a_single_run_that_fails_in_a_stage_is_one_line() -> None:
    ended = _run("experiment=debug", "sparsity=dense", "stages=[evaluate]")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("no finished 'base' artifact for these settings")
    assert "Traceback" not in ended.stderr


def test_jobs_are_the_union_of_the_grids_in_their_order() -> None:
    assert union_of_grids(GRIDS, {"experiment": ["experiment=x"]}) == [
        ["experiment=x", "sparsity=dense"],
        ["experiment=x", "sparsity=random", "sparsity.keep_ratio=0.3"],
        ["experiment=x", "sparsity=random", "sparsity.keep_ratio=0.7"],
        ["experiment=x", "sparsity=concrete", "sparsity.p_logit=0"],
    ]


def test_jobs_without_grids_are_the_product() -> None:
    given = {"a": ["a=1", "a=2"], "b": ["b=1", "b=2"]}
    assert union_of_grids([], given) == [["a=1", "b=1"], ["a=1", "b=2"], ["a=2", "b=1"], ["a=2", "b=2"]]


def test_a_sweep_of_a_key_without_grid_multiplies_every_grid() -> None:
    jobs = union_of_grids(GRIDS, {"seed": ["seed=0", "seed=1"]})
    assert len(jobs) == 8
    assert jobs[:3] == [
        ["sparsity=dense", "seed=0"],
        ["sparsity=dense", "seed=1"],
        ["sparsity=random", "sparsity.keep_ratio=0.3", "seed=0"],
    ]


def test_a_key_of_some_grids_is_replaced_there_alone() -> None:
    assert union_of_grids(GRIDS, {"sparsity.keep_ratio": ["sparsity.keep_ratio=0.1"]}) == [
        ["sparsity=dense"],
        ["sparsity=random", "sparsity.keep_ratio=0.1"],
        ["sparsity=concrete", "sparsity.p_logit=0"],
    ]


def test_a_choice_keeps_its_grids_and_one_without_grid_runs_alone() -> None:
    assert union_of_grids(GRIDS, {"sparsity": ["sparsity=dense"]}) == [["sparsity=dense"]]
    given = {"sparsity": ["sparsity=concrete", "sparsity=other"], "seed": ["seed=0", "seed=1"]}
    assert union_of_grids(GRIDS, given) == [
        ["sparsity=concrete", "sparsity.p_logit=0", "seed=0"],
        ["sparsity=concrete", "sparsity.p_logit=0", "seed=1"],
        ["sparsity=other", "seed=0"],
        ["sparsity=other", "seed=1"],
    ]
    given = {"sparsity": ["sparsity=other"], "sparsity.keep_ratio": ["sparsity.keep_ratio=0.2"]}
    assert union_of_grids(GRIDS, given) == [["sparsity=other", "sparsity.keep_ratio=0.2"]]


def test_a_job_that_two_grids_name_runs_once() -> None:
    assert union_of_grids([GRIDS[0], GRIDS[0]], {}) == [["sparsity=dense"]]


@pytest.mark.parametrize(
    "value", [1, -2.5, 1e-5, True, None, "plain", "with space, comma", "it's", "", [1, "a b"], {"k": [1]}, "1", "null"]
)
def test_a_grid_value_reaches_hydra_as_it_is(value: object) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides(assignments("key", [value]))
    assert override.value() == value
    assert type(override.value()) is type(value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sparsity=dense", "approx.factor=8"], "approx.factor=8 has no effect: dense uses no approximate network"),
        (["sparsity=backtracking_actual", "skip_approx=true"], "skip_approx=true has no effect: backtracking"),
        (["sparsity=backtracking", "sparsity.dynamic=true", "sparsity.keep_ratio=0.3"], "keep_ratio=0.3 has no effect"),
        (["model=deit_tiny", "dataset.image_size=224", "model.training.epochs=9"], "base model's weights are given"),
        (["dataset.path=somewhere"], "dataset.path=somewhere has no effect"),
        (["logger=csv", "logger.project=mine"], "logger.project=mine has no effect"),
        (["evaluation.timing_rounds=0", "evaluation.timing_batch=4"], "evaluation.timing_batch=4 has no effect"),
    ],
)
def test_an_option_without_effect_is_named(overrides: list[str], expected: str) -> None:
    (line,) = without_effect(compose_settings(["name=test", *overrides]), overrides)
    assert expected in line


def test_options_with_an_effect_are_not_named() -> None:
    overrides = ["sparsity=concrete", "approx.factor=8", "skip_approx=true", "model.training.epochs=9", "seed=1"]
    assert not list(without_effect(compose_settings(["name=test", *overrides]), overrides))
    assert not list(without_effect(compose_settings(["name=test", "sparsity=dense"]), ["sparsity=dense"]))


def test_a_sweep_names_what_no_job_of_it_uses() -> None:
    jobs = [
        ["name=test", "sparsity=dense", "approx.factor=8", "logger.project=mine", "logger=csv", "approx.stem=shared"],
        [
            "name=test",
            "sparsity=concrete",
            "approx.factor=8",
            "logger.project=mine",
            "logger=csv",
            "approx.stem=shared",
        ],
    ]
    unused = Unused()
    for job in jobs:
        unused.add(compose_settings(job), job)
    assert list(unused.lines()) == [
        "logger.project=mine has no effect: it is a setting of W&B",
        "approx.stem=shared has no effect: dense uses no approximate network here",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.training.label_smoothing=0.1", None),
        ("approx.training.label_smoothing=0.1", "an approximation has no labels to smooth"),
        ("approx.corpus_training.label_smoothing=0.1", "approx.start=interpolated reads no corpus"),
        ("sparsity.training.mix_share=0.5", "sparsity.training mixes no images"),
        ("sparsity.training.warmup_epochs=0", "sparsity.training.epochs=0 trains nothing"),
        ("sparsity.training.learning_rate=0.1", "sparsity.training.epochs=0 trains nothing"),
        ("sparsity.training.label_smoothing=0.1", "sparsity.training.epochs=0 trains nothing"),
    ],
)
def test_a_trainings_setting_has_an_effect_by_the_stage(override: str, expected: str | None) -> None:
    settings = compose_settings(["name=test", "sparsity=concrete", "sparsity.training.epochs=0", override])
    lines = list(without_effect(settings, [override]))
    assert lines == ([f"{override} has no effect: {expected}"] if expected else [])


@pytest.mark.parametrize("override", ["sparsity.distillation=0.5", "sparsity.ema=0.9", "sparsity.training.mixup=0.8"])
def test_what_tunes_has_no_effect_without_epochs(override: str) -> None:
    for epochs, lines in ((0, [f"{override} has no effect: sparsity.training.epochs=0 trains nothing"]), (1, [])):
        settings = compose_settings(["name=test", "sparsity=tome", f"sparsity.training.epochs={epochs}", override])
        assert list(without_effect(settings, [override])) == lines


def test_settings_from_python_name_what_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    compose_settings(["name=test", "sparsity=dense", "approx.factor=8"])
    assert caplog.messages == ["approx.factor=8 has no effect: dense uses no approximate network here"]


def test_progress_estimates_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        progress = Progress(total=3)
        progress.start -= 60
        progress.last -= 21
        progress.finished(1, failed=0)
        progress.finished(2, failed=1)
    assert caplog.messages == ["job 1/3 done in 21 s, about 2 min left", "job 3/3 failed (1 of 2) after 0 s"]
    assert [duration(seconds) for seconds in (21.4, 190, 9000)] == ["21 s", "3 min", "2.5 h"]
