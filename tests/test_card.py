"""Model cards: what was measured, where it belongs, and what was not measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from sttabt.cli.composition import compose_settings
from sttabt.pipeline import card
from sttabt.pipeline.card import CARD, NOT_MEASURED, last_stage, model_card, results
from sttabt.pipeline.stages import run_stages
from sttabt.report.rows import Row
from sttabt.store import artifacts
from sttabt.store.artifacts import MODEL_STAGES, Store, fingerprint, read_record
from sttabt.store.job import Job
from test_report import TIMES, make_row

JOB = Job("python -m sttabt.run test", "sweep", False, "0123")
SMALL = ["experiment=debug", "logger=none", "evaluation.gallery=0", "stages=[base,approx,prune,evaluate]"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _run(*overrides: str) -> Row | None:
    settings = compose_settings([*SMALL, *overrides], output="output")
    run_stages(settings, JOB)
    path = Path(settings.paths.output) / "row.json"
    return Row.read(path) if path.exists() else None


def _folder_of(stage: str) -> Path:
    (path,) = Path("artifacts", stage).glob("*/artifact.json")
    return path.parent.absolute()


def _facts(card: ModelCard) -> dict[str, str]:
    lines = [line.split(" | ") for line in card.text.partition("## Results")[0].splitlines() if line.startswith("| ")]
    return {line[0].removeprefix("| "): " | ".join(line[1:]).removesuffix(" |") for line in lines if len(line) > 1}


def test_a_card_says_which_epoch_its_weights_are_of() -> None:
    stop = "callbacks.early_stopping.stopping_threshold=-1"  # any accuracy ends it
    _run(
        "callbacks=[early_stopping,best_checkpoint]", stop, "stages=[base]", "fast_dev_run=0", "model.training.epochs=9"
    )
    facts = _facts(ModelCard.load(_folder_of("base") / CARD))
    assert facts["epoch"] == "best by validation accuracy, epoch 1, of 1 trained"
    assert "9 epochs" in facts["training"], "as asked for"


def test_a_model_that_nobody_evaluated_says_so() -> None:
    _run("sparsity=concrete", "stages=[base,approx,prune]")
    for stage in ("base", "approx", "prune"):
        card = ModelCard.load(_folder_of(stage) / CARD)
        assert "Accuracy, multiply-adds and latency: not measured." in card.text
        assert "Its accuracy, cost and latency were not measured." in card.text
        assert "its numbers mean nothing" in card.text, "two batches of one epoch"
        assert not card.data.eval_results
        assert not card.data.metrics
        assert (card.data.library_name, card.data.pipeline_tag) == ("sttabt", "image-classification")
    base, approx, pruned = (_facts(ModelCard.load(_folder_of(stage) / CARD)) for stage in ("base", "approx", "prune"))
    assert base["teacher"] == "none: trained from random weights"
    assert base["samples"] == "1,293 for training, 144 for validation"
    assert base["at the end of training"].startswith("validation accuracy 0.")
    assert base["epoch"] == "last epoch, of 1 trained"
    assert base["made from"] == "no other artifact"
    assert approx["teacher"] == f"the base model `{_folder_of('base').name}`, frozen"
    assert approx["at the end of training"].startswith("its own classification accuracy 0.")
    assert "4 times narrower" in approx["method"]
    assert pruned["teacher"] == "the frozen base model's prediction, weight 0.5"
    assert "p_logit 0.0" in pruned["method"]
    assert "learning rate 1e-05" in pruned["training"]
    assert f"(../../approx/{_folder_of('approx').name}/README.md)" in pruned["made from"]
    record = json.loads((_folder_of("prune") / "artifact.json").read_text())
    assert record["sha256"] in pruned["weights"]
    assert "| interpolated | " in ModelCard.load(_folder_of("approx") / CARD).text


def test_a_result_stands_on_the_card_of_the_model_that_it_measured() -> None:
    dense = _run("sparsity=dense", "evaluation.timing_rounds=2")
    tracked = _run("sparsity=backtracking", "sparsity.keep_ratio=0.3", "evaluation.timing_rounds=0")
    pruned = _run("sparsity=concrete", "sparsity.p_logit=-1", "evaluation.timing_rounds=0")
    for stage, row in (("base", dense), ("approx", tracked), ("prune", pruned)):
        assert row is not None
        card = ModelCard.load(_folder_of(stage) / CARD)
        (found,) = card.data.eval_results
        assert (found.metric_type, found.dataset_split, found.dataset_name) == ("accuracy", "test", "digits")
        assert found.metric_value == row.score
        assert f"{100 * row.score:.2f}" in card.text
        assert f"{row.macs_total / 1e6:.3f}" in card.text
        assert "Measured with one seed" in card.text
        assert row.commit in card.text
        assert results(_folder_of(stage)) == [row]
    assert dense is not None
    assert dense.time is not None
    frozen = f"{dense.time['dense_frozen_ms']:.3g}" if "dense_frozen_ms" in dense.time else "-"  # without kernels
    assert f"| dense | - | {dense.time['ms']:.3g} | {dense.time['dense_ms']:.3g} | {frozen} | 2 |" in _text("base")
    assert f"| concrete | p_logit -1 | {NOT_MEASURED} | - | - | - |" in _text("prune"), "timing was off"
    assert 'sttabt.load("artifacts/approx/' in _text("approx")


def _text(stage: str) -> str:
    return ModelCard.load(_folder_of(stage) / CARD).text


def test_a_second_result_joins_the_first_and_a_lost_card_comes_back() -> None:
    _run("sparsity=backtracking", "sparsity.keep_ratio=0.3", "evaluation.timing_rounds=0")
    _run("sparsity=backtracking", "sparsity.keep_ratio=0.6", "evaluation.timing_rounds=0")
    folder = _folder_of("approx")
    assert [row.settings["keep_ratio"] for row in results(folder)] == [0.3, 0.6], "in the order of their cost"
    assert len(ModelCard.load(folder / CARD).data.eval_results) == 2
    (folder / CARD).unlink()
    _run("sparsity=backtracking", "sparsity.keep_ratio=0.6", "evaluation.timing_rounds=0")
    assert len(ModelCard.load(folder / CARD).data.eval_results) == 2


def test_an_artifact_without_settings_gets_no_card_and_still_works(caplog: pytest.LogCaptureFixture) -> None:
    _run("sparsity=dense", "evaluation.timing_rounds=0")
    folder = _folder_of("base")
    record = json.loads((folder / "artifact.json").read_text())
    del record["notes"]["settings"], record["own_sha256"]  # which came later
    (folder / "artifact.json").write_text(json.dumps(record))
    (folder / CARD).unlink()
    caplog.set_level("INFO")
    _run("sparsity=dense", "evaluation.timing_rounds=0")
    assert f"no model card for {folder}" in caplog.text
    assert not (folder / CARD).exists()


TEXT = ["model=bert_base", "dataset=glue_stsb", "sparsity=ltp", "approx.start=general", "approx.corpus=sentences.txt"]


@pytest.mark.parametrize(
    ("stage", "overrides", "expected"),
    [
        ("base", [], {"teacher": "none: starts from the weights `google-bert/bert-base-uncased`", "data": "a score"}),
        ("base", ["model.fine_tune=false"], {"teacher": "used as they are", "samples": "none: nothing was trained"}),
        ("general", [], {"data": "unlabelled text, `sentences.txt`", "teacher": "the pretrained encoder"}),
        ("approx", [], {"method": "start: general"}),
        ("prune", [], {"teacher": "none: labels alone", "method": "LTP", "at the end of training": NOT_MEASURED}),
    ],
)
def test_a_card_of_text_says_where_its_weights_come_from(
    stage: str, overrides: list[str], expected: dict[str, str], tmp_path: Path
) -> None:
    Path("sentences.txt").write_text("A sentence.\n")
    settings = compose_settings(["name=test", *TEXT, *overrides], output=tmp_path)
    trained = "model.fine_tune=false" not in overrides
    notes: dict[str, Any] = {"settings": _plain(settings), "command": "x", "commit": "", "seconds": 1.0}
    notes |= {"samples": {"train": 5, "validation": 2}} if trained else {}
    described = dict.fromkeys(MODEL_STAGES[: MODEL_STAGES.index(stage)], "0123")
    store = Store("artifacts")
    with store.claim(stage, described) as claim:
        claim.finish({}, notes)
    card = model_card(claim.folder, [])
    facts = _facts(card)
    for name, text in expected.items():
        assert text in facts[name]
    assert card.data.base_model == "google-bert/bert-base-uncased"
    assert card.data.pipeline_tag == "text-classification"
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict(), "the hub can read it"


def _plain(settings: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return json.loads(json.dumps(asdict(settings)))


def test_a_card_of_ones_own_images_names_their_folder(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            Path("birds", part, name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(Path("birds", part, name, "0.png"))
    own = ["name=test", "model=deit_tiny", "dataset=image_folder", "dataset.path=birds", "dataset.classes=2"]
    settings = compose_settings([*own, "sparsity=dense"], output=tmp_path)
    store = Store("artifacts")
    with store.claim("base", {"seed": 0}) as claim:
        claim.finish({}, {"settings": _plain(settings), "command": "x", "commit": "", "seconds": 1.0})
    row = make_row("dense", dataset=settings.dataset.name, model=settings.model.name)
    shown = model_card(claim.folder, [row])
    assert _facts(shown)["data"].startswith("birds: images of 224 x 224 pixels")
    (result,) = shown.data.eval_results or ()
    assert (result.dataset_name, result.dataset_type, shown.data.datasets) == ("birds", "birds", ["birds"])
    assert "imagenet" not in str(shown).lower()


def test_the_last_stage_is_whose_model_it_is() -> None:
    assert last_stage(["approx", "base"]) == "approx"
    assert last_stage(["base"]) == "base"
    assert last_stage(["prune", "general", "base", "approx"]) == "prune"


def _store(models: int, results_each: int) -> list[Path]:
    """Base models without weights, each with as many results and their times."""
    store = Store(Path("artifacts").absolute())
    notes = {"settings": _plain(compose_settings(SMALL)), "command": "x", "commit": "", "seconds": 1.0}
    folders = []
    for model in range(models):
        with store.claim("base", {"seed": model}) as base:
            base.finish({}, notes)
        folders.append(base.folder)
        for number in range(results_each):
            described = {"base": base.folder.name, "number": number}
            row = make_row(share=(1 + number) / (1 + results_each), config_hash=fingerprint(described), time=None)
            with store.claim("evaluate", described) as claim:
                row.write(claim.folder / "row.json")
                claim.finish({}, notes)
            with store.claim("timing", {**described, "timing": {}}) as claim:
                claim.finish({}, notes | {"time": TIMES, "baseline": "batch"})
    return folders


@pytest.mark.parametrize(("models", "results_each"), [(1, 12), (4, 3)])
def test_the_cards_of_a_sweep_read_every_result_once(models: int, results_each: int, monkeypatch) -> None:
    folders = _store(models, results_each)
    read: list[Path] = []
    for module in (card, artifacts):
        monkeypatch.setattr(module, "read_record", lambda path: read.append(path) or read_record(path))
    hashes = {row.config_hash for folder in folders for row in results(folder)}
    assert len(hashes) == models * results_each
    read.clear()
    card.write_cards(Path("artifacts").absolute(), hashes)
    assert sorted(read.count(path) for path in set(read)) == [1] * 2 * len(hashes) + [2] * models  # of the models
    for folder in folders:
        assert len(ModelCard.load(folder / CARD).data.eval_results or ()) == results_each
        assert (folder / CARD).read_text().count("0.550 (0.500 to 0.600)") == results_each
        (folder / CARD).unlink()
    card.write_cards(Path("artifacts").absolute(), [results(folders[0])[0].config_hash])
    assert [(folder / CARD).exists() for folder in folders] == [True] + [False] * (models - 1), "whose results are new"


@pytest.mark.parametrize(
    ("spoil", "named", "left"),
    [
        (lambda store: _one(store, "evaluate/*/row.json").write_text("{"), "row.json: it is no JSON", 2),
        (lambda store: _one(store, "evaluate/*/row.json").unlink(), "row.json: No such file", 2),
        (lambda store: _one(store, "evaluate/*/artifact.json").write_text("[]"), "artifact.json is damaged", 2),
        (lambda store: _noted(store, time={"ratio": 1}), "artifact.json: time lacks batch_size", 3),
        (lambda store: _noted(store, time=[1]), "artifact.json: time is [1]", 3),
        (lambda store: _noted(store, baseline=...), "artifact.json: it lacks baseline", 3),
        (lambda store: _one(store, "timing/*/artifact.json").write_text("{}"), "artifact.json is damaged", 3),
    ],
)
def test_a_damaged_record_is_left_out_of_a_card_and_named(spoil, named: str, left: int, caplog) -> None:
    (folder,) = _store(1, 3)
    spoil(Path("artifacts").absolute())
    rows = results(folder)
    assert len(rows) == left and sum(row.time is not None for row in rows) == 2
    (line,) = [message for message in caplog.messages if named in message]
    assert "\n" not in line


def _one(store: Path, pattern: str) -> Path:
    return sorted(store.glob(pattern))[0]


def _noted(store: Path, **changes: Any) -> None:
    """Another version's times."""
    path = _one(store, "timing/*/artifact.json")
    record = json.loads(path.read_text())
    del record["own_sha256"]
    record["notes"] = {name: v for name, v in (record["notes"] | changes).items() if v is not ...}
    path.write_text(json.dumps(record))


def test_several_seeds_are_counted(tmp_path: Path) -> None:
    from sttabt.pipeline.card import _limits

    row = _run("sparsity=dense", "evaluation.timing_rounds=0")
    assert row is not None
    settings = {"fast_dev_run": 0}
    assert "2 seeds" in " ".join(_limits("base", settings, [row, replace(row, seed=1)]))
