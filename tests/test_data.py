"""Splits that never share an image, an order that a resumed run repeats, folders in ImageNet's layout."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sttabt.cli.composition import compose_settings
from sttabt.data import load_splits
from sttabt.data.base import train_loader
from sttabt.data.source import COMMON
from sttabt.data.sources import find_source, source_names, unused_settings
from sttabt.errors import UserError
from sttabt.settings import DatasetSettings

COLOURS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
DIGITS = {"name": "digits", "source": "digits", "image_size": 28, "channels": 1, "classes": 10}


def test_digits_are_split_once_and_for_all() -> None:
    splits = load_splits(DatasetSettings(**DIGITS))
    train, validation, test = splits.train, splits.validation, splits.test
    assert sorted([*train.indices, *validation.indices, *test.indices]) == list(range(1797))
    assert len(test) == 360
    other = load_splits(DatasetSettings(**DIGITS, split_seed=5))
    assert other.test.indices == test.indices  # a seed moves the validation split, never the test split
    assert other.validation.indices != validation.indices
    item = test[0]
    assert item.inputs.shape == (1, 28, 28)
    counts = np.bincount([int(test[i].labels) for i in range(len(test))])
    assert counts.min() >= 34 and counts.max() <= 38  # stratified


def test_an_epoch_repeats_and_epochs_differ() -> None:
    splits = load_splits(DatasetSettings(**DIGITS))

    def epoch(number: int, workers: int = 0) -> torch.Tensor:
        loader = train_loader(splits.train, 64, workers, seed=3)
        loader.sampler.set_epoch(number)
        return torch.cat([batch.inputs for _, batch in zip(range(3), loader, strict=False)])

    first = epoch(0)
    assert torch.equal(epoch(0), first)
    assert torch.equal(epoch(0, workers=2), first)
    assert not torch.equal(epoch(1), first)


def test_augmentation_leaves_the_global_generator_alone() -> None:
    splits = load_splits(DatasetSettings(**DIGITS))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    splits.train[0, 0]
    assert torch.equal(torch.rand(3), expected)


def make_folder(root: Path, classes: list[str], images: int = 10) -> Path:
    for part in ("train", "val"):
        for number, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(images):
                Image.new("RGB", (40, 36), (20 * number, 10 * index, 90)).save(folder / f"{index}.jpg")
    return root


def test_a_folder_in_imagenets_layout(tmp_path: Path) -> None:
    root = make_folder(tmp_path, ["n01", "n02", "n03"])
    settings = DatasetSettings(
        name="f", source="image_folder", path=str(root), image_size=32, classes=3, validation_share=0.2, **COLOURS
    )
    splits = load_splits(settings)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (24, 6, 30)
    assert splits.class_names == ("n01", "n02", "n03")
    assert splits.train[0, 0].inputs.shape == splits.test[0].inputs.shape == (3, 32, 32)
    assert torch.equal(splits.train[2, 5].inputs, splits.train[2, 5].inputs)


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path, ["n01", "n02"])
    settings = DatasetSettings(name="f", source="image_folder", path=str(root), image_size=32, classes=7, **COLOURS)
    with pytest.raises(UserError, match=r"dataset.classes=7 but the data has 2 classes: set dataset.classes=2"):
        load_splits(settings)
    (root / "val" / "n02").rename(root / "val" / "n09")
    with pytest.raises(UserError, match="different classes"):
        load_splits(settings)


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'digits'"):
        load_splits(DatasetSettings(**{**DIGITS, "source": "digit"}))


@pytest.mark.parametrize("name", source_names())
def test_every_source_says_what_it_holds_and_reads(name: str) -> None:
    source = find_source(name)
    known = {field.name for field in fields(DatasetSettings)}
    assert source.holds in ("images", "text")
    assert set(source.reads) <= known and len(set(source.reads)) == len(source.reads)
    unused = unused_settings(DatasetSettings(name="t", source=name, path="/nowhere"))
    assert set(unused) <= known and all(unused.values())
    elsewhere = {"hub_id", "test_share"}  # where a path and a test split are given
    assert not (set(unused) - elsewhere) & {*source.reads, *COMMON}
    assert {"max_tokens": "it is a setting of text"}.items() <= unused.items() or source.holds == "text"
    assert {"augment": "it is a setting of images"}.items() <= unused.items() or source.holds == "images"


def test_settings_and_sources_are_checked_without_torch() -> None:
    code = (
        "import sys, sttabt.data; from sttabt.data.sources import find_source, source_names;"
        "held = {name: find_source(name).holds for name in source_names()};"
        "slow = {'torch', 'torchvision', 'transformers', 'datasets', 'pandas', 'sklearn'} & set(sys.modules);"
        "print(held, slow)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = {name: find_source(name).holds for name in source_names()}
    assert {"digits": "images", "glue": "text"}.items() <= expected.items()
    assert ran.stdout.strip() == f"{expected} set()"


SHAPES = """
from sttabt.data.source import IMAGES, Source

class Shapes(Source):
    holds = "images"
    reads = IMAGES

    def check(self, dataset):
        pass

    def load(self, dataset, model):
        from sttabt.data.sources import find_source
        return find_source("digits").load(dataset, model)

class Nothing:
    pass
"""


def test_an_installed_package_adds_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_shapes.py").write_text(SHAPES)
    (tmp_path / "some_shapes-1.0.dist-info").mkdir()
    (tmp_path / "some_shapes-1.0.dist-info" / "METADATA").write_text("Name: some-shapes\nVersion: 1.0\n")
    (tmp_path / "some_shapes-1.0.dist-info" / "entry_points.txt").write_text(
        "[sttabt.sources]\nshapes = some_shapes:Shapes\nno_shapes = some_shapes:Nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "shapes" in source_names()
    splits = load_splits(DatasetSettings(**{**DIGITS, "source": "shapes"}))
    assert len(splits.test) == 360
    settings = compose_settings(["name=t", "dataset=digits", "dataset.source=shapes", "dataset.name=shapes"])
    assert settings.dataset.source == "shapes"
    assert unused_settings(settings.dataset)["encoding"] == "it is for source text_file"
    with pytest.raises(UserError, match=r"dataset.source=no_shapes: some_shapes:Nothing is no subclass of .*Source"):
        find_source("no_shapes")
    with pytest.raises(UserError, match=r"dataset.source=shape is unknown: did you mean 'shapes'\?"):
        find_source("shape")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"validation_share": 0.001}, "dataset.validation_share=0.001 does not split 1437 images of 10 classes"),
        ({"channels": 3}, r"dataset.channels=3, .* set dataset.channels=1"),
    ],
)
def test_settings_that_do_not_fit_the_images_are_named(changed: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_splits(DatasetSettings(**{**DIGITS, **changed}))
