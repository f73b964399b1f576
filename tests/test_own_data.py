"""One's own data as they lie there: splits that are cut here, classes that are counted, and what is said of them."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sttabt.cli.checks.effects import without_effect
from sttabt.cli.composition import compose_settings
from sttabt.data import load_splits
from sttabt.data.base import Splits, split_classes
from sttabt.errors import UserError
from sttabt.lit.launch import found_hardware
from sttabt.pipeline.stage import Context
from sttabt.pipeline.stages import run_stages
from sttabt.settings import DatasetSettings, HardwareSettings, ModelSettings
from sttabt.store.contents import digest
from sttabt.store.job import Job
from test_text_data import WORDS, make_tokenizer, sentences, texts_of

SIZES = {"cat": 30, "dog": 20, "fox": 3}  # images a class


def _images(root: Path, sizes: dict[str, int], begin: int = 0) -> Path:
    """Class folders of images that all differ."""
    for number, (name, count) in enumerate(sizes.items()):
        (root / name).mkdir(parents=True)
        for index in range(begin, begin + count):
            Image.new("RGB", (9, 8), (90 * number, index, 50)).save(root / name / f"{index:02}.png")
    return root


def _settings(root: Path, **changed: Any) -> DatasetSettings:
    common: dict[str, Any] = {"image_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3, "augment": False}
    return DatasetSettings(name="mine", source="image_folder", path=str(root), **common | changed)


def _files(splits: Splits) -> list[list[str]]:
    """The images of train, validation and test, each by its class and name."""
    parts: Any = (splits.train, splits.validation, splits.test)
    return [["/".join(part.source.where(index).split("/")[-2:]) for index in part.indices] for part in parts]


def _classes_of(files: list[str]) -> Counter[str]:
    return Counter(file.partition("/")[0] for file in files)


@given(
    sizes=st.lists(st.integers(3, 25), min_size=1, max_size=5),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
def test_every_class_has_its_share_in_both_parts(sizes: list[int], share: float, seed: int, order: Any) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    order.shuffle(labels)
    larger, smaller = split_classes(labels, share, seed, range(len(labels)), left=2)
    assert sorted(larger + smaller) == list(range(len(labels)))
    for label, size in enumerate(sizes):
        found = sum(labels[index] == label for index in smaller)
        assert 1 <= found <= size - 2
        assert abs(found - share * size) <= 0.5 or found in (1, size - 2)


def test_a_folder_of_class_folders_is_split_by_itself(tmp_path: Path, caplog) -> None:
    root = _images(tmp_path / "mine", SIZES)
    with caplog.at_level(logging.INFO):
        splits = load_splits(_settings(root, test_share=0.2))
    train, validation, test = _files(splits)
    assert _classes_of(test) == {"cat": 6, "dog": 4, "fox": 1}
    assert _classes_of(validation) == {"cat": 2, "dog": 2, "fox": 1}
    assert _classes_of(train) == {"cat": 22, "dog": 14, "fox": 1}
    assert len({*train, *validation, *test}) == 53, "no image in two splits"
    assert splits.class_names == ("cat", "dog", "fox")
    (line,) = caplog.messages
    assert line == (
        "mine: 37 train, 5 validation, 11 test images of 3 classes, split by class here (dataset.test_share=0.2,"
        " validation_share=0.1)"
    )


def test_a_split_depends_on_its_seed_and_not_on_place_order_or_what_is_hidden(tmp_path: Path, monkeypatch) -> None:
    root = _images(tmp_path / "mine", SIZES)
    splits = load_splits(_settings(root))
    other = load_splits(_settings(root, split_seed=1))
    assert _files(splits)[2] == _files(other)[2] and _files(splits)[1] != _files(other)[1]
    copied = tmp_path / "elsewhere" / "train"
    shutil.copytree(root, copied)
    (copied / "cat" / ".DS_Store").write_bytes(b"?")
    (copied / ".hidden").mkdir()
    listed, walked = Path.iterdir, os.walk
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listed(self), reverse=True)))
    monkeypatch.setattr(os, "walk", lambda *a, **b: ((f, d[::-1], sorted(n)[::-1]) for f, d, n in walked(*a, **b)))
    again = load_splits(_settings(copied.parent))
    assert _files(again) == _files(splits)
    hashes = [digest(each.contents["all"], tmp_path / "store") for each in (splits, again)]  # type: ignore[arg-type]
    assert hashes[0] == hashes[1]
    Image.new("RGB", (9, 8), (1, 2, 3)).save(copied / "cat" / "00.png")
    changed = load_splits(_settings(copied.parent))
    assert digest(changed.contents["all"], tmp_path / "store") != hashes[0]  # type: ignore[arg-type]


def test_copies_of_an_image_stay_in_one_split(tmp_path: Path, caplog) -> None:
    root = _images(tmp_path / "mine", {"cat": 12, "dog": 12})
    for name in ("cat", "dog"):
        for path in sorted((root / name).iterdir()):
            shutil.copy(path, path.with_name(f"copy of {path.name}"))
    (root / "dog" / "link.png").symlink_to(root / "cat" / "03.png")  # another class, too
    with caplog.at_level(logging.INFO):
        parts = _files(load_splits(_settings(root, test_share=0.3)))
    assert "mine: 25 images are copies of others, and stay in one split with them" in caplog.text
    pixels = [{(root / file).read_bytes() for file in part} for part in parts]
    assert sum(map(len, pixels)) == 24 == len(set.union(*pixels)) and sum(map(len, parts)) == 49
    assert all(pixels)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val", "test"])
def test_a_split_that_is_there_is_the_test_split(name: str, tmp_path: Path, caplog) -> None:
    _images(tmp_path / "train", {"cat": 10, "dog": 10})
    _images(tmp_path / name, {"cat": 3, "dog": 3}, begin=20)
    with caplog.at_level(logging.INFO):
        parts = _files(load_splits(_settings(tmp_path)))
    assert list(map(len, parts)) == [18, 2, 6] and all(file[4] == "2" for file in parts[2])
    assert "18 train, 2 validation, 6 test images of 2 classes, validation is cut from train" in caplog.text
    assert (f"{tmp_path / name} is the test split, as there is no other" in caplog.text) == (name != "test")


def test_three_splits_that_are_there_are_taken_as_they_are(tmp_path: Path, caplog) -> None:
    for begin, name in enumerate(("train", "valid", "test")):
        _images(tmp_path / name, {"cat": 3, "dog": 2}, begin=10 * begin)
    (tmp_path / "raw").mkdir()
    splits = load_splits(_settings(tmp_path))
    assert [{file[4] for file in part} for part in _files(splits)] == [{"0"}, {"1"}, {"2"}]
    assert set(splits.contents) == {"train", "validation", "test"}
    assert f"{tmp_path}: folders beside its splits are left out: raw" in caplog.text
    _images(tmp_path / "val", {"cat": 3, "dog": 2})
    with pytest.raises(UserError, match="has val/ and valid/: leave one validation folder there"):
        load_splits(_settings(tmp_path))


@pytest.mark.parametrize("beside", ["val", ""])
def test_a_test_folder_without_labels_tests_nothing(beside: str, tmp_path: Path, caplog) -> None:
    _images(tmp_path / "train", {"cat": 20, "dog": 20})
    (tmp_path / "test").mkdir()
    Image.new("RGB", (9, 8)).save(tmp_path / "test" / "0.png")
    if beside:
        _images(tmp_path / beside, {"cat": 3, "dog": 3}, begin=20)
    splits = load_splits(_settings(tmp_path))
    assert len(splits.test) == (6 if beside else 4)  # type: ignore[arg-type]
    assert f"{tmp_path / 'test'} holds no class folders, so that nothing can be tested on it" in caplog.text


FOLDERS: dict[str, tuple[dict[str, int], str]] = {
    "few images": (
        {"cat": 9, "fox": 2, "owl": 1},
        r"mine: too few different images of fox \(2\), owl \(1\): train, va",
    ),
    "many such classes": (
        dict.fromkeys("abcde", 2),
        r"a \(2\), b \(2\), c \(2\) and 2 classes more: train, validation",
    ),
    "one class": ({"cat": 9}, r"mine has one class alone, cat: give two at least"),
    "no class": ({}, r"is empty: it must hold one folder of images a class"),
    "an empty class": ({"cat": 9, "dog": 0}, r"has class folders without images, dog: fill them or take them out"),
    "one level too deep": (
        {"all/cat": 9, "all/dog": 9},
        r"1 class folders, and images in folders inside them, all/cat",
    ),
    "no train": ({"test/cat": 3, "test/dog": 3}, r"has no train/ beside test/: add it, or give test/? another name if"),
    "another class in val": ({"train/cat": 9, "train/dog": 9, "val/cat": 9}, r"different classes, val/ lacks dog"),
    "a given number": ({"cat": 9, "dog": 9}, r"dataset.classes=7 but the data has 2 classes: set .*, or leave it out"),
    "a metric of two": ({"cat": 9, "dog": 9, "fox": 9}, r"dataset.metric=f1 is for two classes, not dataset.classes=3"),
    "a metric of many": ({"cat": 9, "dog": 9}, r"dataset.metric=top5 says nothing of dataset.classes=2"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_does_not_fit_costs_one_line(case: str, tmp_path: Path) -> None:
    sizes, message = FOLDERS[case]
    root = _images(tmp_path / "mine", sizes)
    root.mkdir(exist_ok=True)
    changed = {"a given number": {"classes": 7}, "a metric of two": {"metric": "f1"}}
    changed["a metric of many"] = {"metric": "top5"}  # type: ignore[dict-item]
    overrides = ["name=t", "model=test_vit", "model.patch_size=8", "dataset=image_folder", f"dataset.path={root}"]
    sized = ["dataset.image_size=8", *(f"dataset.{key}={value}" for key, value in changed.get(case, {}).items())]
    with pytest.raises(UserError, match=message) as error:
        load_splits(compose_settings([*overrides, *sized]).dataset)
    assert "\n" not in str(error.value)


def test_folders_inside_the_classes_count_to_them(tmp_path: Path) -> None:
    root = _images(tmp_path / "mine", {"cat": 9, "dog/young": 5, "dog/old": 4})
    splits = load_splits(_settings(root))
    assert splits.class_names == ("cat", "dog") and sum(map(len, _files(splits))) == 18


def test_settings_that_splits_on_the_disk_decide_are_named(tmp_path: Path) -> None:
    given = ["name=t", "model=test_vit", "model.patch_size=8", "dataset=image_folder", "dataset.image_size=8"]
    given += [f"dataset.path={tmp_path}", "dataset.test_share=0.3", "dataset.validation_share=0.3"]
    _images(tmp_path / "train", {"cat": 3, "dog": 3})
    assert list(without_effect(compose_settings(given), given)) == []
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.png").write_bytes(b"")
    assert list(without_effect(compose_settings(given), given)) == [], "without labels it is no test split"
    shutil.rmtree(tmp_path / "test")
    for name, settings in (("test", ["test_share"]), ("val", ["test_share", "validation_share"])):
        _images(tmp_path / name, {"cat": 3, "dog": 3})
        lines = without_effect(compose_settings(given), given)
        assert [line.partition("=")[0] for line in lines] == [f"dataset.{setting}" for setting in settings]


def test_a_job_has_the_number_that_was_counted(tmp_path: Path) -> None:
    root = _images(tmp_path / "mine", SIZES)
    overrides = ["name=t", "model=test_vit", "model.patch_size=8", "dataset=image_folder", f"dataset.path={root}"]
    job: Any = SimpleNamespace(command="")
    counted, given = (
        Context(compose_settings([*overrides, "dataset.image_size=8", *more]), job, job)
        for more in ([], ["dataset.classes=3"])
    )
    assert counted.settings == given.settings and counted.task == given.task and counted.task.classes == 3
    assert counted.contents == given.contents


def test_the_base_alone_is_trained_on_ones_own_folder_on_the_hardware_that_is_there(tmp_path: Path, caplog) -> None:
    root = _images(tmp_path / "mine", SIZES)
    given = ["name=mine", "stages=[base]", "dataset=image_folder", f"dataset.path={root}", "hardware=auto"]
    given += ["model=test_vit", "model.patch_size=4", "dataset.image_size=8", "model.training.epochs=1", "logger=none"]
    given += ["hardware.workers=0", "dataset.augment=false", f"paths.artifacts={tmp_path / 'artifacts'}"]
    there = "gpu" if torch.cuda.is_available() else "cpu"
    for more in ([], ["dataset.classes=3", f"hardware={there}", "hardware.batch_size=64"]):
        with caplog.at_level(logging.INFO):
            run_stages(compose_settings([*given, *more]), Job("", "mine", False, "0"))
    assert len(list((tmp_path / "artifacts" / "base").glob("[!.]*/artifact.json"))) == 1, "both are one"
    assert not (tmp_path / "artifacts" / "approx").exists()
    assert caplog.text.count(f"hardware.accelerator=auto is {there}") == 1


@pytest.mark.parametrize("there", [True, False])
def test_the_accelerator_is_that_of_the_machine(there: bool, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert found_hardware(HardwareSettings(accelerator="auto")).accelerator == ("gpu" if there else "cpu")
    assert found_hardware(HardwareSettings(accelerator="cpu")).accelerator == "cpu"


def test_a_table_without_a_test_split_is_cut(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    shades = [place % 20 for place in range(41)]  # all but one of them are there twice
    images = [Image.new("RGB", (9, 8), (shade, 0, 0)) for shade in shades]
    table = datasets.Dataset.from_dict({"image": images, "label": [shade % 2 for shade in shades]})
    datasets.DatasetDict({"train": table.cast_column("image", datasets.Image())}).save_to_disk(tmp_path / "mine")
    given = _settings(tmp_path / "mine", image_column="image", label_column="label", train_split="train")
    given.source = "image_table"
    with pytest.raises(
        UserError, match=r"no split test: choose one of: train \(or dataset.test_split= for a share of train\)"
    ):
        load_splits(given)
    with caplog.at_level(logging.INFO):
        splits: Any = load_splits(replace(given, test_split="", test_share=0.2))
    parts = [[shades[index] for index in part.indices] for part in (splits.train, splits.validation, splits.test)]
    assert list(map(len, map(set, parts))) == [14, 2, 4] and len(set().union(*parts)) == 20
    assert "mine: 29 train, 4 validation, 8 test images of 2 classes" in caplog.text


# --- Texts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    return ModelSettings(huggingface=str(make_tokenizer(tmp_path_factory.mktemp("model"), WORDS)))


def _texts(path: Path, labels: list[Any], seed: int = 0) -> Path:
    frame = pd.DataFrame({"sentence": sentences(60, seed), "label": [labels[i % len(labels)] for i in range(60)]})
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False)
    return path


def _text_settings(path: Path, **changed: Any) -> DatasetSettings:
    common: dict[str, Any] = {"columns": ["sentence"], "label_column": "label", "max_tokens": 32}
    return DatasetSettings(name="t", source="text_file", path=str(path), **common | changed)


LABELS: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "numbers from 0": ([0, 1, 2], ("0", "1", "2")),
    "numbers from 1": ([1, 2, 10], ("1", "2", "10")),
    "signs": ([-1, 1], ("-1", "1")),
    "floats": ([0.0, 1.0], ("0", "1")),
    "words": (["yes", "no", " no "], ("no", "yes")),
    "flags": ([True, False], ("False", "True")),
}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("kind", LABELS)
def test_classes_of_texts_are_counted(kind: str, suffix: str, model: ModelSettings, tmp_path: Path) -> None:
    labels, names = LABELS[kind]
    splits: Any = load_splits(_text_settings(_texts(tmp_path / f"a{suffix}", labels)), model)
    assert splits.class_names == names
    called = [str(label).strip() for label in labels]
    wanted = Counter(called[index % len(labels)].removesuffix(".0") for index in range(60))
    found: Counter[str] = Counter()
    for part in (splits.train, splits.validation, splits.test):
        found.update(names[label] for label in part.labels.tolist())
    assert found == wanted


def test_texts_with_the_same_numbers_of_other_classes_are_other_data(model: ModelSettings, tmp_path: Path) -> None:
    kinds = {"a": [0, 1], "b": ["no", "yes"], "c": ["bad", "good"]}
    found = {name: load_splits(_text_settings(_texts(tmp_path / f"{name}.csv", kinds[name])), model) for name in kinds}
    assert len({str(sorted(splits.contents.items())) for splits in found.values()}) == 3
    given = load_splits(_text_settings(tmp_path / "a.csv", classes=2), model)
    assert given.contents == found["a"].contents and given.class_names == found["a"].class_names


@pytest.mark.parametrize("name", ["val", "valid", "validation", ""])
def test_a_folder_with_train_alone_is_split(name: str, model: ModelSettings, tmp_path: Path, caplog) -> None:
    _texts(tmp_path / "train.csv", ["a", "b"])
    if name:
        _texts(tmp_path / f"{name}.csv", ["b", "a"], seed=1)
    with caplog.at_level(logging.INFO):
        splits: Any = load_splits(_text_settings(tmp_path), model)
    parts = [texts_of(part) for part in (splits.train, splits.validation, splits.test)]
    assert list(map(len, parts)) == ([54, 60, 6] if name else [48, 6, 6])
    assert not set(parts[0]) & set(parts[2])
    sizes = ", ".join(f"{len(part)} {name}" for part, name in zip(parts, ("train", "validation", "test"), strict=True))
    assert f"t: {sizes} texts of 2 classes, test is split off here (dataset.test_share=0.1)" in caplog.text


TEXTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "one class": ("sentence,label\nx,a\ny,a\n", {}, r"column 'label' has one class alone, a: give texts of two"),
    "no label": ("sentence,label\nx,\ny,\n", {}, r"column 'label' has one class alone, none"),
    "a label that is missing": ("sentence,label\nx,a\ny,b\nz,\n", {}, r"line 4, column 'label': '' is not a class"),
    "scores": (
        "sentence,label\nx,1\ny,0.5\n",
        {},
        r"holds 0.5, which is a score and no class: set dataset.task=regres",
    ),
    "a word": ("sentence,label\nx,0\ny,1\nz,yes\n", {}, r"line 4, column 'label': 'yes' stands among numbers: correct"),
    "no class": (
        "sentence,label\n" + "".join(f"x,n{index}\n" for index in range(40)),
        {},
        r"has 40 different labels in 40 rows, so that they are hardly classes: name another column",
    ),
    "no header": (
        "w1 w2,a\nw3 w4,b\n",
        {},
        r"has no column 'sentence': choose one of: a, w1 w2 \(dataset.header=false",
    ),
    "a name": ("sentence,lable\nx,a\ny,b\n", {}, r"has no column 'label': did you mean 'lable'\?"),
    "a given number": ("sentence,label\nx,0\ny,1\nz,0\n", {"classes": 3}, r"classes=3 but .* set dataset.classes=2"),
    "no row": ("sentence,label\n", {}, r"has no rows: give a file"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_file_that_does_not_fit_costs_one_line(case: str, model: ModelSettings, tmp_path: Path) -> None:
    content, changed, message = TEXTS[case]
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        load_splits(_text_settings(tmp_path / "a.csv", **changed), model)
    assert "\n" not in str(error.value)


def test_a_label_that_training_does_not_have_is_named(model: ModelSettings, tmp_path: Path) -> None:
    _texts(tmp_path / "train.csv", ["a", "b"])
    _texts(tmp_path / "test.csv", ["a", "c"])
    with pytest.raises(UserError, match=r"test.csv, line 3, column 'label': 'c' is not a class: choose one of: a, b"):
        load_splits(_text_settings(tmp_path), model)


def test_scores_and_signs_say_how_many_classes_there_are(model: ModelSettings, tmp_path: Path) -> None:
    path = _texts(tmp_path / "a.csv", list(np.linspace(-1, 1, 60)))
    scores = load_splits(_text_settings(path, task="regression", metric="pearson"), model)
    assert scores.class_names == ()
    assert load_splits(_text_settings(path, positive_above=0.0), model).class_names == ("0", "1")
