"""Every yaml file composes into checked settings, and so does every job of every experiment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

import sttabt
from sttabt.cli.composition import compose_settings, config_folder
from sttabt.cli.reference import FILE, reference
from sttabt.data.sources import find_source
from sttabt.data.sources.glue import GLUE_TASKS
from sttabt.errors import UserError
from sttabt.settings import Settings, method_names, method_settings, steps_of, update_size
from sttabt.settings.fields import walk

GROUPS = {group.name: sorted(path.stem for path in group.glob("*.yaml")) for group in config_folder().iterdir()}
EXPERIMENTS = GROUPS.pop("experiment")
OTHERS = sorted(GROUPS.keys() - {"model", "dataset"})
CHOSEN = [(group, choice) for group in OTHERS for choice in GROUPS[group]]
CHOSEN.remove(("sparsity", "each_job"))  # for sweeps: each job decides


def _of_text(model: Any) -> bool:
    return bool(model.get("huggingface")) and not model.get("patch_size")


TEXT_MODELS = [name for name in GROUPS["model"] if _of_text(OmegaConf.load(config_folder() / "model" / f"{name}.yaml"))]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sweep_jobs(experiment: str, *overrides: str) -> list[list[str]]:
    """The jobs of an experiment that is a sweep by itself, as Hydra would start them."""
    with initialize_config_dir(str(config_folder()), version_base="1.3", job_name="sttabt"):
        from hydra.core.global_hydra import GlobalHydra

        loader = GlobalHydra.instance().config_loader()
        arguments = [f"experiment={experiment}", *overrides]
        config = loader.load_configuration("config", arguments, run_mode=RunMode.MULTIRUN)
        assert config.hydra.mode == RunMode.MULTIRUN
        sweeper = Plugins.instance().instantiate_sweeper(
            hydra_context=HydraContext(config_loader=loader, callbacks=None),  # type: ignore[arg-type]
            task_function=print,
            config=config,
        )
        assert isinstance(sweeper, Sweeper)
        return sweeper.jobs(arguments)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("group", "choice"), CHOSEN)
def test_every_choice_composes(group: str, choice: str) -> None:
    assert isinstance(compose_settings([f"{group}={choice}", "name=test"]), Settings)


@pytest.mark.parametrize("choice", GROUPS["model"])
def test_every_model_composes(choice: str, tmp_path: Path) -> None:
    model = _composed(f"model={choice}").model
    fitting = [f"dataset.image_size={8 * model.patch_size}", "dataset.channels=3"]
    if _of_text(model):
        fitting = [f"model.huggingface={tmp_path}", "dataset=text_file", f"dataset.path={tmp_path}"]
    assert compose_settings([f"model={choice}", "name=test", *fitting]).model.name == choice


@pytest.mark.parametrize("choice", sorted({*GROUPS["dataset"]} - {"glue"}))  # it is what the tasks have in common
def test_every_data_set_composes(choice: str, tmp_path: Path) -> None:
    """With a model that reads it. A source that reads files has a folder, or else a file."""
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
    (tmp_path / "own").touch()
    dataset = _composed(f"dataset={choice}").dataset
    source = find_source(dataset.source)
    fitting = [f"dataset={choice}", "name=test"]
    if source.holds == "text":
        fitting += ["model=bert_base", f"model.huggingface={tmp_path}"]
    else:
        fitting += ["model=digits_vit", f"model.patch_size={dataset.image_size}"]
    if "path" not in source.reads:
        assert compose_settings(fitting).dataset.name == choice
        return
    try:
        settings = compose_settings([*fitting, f"dataset.path={tmp_path}"])
    except UserError:
        settings = compose_settings([*fitting, f"dataset.path={tmp_path / 'own'}"])
    if dataset.name:
        assert settings.dataset.name == dataset.name and choice.startswith(dataset.name)
    else:
        assert settings.dataset.name in (tmp_path.name, "own"), "as the folder or the file is called"


def _composed(*overrides: str) -> DictConfig:
    """Before anything is checked."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("config", overrides=["name=test", *overrides])


def _covering(jobs: list[list[str]]) -> list[list[str]]:
    """Jobs in which every value of every grid stands at least once: some dozens of hundreds."""
    seen: set[str] = set()
    chosen = [job for job in jobs if not seen.issuperset(job) and seen.update(job) is None]
    assert seen == {override for job in jobs for override in job}
    return chosen


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_begins_with_its_card(experiment: str, tmp_path: Path) -> None:
    text = (config_folder() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    card = text.split("\n\n")[0]
    assert all(f"# {word} " in card for word in ("Question", "Cost", "Expect", "Command")), card
    assert f"experiment={experiment}" in card
    of_text = any(f"/model: {model}" in text for model in TEXT_MODELS)
    here = [f"model.huggingface={tmp_path}"] if of_text else []  # fetches nothing
    here += [] if "/dataset: digits" in text else [f"dataset.path={tmp_path}"]
    here += [f"approx.corpus={tmp_path}"] if "corpus: data/" in text else []
    if "/dataset: imagenet" in text:
        for part in ("train", "val"):
            (tmp_path / part / "cat").mkdir(parents=True)
    jobs = sweep_jobs(experiment, *here) if "MULTIRUN" in text else [[f"experiment={experiment}", *here]]
    for job in _covering(jobs):
        assert compose_settings(job).name == experiment


def test_the_quickstart_compares_methods_of_every_kind_with_a_control() -> None:
    found = [compose_settings(job).sparsity for job in sweep_jobs("quickstart")]
    assert found[0].method == "dense", "cheap jobs come first"
    assert {"random", "concrete", "backtracking"} < {each.method for each in found} <= set(method_names())
    swept = {each.label for each in found if sum(other.label == each.label for other in found) > 1}
    assert swept == {each.label for each in found} - {"dense"}, "every knob is swept"


GRID = {  # jobs of a task, dense and others
    "glue_topk": 1 + 9 * 4,
    "glue_concrete": 1 + 6 * 2,
    "glue_ltp": 1 + 6 * 5,
    "glue_search": 1 + 6 * 3 * 3,
}


@pytest.mark.parametrize("experiment", GRID)
def test_an_experiment_on_glue_has_the_papers_grid_and_recipe_for_each_task(experiment: str) -> None:
    jobs = sweep_jobs(experiment)
    tasks = Counter(override for job in jobs for override in job if override.startswith("dataset=glue_"))
    assert tasks == {f"dataset=glue_{task}": GRID[experiment] for task in GLUE_TASKS}
    for job in jobs:
        clipped = any(f"dataset=glue_{task}" in job for task in ("sst2", "stsb", "mnli", "qnli", "qqp"))
        clips = [override for override in job if override.startswith("sparsity.training.grad_clip_norm=")]
        assert clips == (
            []
            if {"sparsity=dense", "experiment=glue_topk"} & {*job}
            else [f"sparsity.training.grad_clip_norm={0.5 if clipped else 0}"]
        )
    for task in ("cola", "sst2"):  # one of each of the two grids
        one = sweep_jobs(experiment, f"dataset=glue_{task}", "dataset.path=.")
        assert len(one) == GRID[experiment], "a task on the command line keeps its own grids alone"
        assert all("dataset.path=." in job and "dataset.path=''" not in job for job in one)
        assert "sparsity=dense" in one[0], "cheap jobs come first"
    settings = compose_settings(jobs[-1])
    if experiment != "glue_topk":
        training = settings.sparsity.training
        assert settings.sparsity.hard_from * training.epochs == pytest.approx(0.8 * (training.epochs - 1))
        assert (training.weight_decay, training.label_smoothing, settings.sparsity.distillation) == (0.05, 0, 0)


@pytest.mark.parametrize(
    ("experiment", "points"), [("deit_concrete", 9 * 2), ("lvvit_concrete", 5), ("deit_topk", 6 * 3)]
)
def test_an_experiment_on_imagenet_has_the_papers_grid_and_recipe(experiment: str, points: int, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
    jobs = sweep_jobs(experiment, f"dataset.path={tmp_path}")
    assert len(jobs) == 1 + points and "sparsity=dense" in jobs[0]
    settings = compose_settings(jobs[-1])
    assert settings.dataset.image_size == 224 and update_size(settings, "prune") == 512
    training = settings.approx.training
    assert (training.epochs, training.learning_rate, training.weight_decay, training.grad_clip_norm) == (
        30,
        1e-4,
        0,
        0.5,
    )
    if experiment != "deit_topk":
        training = settings.sparsity.training
        assert (training.epochs, training.warmup_epochs, training.label_smoothing) == (20, 14, 0.1)
        assert (training.learning_rate, training.final_learning_rate, training.weight_decay) == (1e-5, 5e-7, 0.05)
        sparsity = settings.sparsity
        assert (sparsity.lambda_mask, sparsity.lambda_p, sparsity.distillation) == (100, 1e-3, 0.5)
        assert (training.mixup, training.cutmix, training.global_batch_size, sparsity.ema) == (0.8, 1.0, 512, 0.9999)


def test_what_a_sweep_chooses_is_a_setting_of_its_rows() -> None:
    choosing = set()
    knobs = {method_settings(method).knob_name() for method in method_names()}
    for experiment in EXPERIMENTS:
        text = (config_folder() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
        sweeper = OmegaConf.select(OmegaConf.create(text), "hydra.sweeper") or {}
        swept = {key.removeprefix("sparsity.") for grid in sweeper.get("grids", []) for key in grid}
        assert set(sweeper.get("choose", [])) <= swept - knobs, experiment
        choosing |= {experiment} if sweeper.get("choose") else set()
    assert choosing == {"glue_ltp", "glue_search", "movie_reviews"}


def test_a_method_on_the_command_line_keeps_its_grid_alone() -> None:
    jobs = sweep_jobs("quickstart", "sparsity=random", "seed=0,1")
    settings = [compose_settings(job) for job in jobs]
    assert {one.sparsity.method for one in settings} == {"random"}
    assert sorted((one.sparsity.keep_ratio, one.seed) for one in settings) == [
        (keep_ratio, seed) for keep_ratio in (0.2, 0.4, 0.6, 0.8) for seed in (0, 1)
    ]


def test_two_sweeps_of_the_same_second_have_different_folders_and_jobs_of_one_share_theirs() -> None:
    folders = []
    for _ in range(2):
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = compose("config", overrides=["name=test"], return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            sweep, run = config.hydra.sweep.dir, config.hydra.run.dir
            assert sweep == config.hydra.sweep.dir, "resolved once"
            folders += [sweep.rpartition("_")[2], run.rpartition("_")[2]]
    assert len(set(folders)) == 2, "one unique part a composition"


def test_paths_are_absolute_and_start_where_the_command_did(tmp_path: Path) -> None:
    settings = compose_settings(["name=test"])
    assert settings.paths.artifacts == str(tmp_path / "artifacts")
    assert compose_settings(["name=test", "paths.artifacts=shared"]).paths.artifacts == str(tmp_path / "shared")


@pytest.mark.parametrize(("batch", "steps"), [(0, (32, 3)), (24, (24, 1)), (32, (32, 1)), (48, (24, 2)), (99, None)])
def test_the_batch_of_a_methods_training_is_equal_steps_that_fit(batch: int, steps: tuple[int, int] | None) -> None:
    overrides = [
        "name=test",
        "hardware.batch_size=32",
        "hardware.accumulate_grad_batches=3",
        f"sparsity.training.global_batch_size={batch}",
    ]
    if steps is None:
        with pytest.raises(UserError, match="does not make 4 equal steps"):
            compose_settings(overrides)
        return
    settings = compose_settings(overrides)
    assert steps_of(update_size(settings, "prune"), settings.hardware) == steps
    assert steps_of(update_size(settings, "approx"), settings.hardware) == (32, 3)


@pytest.mark.parametrize("method", method_names())
def test_every_setting_is_described_and_every_number_has_a_range(method: str) -> None:
    settings = compose_settings(["name=test", f"sparsity={method}"])
    for key, value, description in walk(settings):
        assert len(description.meaning) > 5, key
        if type(value) in (int, float) and key not in ("sparsity.p_logit", "sparsity.p_logit_shift"):  # any number
            assert description.rule is not None, key


def test_the_values_in_the_yaml_files_are_the_defaults_of_the_classes_where_both_say_them() -> None:
    """The default that `--help` and the reference name is the one that holds."""
    for method in method_names():
        composed = compose_settings(["name=test", f"sparsity={method}"]).sparsity
        default = method_settings(method)(method=method)
        for field in fields(default):
            if field.name != "training":
                assert getattr(composed, field.name) == getattr(default, field.name), (method, field.name)


def test_settings_compose_without_torch() -> None:
    code = (
        "import sys; from sttabt.cli.composition import compose_settings; import sttabt.run;"
        "compose_settings(['experiment=debug']); sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(sttabt.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


def test_the_reference_of_settings_is_current() -> None:
    page = (Path(__file__).parents[1] / FILE).read_text(encoding="utf-8")
    assert page == reference(), "run `python -m sttabt.cli.reference`"
    for line in ("| `seed` | `0` |", "### `sparsity=tome`", "| `bench.spread` | `0.25` |", "above 0 and at most 1 |"):
        assert line in page
