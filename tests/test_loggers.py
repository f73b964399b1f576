"""What a job hands to W&B, TensorBoard and CSV, read back from the files that they leave offline."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import ArtifactRecord, Record
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import sttabt
from sttabt import workspace
from sttabt.cli.composition import compose_settings, config_folder
from sttabt.lit.logged import result_values, shaded, strips, table
from sttabt.pipeline.stages import run_stages
from sttabt.report.gallery import ImageGallery, TextGallery
from sttabt.report.rows import Row
from sttabt.store.job import Job
from wandb_server import wandb_server

SWEEP = "the_sweep"
JOBS = (["sparsity=dense"], ["sparsity=backtracking"], ["sparsity.p_logit=0"], ["sparsity.p_logit=1", "seed=0"])
SMALL = ["experiment=debug", "evaluation.timing_rounds=0", "fast_dev_run=10", "hardware.batch_size=4"]
SOURCE = str(Path(sttabt.__file__).parents[1])


class Run:
    """One offline run, from its file."""

    def __init__(self, records: Sequence[Record]) -> None:
        (self.run,) = [record.run for record in records if record.HasField("run")]
        self.exit = [record.exit.exit_code for record in records if record.HasField("exit")]
        self.config = {item.key: json.loads(item.value_json) for item in self.run.config.update}
        self.history = [_values(record.history.item) for record in records if record.HasField("history")]
        self.summary = _values([item for record in records for item in record.summary.update])
        artifacts: list[ArtifactRecord] = [record.artifact for record in records if record.HasField("artifact")]
        artifacts = [each for each in artifacts if each.type != "run_table"]  # what W&B makes of a table
        self.gives = {each.name: each for each in artifacts if not each.use_after_commit}
        self.uses = {each.name: each for each in artifacts if each.use_after_commit}
        self.axes = {
            record.metric.glob_name: record.metric.step_metric for record in records if record.HasField("metric")
        }


def _values(items: Iterable[Any]) -> dict[str, Any]:
    """By name; dictionaries come piece by piece."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        inner = found
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = json.loads(item.value_json)
    return found


def _records(folder: Path) -> list[Record]:
    """What a run wrote: LevelDB's log format, blocks of 32 KiB with records in pieces, after 7 bytes of header."""
    (file,) = folder.glob("*.wandb")
    data, position, block, header = file.read_bytes(), 7, 2**15, 7
    records, whole = [], b""
    while position + header <= len(data):
        if block - position % block < header:  # too little is left of this block for another piece
            position += block - position % block
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if position + header + length > len(data):
            break  # it is being written
        whole += data[position + header : position + header + length]
        position += header + length
        if kind in (1, 4):  # a whole record, or its last piece
            records.append(Record.FromString(whole))
            whole = b""
    return records


def _finished_records(folder: Path) -> list[Record]:
    """All records; the service writes the last of them after the run was told to finish."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        records = _records(folder)
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.05)
    raise AssertionError(f"the run in {folder} does not finish")


def _read(folder: Path) -> dict[str, list[Run]]:
    """All runs below a folder, by job type, in the order in which they began."""
    found: dict[str, list[Run]] = {}
    for path in sorted(folder.rglob("offline-run-*")):
        run = Run(_finished_records(path))
        assert path.name.endswith(run.run.run_id)
        found.setdefault(run.run.job_type, []).append(run)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Four jobs of one sweep in one process, as a multirun runs them; run once for all of pytest's workers."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared if worker_id == "master" else shared.parent) / "loggers"
    with FileLock(folder.with_suffix(".lock")), pytest.MonkeyPatch.context() as patch:
        if folder.exists():
            return folder
        folder.mkdir()
        patch.chdir(folder)
        for number, overrides in enumerate(JOBS):
            job = Job(command=f"test {' '.join(overrides)}", sweep=SWEEP, multirun=True, commit="0123")
            settings = compose_settings([*SMALL, "logger=wandb_offline", *overrides], output=folder / str(number))
            run_stages(settings, job)
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, list[Run]]:
    return _read(folder)


def test_a_sweep_is_one_group_of_jobs_and_of_the_models_that_they_made(runs: dict[str, list[Run]]) -> None:
    assert {kind: len(own) for kind, own in runs.items()} == {"base": 1, "approx": 1, "prune": 2, "evaluate": 4}
    every = [run for own in runs.values() for run in own]
    assert len({run.run.run_id for run in every}) == 8, "no two share an id"
    assert {run.run.run_group for run in every} == {SWEEP}
    assert {run.run.project for run in every} == {"sttabt"}
    assert [run.exit for run in every] == [[0]] * 8
    assert set(runs["evaluate"][1].run.tags) == {"debug", "test_vit", "digits", "backtracking"}
    names = [run.run.display_name for run in runs["evaluate"]]
    assert names[1:3] == [
        "back-tracking (approximate attention), keep_ratio 0.5, seed 0",
        "concrete, p_logit 0, seed 0",
    ]


def test_the_config_is_complete(runs: dict[str, list[Run]]) -> None:
    for run in (runs["evaluate"][3], runs["prune"][1]):
        assert run.config["sparsity"]["p_logit"] == 1
        assert run.config["sparsity"]["training"]["epochs"] == 20
        assert run.config["approx"]["factor"] == 4
        assert run.config["dataset"]["source"] == "digits"
        assert run.config["job"] == {
            "command": "test sparsity.p_logit=1 seed=0",
            "sweep": SWEEP,
            "multirun": True,
            "commit": "0123",
        }


def test_metrics_have_one_naming_scheme(runs: dict[str, list[Run]]) -> None:
    for stage, own in runs.items():
        names = {name for run in own for line in run.history for name in line if not name.startswith("_")}
        expected = {"tokens"} if stage == "evaluate" else {stage}
        assert {name.partition("/")[0] for name in names} == expected, names
        if stage != "evaluate":
            assert {f"{stage}/{name}" for name in ("step", "epoch", "loss", "validation_accuracy")} <= names
            assert own[0].axes == {f"{stage}/*": f"{stage}/step"}
    summary = runs["evaluate"][0].summary
    assert {name.partition("/")[0] for name in summary if not name.startswith("_")} == {"result", "tokens"}


def test_a_row_is_the_summary(runs: dict[str, list[Run]], folder: Path) -> None:
    for number, run in enumerate(runs["evaluate"]):
        row = Row.read(folder / str(number) / "row.json")
        for name, value in result_values(row).items():
            expected = pytest.approx(value) if isinstance(value, float | list) else value
            assert run.summary[name] == expected, name
        assert run.summary["result/macs/attention"] == pytest.approx(row.macs["attention"])
        assert run.summary["result/macs_share"] == pytest.approx(row.macs_share)
        assert "result/time_ratio" not in run.summary, "timing was off"


def test_artifacts_are_linked_from_base_to_result(runs: dict[str, list[Run]], folder: Path) -> None:
    made = {
        f"{path.parents[1].name}-{path.parent.name}": path.parent
        for path in folder.glob("artifacts/*/*/artifact.json")
        if path.parents[1].name != "evaluate"
    }
    (base,), (approx,) = (runs[stage][0].gives for stage in ("base", "approx"))
    pruned = [next(iter(run.gives)) for run in runs["prune"]]
    assert {base, approx, *pruned} == made.keys(), "called as in the artifact store"
    assert runs["base"][0].uses.keys() == set()
    assert runs["approx"][0].uses.keys() == {base}
    assert [run.uses.keys() for run in runs["prune"]] == [{base, approx}] * 2
    assert [run.uses.keys() for run in runs["evaluate"]] == [
        {base},
        {base, approx},
        *({base, approx, name} for name in pruned),
    ]
    # A draft that is used is found on the server by its digest: it must be that of the one which was logged.
    given = {name: each for own in runs.values() for run in own for name, each in run.gives.items()}
    for own in runs.values():
        for run in own:
            for name, each in run.uses.items():
                assert (each.digest, each.type) == (given[name].digest, name.partition("-")[0])
    for name, each in given.items():
        entries = {entry.path: entry for entry in each.manifest.contents}
        assert entries["model.safetensors"].ref == (made[name] / "model.safetensors").as_uri(), "not uploaded"
        assert entries["artifact.json"].local_path
        record = json.loads((made[name] / "artifact.json").read_text())
        assert json.loads(each.metadata)["sha256"] == record["sha256"]


def test_weights_are_uploaded_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [*SMALL, "sparsity=dense", "logger=wandb_offline", "logger.upload_weights=true", "evaluation.gallery=0"]
    run_stages(compose_settings(overrides, output=tmp_path), Job("test", "alone", False, ""))
    (run,) = _read(tmp_path)["base"]
    (artifact,) = run.gives.values()
    (entry,) = [entry for entry in artifact.manifest.contents if entry.path == "model.safetensors"]
    assert not entry.ref
    assert Path(entry.local_path).samefile(next(tmp_path.glob("artifacts/base/*/model.safetensors")))


def test_kept_tokens_are_pictures_and_a_table(runs: dict[str, list[Run]], folder: Path) -> None:
    run = runs["evaluate"][2]
    (line,) = [line for line in run.history if "tokens/images" in line]
    assert line["tokens/images"]["count"] == 2
    assert "predicted" in line["tokens/images"]["captions"][0]
    media = folder / "2" / "wandb"
    for name in line["tokens/images"]["filenames"]:
        assert len(list(media.glob(f"offline-run-*/files/{name}"))) == 1
    (path,) = media.glob(f"offline-run-*/files/{line['tokens/table']['path']}")
    content = json.loads(path.read_text())
    assert content["columns"] == ["sample", "label", "prediction", "occupancy", "layer 1", "layer 2"]
    assert len(content["data"]) == 2


def test_a_failed_stage_ends_its_run_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [*SMALL, "sparsity=dense", "logger=wandb_offline", "model.training.learning_rate=1e30"]
    with pytest.raises(sttabt.errors.UserError, match="diverged"):
        run_stages(compose_settings(overrides, output=tmp_path), Job("test", "alone", False, ""))
    runs = _read(tmp_path)
    assert [run.exit for run in runs["base"]] == [[1]]
    assert not runs["base"][0].gives
    assert [run.exit for run in runs["evaluate"]] == [[1]]


# --- the client's own upload, to a server of this machine


def test_offline_runs_are_synced_with_their_links(runs: dict[str, list[Run]], folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)  # a synced run is marked
    paths = [str(path) for path in copy.rglob("offline-run-*")]
    with wandb_server() as server:
        command = [sys.executable, "-m", "wandb", "sync", "--yes", *paths]
        ended = subprocess.run(command, env=_clean(tmp_path) | server.environment, cwd=tmp_path, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()
    every = [run for own in runs.values() for run in own]
    assert server.runs.keys() == {run.run.run_id for run in every}
    assert server.uses == {(run.run.run_id, name) for run in every for name in run.uses}
    names = [name for name, _ in server.artifacts if "-" in name and not name.startswith("run-")]
    assert sorted(names) == sorted({name for run in every for name in run.gives}), "one version of each"


def test_online_runs_are_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sttabt.run", *SMALL, "logger=wandb_online", "logger.entity=me"]
    command += ["sparsity=backtracking", "stages=[base,approx,prune,evaluate]", "fast_dev_run=1"]
    with wandb_server() as server:
        ended = subprocess.run(
            command, env=_clean(tmp_path) | server.environment, cwd=tmp_path, capture_output=True, text=True
        )
    assert ended.returncode == 0, ended.stderr
    assert "offline" not in ended.stdout + ended.stderr
    assert not list(tmp_path.rglob("offline-run-*"))
    kinds = {run["jobType"]: name for name, run in server.runs.items()}
    assert kinds.keys() == {"base", "approx", "evaluate"}
    base, approx = (next(name for name, _ in server.artifacts if name.startswith(kind)) for kind in ("base", "approx"))
    assert server.uses == {(kinds["approx"], base), (kinds["evaluate"], base), (kinds["evaluate"], approx)}


def _clean(home: Path) -> dict[str, str]:
    """The environment of somebody without a W&B login."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return clean | {"HOME": str(home), "PYTHONPATH": SOURCE}


# --- online that is not


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "there is no API key"),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "connection refused"),
    ],
)
def test_online_without_a_server_is_offline_with_one_line(
    environment: dict[str, str], reason: str, tmp_path: Path
) -> None:
    code = (
        "import logging, sttabt.lit.wandb_runs as runs; runs.PATIENCE = 2.0;"
        "from sttabt.cli.composition import compose_settings; from sttabt.store.job import Job;"
        "from sttabt.lit.loggers import JobLoggers; logging.basicConfig(format='%(message)s');"
        f"settings = compose_settings(['experiment=debug', 'logger=wandb_online'], output={str(tmp_path)!r})\n"
        "with JobLoggers(settings, Job('test', 'alone', False, '')): pass"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=_clean(tmp_path) | environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if "offline" in line]
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("logger=wandb_online: ")
    assert reason in lines[0]
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


# --- W&B sweeps


def _agent_command(parameters: dict[str, object]) -> list[str]:
    """What W&B's own agent would start for one run of the example."""
    sweep = yaml.safe_load((config_folder().parent / "docs" / "wandb_sweep.yaml").read_text())
    assert set(parameters) == set(sweep["parameters"])
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in parameters.items()}})
    filled = {"${env}": [], "${interpreter}": [sys.executable], "${args_no_hyphens}": arguments["args_no_hyphens"]}
    return [part for piece in create_sweep_command(sweep["command"]) for part in filled.get(piece, [piece])]


PARAMETERS = {"sparsity.training.learning_rate": 3e-4, "sparsity.p_logit_rate": 20, "sparsity.distillation": 0.0}


def test_the_example_sweep_composes_and_chooses_by_a_metric_that_is_there() -> None:
    command = _agent_command(PARAMETERS)
    settings = compose_settings([part for part in command[3:] if not part.startswith("hydra.")])
    assert settings.name == "quickstart"
    assert (settings.sparsity.method, settings.logger.kind) == ("concrete", "wandb_online")
    assert settings.sparsity.training.learning_rate == 3e-4
    sweep = yaml.safe_load((config_folder().parent / "docs" / "wandb_sweep.yaml").read_text())
    assert sweep["metric"]["name"].removeprefix("result/") in Row.__dataclass_fields__


def test_a_job_of_an_agent_is_the_run_that_the_agent_named(tmp_path: Path) -> None:
    command = [*_agent_command(PARAMETERS), "logger=wandb_offline", "model=test_vit", "fast_dev_run=1"]
    command += ["evaluation.timing_rounds=0", "evaluation.gallery=0", "hardware.batch_size=4"]
    agent = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "named1", "PYTHONPATH": SOURCE}
    ended = subprocess.run(command, env=os.environ | agent, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    runs = _read(tmp_path)
    (job,) = runs["evaluate"]
    assert (job.run.run_id, job.run.sweep_id) == ("named1", "sweep1")
    assert job.summary["result/validation_loss"] > 0, "what the example minimises"
    for stage in ("base", "approx", "prune"):
        (run,) = runs[stage]
        assert run.run.run_id != "named1"
        assert not run.run.sweep_id, "beside the sweep, whose runs have one result each"


def test_an_agent_that_starts_a_sweep_of_ours_is_refused(tmp_path: Path) -> None:
    agent = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "named1", "PYTHONPATH": SOURCE}
    command = [sys.executable, "-m", "sttabt.run", "experiment=quickstart"]
    ended = subprocess.run(command, env=os.environ | agent, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1].startswith("a W&B agent started a sweep of ")
    assert "hydra.mode=RUN" in ended.stderr
    assert not (tmp_path / "runs").exists()


# --- the workspace


def test_the_workspace_shows_what_is_logged(runs: dict[str, list[Run]]) -> None:
    view = workspace.workspace("someone", "sttabt")._to_model().model_dump_json()
    logged = {name for own in runs.values() for run in own for line in [*run.history, run.summary] for name in line}
    shown = {
        part
        for part in view.replace("\\", "").replace("summary:", '"').replace("summary_metrics.", '"').split('"')
        if part.startswith(("result/", "tokens/", *(f"{stage}/" for stage in workspace.TRAINED)))
    }
    assert len(shown) > 15, shown
    off = {"result/time_ratio", "result/time_ratio_frozen", "tokens/texts"}  # timing is off here, and these are images
    unknown = {name for name in shown - logged - off if ".*" not in name and not name.startswith("general/")}
    assert not unknown
    for stage in workspace.TRAINED:
        assert f"{stage}/validation_.*" in view


def test_the_workspace_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert workspace.main([f"preview={tmp_path / 'view.json'}", "project=mine"]) == 0
    assert json.loads((tmp_path / "view.json").read_text())["project"] == "mine"
    assert workspace.main(["projekt=mine"]) == 2
    assert "did you mean 'project'?" in capsys.readouterr().err
    assert workspace.main([]) == 2
    assert "entity is missing" in capsys.readouterr().err


def test_the_workspace_is_saved_into_a_project(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sttabt.workspace", "entity=me", "project=mine"]
    with wandb_server() as server:
        environment = _clean(tmp_path) | server.environment
        ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "mine", "sttabt")
    assert "result/macs_share" in view["spec"]


# --- TensorBoard and CSV


def test_tensorboard_has_curves_result_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = compose_settings([*SMALL, "logger=tensorboard", "sparsity=dense"], output=tmp_path)
    run_stages(settings, Job("test", "alone", False, ""))
    base = EventAccumulator(str(tmp_path / "tensorboard" / "base")).Reload()
    assert {"base/validation_accuracy", "epoch"} <= set(base.Tags()["scalars"])
    result = EventAccumulator(str(tmp_path / "tensorboard" / "result")).Reload()
    row = Row.read(tmp_path / "row.json")
    assert result.Scalars("result/score")[0].value == pytest.approx(row.score)
    assert len(result.Tags()["images"]) == 2
    with (tmp_path / "metrics" / "base" / "metrics.csv").open() as lines:
        assert any(line["base/validation_accuracy"] for line in csv.DictReader(lines))


NEEDED = {  # what a machine may lack, and a command that asks for it
    "tensorboard": ["logger=tensorboard"],
    "wandb": ["logger=wandb_offline"],
    "datasets": ["dataset=cifar10", "model=deit_tiny", "model.pretrained=false"],
}


@pytest.mark.parametrize("package", NEEDED)
def test_a_package_that_is_missing_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(sttabt.errors.UserError, match=f"needs the package {package}: pip install {package}"):
        compose_settings([*SMALL, *NEEDED[package]])
    compose_settings([*SMALL, "logger=csv"])


# --- the forms of a gallery


def test_a_strip_shows_the_image_and_then_what_each_layer_reads() -> None:
    alive = np.array([[[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 0, 0, 0, 0]]], dtype=bool)
    gallery = ImageGallery(
        alive=alive,
        layers=np.array(2),
        labels=np.array([1]),
        predictions=np.array([0]),
        class_names=np.array(["a", "b"]),
        images=np.full((1, 4, 4, 1), 10, dtype=np.uint8),
        depth=np.array([[2, 2, 1, 1, 2]]),
        prefix=np.array(1),
        grid=np.array([2, 2]),
    )
    ((strip, caption),) = strips(gallery)
    assert caption == "label b, predicted a (wrong)"
    side, gap = 112, 4
    assert strip.shape == (side, 3 * side + 2 * gap, 3)
    image, first, second = (strip[:, start : start + side] for start in (0, side + gap, 2 * (side + gap)))
    assert (image == 10).all()
    assert (first == 10).all()
    half = side // 2
    assert (second[:half, :half] == 10).all()
    assert (second[half:, half:] == 10).all()
    assert (second[:half, half:] != 10).all()
    assert (second[half:, :half] != 10).all()
    columns, rows = table(gallery)
    assert columns[-2:] == ["layer 1", "layer 2"]
    assert rows == [[0, "b", "a", pytest.approx(9 / 15), 5, 3]]


def test_texts_are_shaded_by_the_layers_that_read_them() -> None:
    gallery = TextGallery(
        alive=np.array([[[1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]]], dtype=bool),
        layers=np.array(2),
        labels=np.array([0.5]),
        predictions=np.array([0.25]),
        class_names=np.array([], dtype=str),
        words=np.array([["[CLS]", "<b>", "##ly", ""]]),
    )
    page = shaded(gallery)
    assert "&lt;b&gt;" in page
    assert '<span style="background:rgba(0,114,178,0.75)" title="read by 2 of 2 layers">ly</span>' in page
    assert "label 0.50, predicted 0.25, occupancy 0.67" in page
    _, rows = table(gallery)
    assert rows == [[0, "0.50", "0.25", pytest.approx(2 / 3), "[CLS] <b> ##ly", "[CLS] ##ly"]]
