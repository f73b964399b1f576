"""Images from every source, in its own format: splits, preparation, and what is said of files that do not fit."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import struct
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from images import IDX_FILES, make_folder, make_idx, write_idx
from sttabt.cli.checks.effects import without_effect
from sttabt.cli.composition import compose_settings
from sttabt.data import load_splits
from sttabt.data.base import Batch, Splits, evaluation_loader, train_loader
from sttabt.data.images import Images
from sttabt.data.labelled import decode, read_image
from sttabt.errors import UserError
from sttabt.pretrained.hub import use_hub
from sttabt.run import main
from sttabt.settings import Settings
from sttabt.store.contents import digest

SMALL = ["name=test", "model=test_vit", "model.patch_size=7", "logger=none", "hardware.batch_size=8"]
COLOURS = [
    "dataset.mean=[0.5,0.4,0.3]",
    "dataset.std=[0.2,0.3,0.4]",
    "dataset.image_size=28",
    "dataset.classes=3",
]
TRAINED = ["sparsity=dense", "model.training.epochs=1", "stages=[base]"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each test has its own folder, and gets back the log handlers that Hydra replaces."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def _settings(*overrides: str) -> Settings:
    return compose_settings([*SMALL, *overrides])


def _splits(*overrides: str) -> Splits:
    settings = _settings(*overrides)
    return load_splits(settings.dataset, settings.model)


def _mistake(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that main() writes on stderr, once it has ended with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["sttabt", *SMALL, *arguments])
    capsys.readouterr()  # what the test itself wrote, with progress bars
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "Traceback" not in line, line
    return line


def _labels(split: Any) -> list[int]:
    return [int(split.source.labels[index]) for index in split.indices]


# --- Fashion-MNIST's files


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_files_are_read_as_they_are(compressed: bool) -> None:
    make_idx(Path("files"), compressed=compressed)
    splits = _splits("dataset=fashion_mnist", "dataset.path=files", "dataset.validation_share=0.2")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (48, 12, 30)
    train: Any = splits.train
    assert sorted([*train.indices, *splits.validation.indices]) == list(range(60))  # type: ignore[attr-defined]
    assert np.bincount(_labels(splits.validation)).max() == 2, "stratified"
    assert splits.class_names[:2] == ("t-shirt", "trouser")
    raw = (Path("files") / IDX_FILES[2]).with_suffix(".gz" if compressed else "").read_bytes()
    pixels = np.frombuffer(gzip.decompress(raw) if compressed else raw, np.uint8, offset=16).reshape(-1, 28, 28)
    for index in (0, 7, 29):
        item = splits.test[index]
        expected = (torch.from_numpy(pixels[index].copy()) / 255 - 0.2860) / 0.3530
        assert torch.allclose(item.inputs[0], expected, atol=1e-6) and int(item.labels) == index % 10


def test_grey_images_become_coloured_and_large_for_a_model_of_imagenet() -> None:
    make_idx(Path("files"))
    files = ["dataset=fashion_mnist", "dataset.path=files", "dataset.validation_share=0.2"]
    splits = _splits(*files, "dataset.channels=3", "dataset.image_size=56", *COLOURS[:2])
    image = splits.test[3].inputs
    assert image.shape == (3, 56, 56)
    red, green = (image[channel] * splits.std[channel] + splits.mean[channel] for channel in (0, 1))
    assert torch.allclose(red, green, atol=1e-6)


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace_by_pipe() -> None:
    Path("files", f"{IDX_FILES[0]}.gz").unlink()
    os.mkfifo(Path("files", f"{IDX_FILES[0]}.gz"))


def _flip() -> None:
    path = Path("files", f"{IDX_FILES[0]}.gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _rewrite(images: np.ndarray) -> None:
    write_idx(Path("files", IDX_FILES[2]), images)
    write_idx(Path("files", IDX_FILES[3]), np.zeros(len(images), np.uint8))


IDX_DAMAGES: dict[str, tuple[Any, str]] = {
    "missing": (
        lambda: Path("files", f"{IDX_FILES[1]}.gz").unlink(),
        "has no train-labels-idx1-ubyte(.gz): for Fashion",
    ),
    "truncated gz": (lambda: _halve(Path("files", f"{IDX_FILES[0]}.gz")), "train-images-idx3-ubyte.gz is damaged"),
    "no gz": (lambda: Path("files", f"{IDX_FILES[0]}.gz").write_bytes(b"hello"), "is damaged (Not a gzipped file"),
    "too short": (
        lambda: Path("files", f"{IDX_FILES[2]}.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + bytes(11))),
        "t10k-images-idx3-ubyte.gz is no IDX file of bytes in 3 dimensions",
    ),
    "bytes missing": (
        lambda: Path("files", f"{IDX_FILES[3]}.gz").write_bytes(
            gzip.compress(bytes([0, 0, 8, 1]) + np.array([30], ">u4").tobytes() + bytes(20))
        ),
        "t10k-labels-idx1-ubyte.gz has 28 of 38 bytes",
    ),
    "labels of others": (
        lambda: write_idx(Path("files", IDX_FILES[1]), np.zeros(59, np.uint8)),
        "has 60 images, but ",
    ),
    "a pipe": (_replace_by_pipe, "train-images-idx3-ubyte.gz is no file, but a pipe: for Fashion-MNIST"),
    "a flipped byte": (_flip, "train-images-idx3-ubyte.gz is damaged ("),
    "no image": (lambda: _rewrite(np.zeros((0, 28, 28), np.uint8)), "its test split holds no image: give one that"),
    "no pixel": (lambda: _rewrite(np.zeros((9, 0, 28), np.uint8)), "has images of (0, 28) pixels: fetch it again"),
    "endless": (
        lambda: Path("files", f"{IDX_FILES[0]}.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12)),
        "train-images-idx3-ubyte.gz has 16 of 79228162458924105385300197391 bytes",
    ),
    "images where labels should be": (
        lambda: shutil.copy(Path("files", f"{IDX_FILES[0]}.gz"), Path("files", f"{IDX_FILES[1]}.gz")),
        "train-labels-idx1-ubyte.gz is no IDX file of bytes in 1 dimensions",
    ),
}


@pytest.mark.parametrize("damage", IDX_DAMAGES)
def test_idx_files_that_do_not_fit_are_named(damage: str) -> None:
    make_idx(Path("files"))
    act, message = IDX_DAMAGES[damage]
    act()
    with pytest.raises(UserError) as error:
        _splits("dataset=fashion_mnist", "dataset.path=files", "dataset.validation_share=0.2")
    assert message in str(error.value) and "\n" not in str(error.value)


# --- ImageNet as a folder


def _folder_settings(*overrides: str) -> list[str]:
    return ["dataset=image_folder", "dataset.path=files", *COLOURS, "dataset.validation_share=0.2", *overrides]


def test_an_image_is_cropped_as_the_model_says_and_normalised() -> None:
    root = make_folder(Path("files"), ["a", "b", "c"], images=5)
    ramp = np.arange(200, dtype=np.uint8)
    Image.fromarray(np.stack([np.tile(ramp, (200, 1))] * 3, -1)).save(root / "val" / "a" / "0.png")
    (root / "val" / "a" / "0.jpg").unlink()
    values = {}
    for crop in (0.5, 1.0):
        splits = _splits(*_folder_settings(f"model.crop={crop}"))
        image = splits.test[0].inputs
        assert image.shape == (3, 28, 28)
        plain = image * torch.tensor([0.2, 0.3, 0.4])[:, None, None] + torch.tensor([0.5, 0.4, 0.3])[:, None, None]
        assert torch.allclose(plain[0], plain[2], atol=1e-5), "the mean and std of each channel"
        values[crop] = (plain[0, 14, [0, -1]] * 255).tolist()
    assert values[1.0] == pytest.approx([3, 196], abs=3), "the whole image"
    assert values[0.5] == pytest.approx([51, 148], abs=3), "the inner half"


def test_the_models_normalisation_comes_before_the_data_sets() -> None:
    make_folder(Path("files"), ["a", "b", "c"])
    splits = _splits(*_folder_settings("model.mean=[0.1,0.1,0.1]", "model.std=[0.5,0.5,0.5]"))
    assert (splits.mean, splits.std) == ((0.1,) * 3, (0.5,) * 3)


def _drop_classes() -> None:
    for name in ("b", "c"):
        shutil.rmtree(Path("files", "val", name))


def _flatten() -> None:
    for place, image in enumerate(Path("files", "val").rglob("*.jpg")):
        image.rename(Path("files", "val", f"ILSVRC2012_val_{place:08}.JPEG"))
    for name in "abc":
        Path("files", "val", name).rmdir()


def _deepen(folder: Path) -> None:
    folder.rename("all")
    folder.mkdir()
    Path("all").rename(folder / "all")


FOLDER_DAMAGES: dict[str, tuple[Any, str]] = {
    "classes missing in val": (_drop_classes, "train/ and val/ have different classes, val/ lacks b, c: give both"),
    "class missing in train": (lambda: shutil.rmtree(Path("files", "train", "a")), "train/ lacks a: give both"),
    "val as it comes": (_flatten, "val holds 30 images but no class folders: move each into a folder of its class"),
    "empty class": (
        lambda: [path.unlink() for path in Path("files", "train", "b").iterdir()],
        "train has class folders without images, b: fill them or take them out",
    ),
    "a class of what Pillow does not read": (
        lambda: [path.rename(path.with_suffix(".heic")) for path in Path("files", "train", "b").iterdir()],
        "without images, b: fill them or take them out; 10 files are left out, which Pillow does not read (10 .heic)",
    ),
    "no folders": (
        lambda: (
            [path.rename(Path(f"{path.name}_elsewhere")) for path in Path("files", "train").iterdir()]
            and Path("files", "train", "list.txt").write_text("a b c")
        ),
        "train holds no class folders: put the images of each class into one of its own",
    ),
    "hidden files alone": (
        lambda: [path.rename(path.with_name(f".{path.name}")) for path in Path("files", "val").iterdir()],
        "val/ is empty: it must hold one folder of images a class",
    ),
    "one level too deep": (
        lambda: [_deepen(Path("files", part)) for part in ("train", "val")],
        "train has 1 class folders, and images in folders inside them, all/a, all/b, all/c: move the folder of each",
    ),
}


@pytest.mark.parametrize("damage", FOLDER_DAMAGES)
def test_folders_that_do_not_fit_are_one_line(damage: str, monkeypatch, capsys) -> None:
    make_folder(Path("files"), ["a", "b", "c"])
    act, message = FOLDER_DAMAGES[damage]
    act()
    assert message in _mistake([*_folder_settings(), *TRAINED], monkeypatch, capsys)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("dataset=image_folder dataset.path=birds", "birds"),
        ("dataset=image_folder dataset.path=birds.v2/", "birds.v2"),
        ("dataset=image_folder dataset.path=birds dataset.name=mine", "mine"),
        ("dataset=imagenet dataset.path=birds", "imagenet"),
        ("dataset=image_folder dataset.path=imagenet", "own_imagenet"),
        ("dataset=image_table dataset.path=birds", "birds"),
        ("dataset=image_table dataset.hub_id=someone/flowers", "flowers"),
        ("dataset=imagenet_hub", "imagenet"),
        ("dataset=image_table dataset.hub_id=ILSVRC/imagenet-1k", "own_imagenet-1k"),
    ],
)
def test_results_of_ones_own_images_have_the_folders_name(overrides: str, name: str) -> None:
    for folder in ("birds", "birds.v2", "imagenet"):
        make_folder(Path(folder), ["a", "b", "c"], images=1)
    settings = _settings(*overrides.split(), "dataset.image_size=28", *COLOURS[:2])
    assert settings.dataset.name == name


def test_a_class_count_that_is_not_the_folders_is_one_line(monkeypatch, capsys) -> None:
    make_folder(Path("files"), ["a", "b", "c"])
    line = _mistake([*_folder_settings("dataset.classes=1000"), *TRAINED], monkeypatch, capsys)
    assert "dataset.classes=1000 but the data has 3 classes: set dataset.classes=3" in line


def test_hidden_folders_and_files_are_skipped() -> None:
    root = make_folder(Path("files"), ["a", "b", "c"])
    for part in ("train", "val"):
        for hidden in (".ipynb_checkpoints", "a/.ipynb_checkpoints", "__MACOSX"):
            (root / part / hidden).mkdir()
            Image.new("RGB", (4, 4)).save(root / part / hidden / "0-checkpoint.jpg")
        shutil.copy(root / part / "a" / "0.jpg", root / part / "a" / "._0.jpg")
    splits = _splits(*_folder_settings())
    assert splits.class_names == ("a", "b", "c")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (24, 6, 30)


def test_a_class_may_have_folders_inside(caplog) -> None:
    root = make_folder(Path("files"), ["a", "b", "c"])
    (root / "train" / "a" / "more").mkdir()
    (root / "train" / "a" / "0.jpg").rename(root / "train" / "a" / "more" / "0.jpg")
    with caplog.at_level(logging.INFO):
        splits = _splits(*_folder_settings())
    assert len(splits.train) + len(splits.validation) == 30 and splits.class_names == ("a", "b", "c")
    assert "files/train: images of a/more count to the class folder around them" in caplog.text


def test_links_are_followed_but_not_in_circles(caplog) -> None:
    root = make_folder(Path("files"), ["a", "b", "c"])
    (root / "val" / "a").rename("elsewhere")
    (root / "val" / "a").symlink_to(Path("elsewhere").absolute())
    (root / "val" / "b" / "self").symlink_to(".")
    (root / "val" / "b" / "all").symlink_to("..")
    (root / "val" / "c" / "0.jpg").rename("0.jpg")
    (root / "val" / "c" / "0.jpg").symlink_to(Path("0.jpg").absolute())
    splits = _splits(*_folder_settings())
    assert len(splits.test) == 30 and sum(len(batch.labels) for batch in evaluation_loader(splits.test, 8)) == 30
    assert sum("val/b/self: a link back to a folder around it is left out" in line for line in caplog.messages) == 1
    assert sum("val/b/all: a link back to a folder around it is left out" in line for line in caplog.messages) == 1


@pytest.mark.parametrize("name", ["", "a"])
def test_a_folder_cannot_be_trained_and_tested_on(name: str) -> None:
    root = make_folder(Path("files"), ["a", "b", "c"])
    shutil.rmtree(root / "val" / name)
    (root / "val" / name).symlink_to((root / "train" / name).absolute())
    with pytest.raises(UserError, match="are one folder: images that a model was trained on cannot test it"):
        _splits(*_folder_settings())


def test_what_systems_leave_is_skipped_and_what_lies_beside_is_named(caplog) -> None:
    root = make_folder(Path("files"), ["a", "b", "c"])
    for name in ("@eaDir", "lost+found", "__MACOSX", "$RECYCLE.BIN"):
        (root / "train" / name).mkdir()
        shutil.copy(root / "train" / "a" / "0.jpg", root / "train" / name)
    for name in ("Thumbs.db", "a/Thumbs.db", "a/desktop.ini", "a/.DS_Store"):
        (root / "train" / name).write_bytes(b"?")
    assert len(_splits(*_folder_settings()).test) == 30 and not caplog.messages
    shutil.copy(root / "train" / "a" / "0.jpg", root / "train" / "loose.jpg")
    _splits(*_folder_settings())
    (line,) = caplog.messages
    assert line.endswith("files/train: 1 file is left out, beside the class folders, the first is loose.jpg")


def test_a_name_of_several_lines_is_shown_in_one() -> None:
    root = make_folder(Path("files"), ["a", "b", "c"])
    (root / "val" / "a" / "x\ny.jpg").write_bytes(b"")
    (root / "val" / "b" / os.fsdecode(b"\xff.jpg")).write_bytes((root / "val" / "b" / "0.jpg").read_bytes())
    with pytest.raises(UserError) as error:
        list(evaluation_loader(_splits(*_folder_settings()).test, 8))
    assert r"val/a/x\ny.jpg cannot be read as an image (it is of no format that Pillow reads)" in str(error.value)
    (root / "val" / "a" / "x\ny.jpg").unlink()
    assert sum(len(batch.labels) for batch in evaluation_loader(_splits(*_folder_settings()).test, 8)) == 31
    for name in ("a\nb", os.fsdecode(b"\xff")):
        for part in ("train", "val"):
            (root / part / "a").rename(root / part / name)
        with pytest.raises(UserError, match=r"has a class folder that cannot be printed, (a\\nb|\\udcff): rename it"):
            _splits(*_folder_settings())
        for part in ("train", "val"):
            (root / part / name).rename(root / part / "a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
def test_a_folder_that_may_not_be_read_is_named_not_left_out(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "files", ["a", "b", "c"])
    (root / "train" / "a" / "inside").mkdir()
    (root / "train" / "a" / "inside").chmod(0)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.is_relative_to(tempfile.gettempdir()) and parent != Path(tempfile.gettempdir()):
            parent.chmod(0o755)
    settings = _settings(*_folder_settings()).dataset
    load_splits(settings)
    os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"train/a/inside cannot be read \(Permission denied\): allow it, or take"):
            load_splits(settings)
    finally:
        os.seteuid(0)


READ = ("jpg", "JPEG", "jfif", "png", "apng", "gif", "bmp", "webp", "avif", "tif", "tiff", "ppm", "tga", "ico", "jp2")


def test_every_format_that_pillow_reads_is_read_and_others_are_counted(caplog) -> None:
    pixels = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    for part in ("train", "val"):
        for name in "abc":
            folder = Path("files", part, name)
            folder.mkdir(parents=True)
            for suffix in READ:
                Image.fromarray(pixels).save(folder / f"image.{suffix}")
        for other in ("a.heic", "b.heic", "list.txt", "none"):
            Path("files", part, "a", other).write_bytes(b"?")
    splits = _splits(*_folder_settings())
    assert len(splits.test) == 3 * len(READ)
    assert len(splits.train) + len(splits.validation) == 3 * len(READ)
    for index in range(len(READ)):
        middle = (splits.test[index].inputs[:, 14, 14] * torch.tensor(splits.std) + torch.tensor(splits.mean)) * 255
        assert middle.tolist() == pytest.approx([200, 100, 50], abs=6), splits.test.source.where(index)  # type: ignore
    (line,) = [line for line in caplog.messages if line.startswith(str(Path("files/val").absolute()))]
    assert "4 files are left out, which Pillow does not read (2 .heic, 1 .txt, 1 without suffix), the first" in line


# --- how an image is decoded


def _ramp(bits: int) -> np.ndarray:
    """(2, 256): the shades of 8 bits, in 8 or 16 bits, with the highest at the right."""
    return np.tile(np.arange(256) * (257 if bits == 16 else 1), (2, 1)).astype(f"uint{bits}")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("bits", [8, 16])
def test_16_bits_are_scaled_and_8_stay(bits: int, suffix: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / f"grey.{suffix}"
    if (bits, suffix) == (16, "pgm"):
        path.write_bytes(b"P5 256 2 65535\n" + _ramp(16).astype(">u2").tobytes())
    else:
        Image.fromarray(_ramp(bits)).save(path)
    with Image.open(path) as image:
        read = np.asarray(decode(image, channels))
    assert read.dtype == np.uint8 and read.shape == ((2, 256) if channels == 1 else (2, 256, 3))
    np.testing.assert_array_equal(read if channels == 1 else read[..., 2], _ramp(8))


def test_16_bits_are_rounded(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128, 129, 386, 65406, 65407, 65535]], np.uint16)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(decode(image, 1)).tolist() == [[0, 0, 1, 2, 254, 255, 255]]


@pytest.mark.parametrize(("kind", "reason"), [("float32", "floating-point numbers"), ("int32", "integers of 32 bits")])
def test_pixels_without_a_known_white_are_refused_by_name(kind: str, reason: str) -> None:
    root = make_folder(Path("files"), ["a", "b", "c"])
    Image.fromarray(np.full((36, 40), 1, kind)).save(root / "val" / "a" / "0.tif")
    (root / "val" / "a" / "0.jpg").unlink()
    with pytest.raises(UserError, match=rf"val/a/0.tif cannot be read as an image \(its pixels are {reason}"):
        list(evaluation_loader(_splits(*_folder_settings()).test, 8))


def _transparent(mode: str) -> Image.Image:
    """Four pixels: red, whose alpha is 0, 51, 204 and 255; of a grey image 100; of a palette 0, 255, 255, 255."""
    alpha = Image.fromarray(np.array([[0, 51, 204, 255]], np.uint8))
    if mode == "LA":
        return Image.merge("LA", (Image.new("L", (4, 1), 100), alpha))
    image = Image.merge("RGBA", (*Image.new("RGB", (4, 1), (255, 0, 0)).split(), alpha))
    if mode == "RGBA":
        return image
    palette = Image.new("P", (4, 1), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.putpixel((0, 0), 0)
    palette.info["transparency"] = 0
    return palette


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("RGBA", "png", [[255, 255, 255], [255, 204, 204], [255, 51, 51], [255, 0, 0]]),
        ("RGBA", "webp", [[255, 255, 255], [255, 204, 204], [255, 51, 51], [255, 0, 0]]),
        ("LA", "png", [[255] * 3, [224] * 3, [131] * 3, [100] * 3]),
        ("P", "png", [[255, 255, 255], [255, 0, 0], [255, 0, 0], [255, 0, 0]]),
        ("P", "gif", [[255, 255, 255], [255, 0, 0], [255, 0, 0], [255, 0, 0]]),
    ],
)
def test_transparent_images_are_blended_on_white(mode: str, suffix: str, expected: list, tmp_path: Path) -> None:
    _transparent(mode).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(tmp_path / f"a.{suffix}") as image:
        np.testing.assert_allclose(np.asarray(decode(image, 3))[0], expected, atol=1)
        grey = np.asarray(decode(image, 1))[0]
    assert grey[0] == 255 and grey[3] == {"LA": 100}.get(mode, 76)


def test_a_shade_that_a_16_bit_image_declares_transparent_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 514, 65535]], np.uint16)).save(tmp_path / "a.png", transparency=514)
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(decode(image, 1)).tolist() == [[0, 255, 255]]


@pytest.mark.parametrize("place", ["val", "train"])
@pytest.mark.parametrize("kind", ["pipe", "device", "link to nothing", "folder"])
def test_what_is_no_file_is_not_waited_for(kind: str, place: str) -> None:
    root = make_folder(Path("files"), ["a", "b", "c"], images=5)
    path = root / place / "a" / "x.png"
    act = {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "link to nothing": lambda: path.symlink_to("/nowhere"),
        "folder": path.mkdir,
    }
    act[kind]()
    splits = _splits(*_folder_settings("dataset.broken_share=0.2"))
    whole = {"train": 15, "val": 15}
    if kind != "folder":
        whole[place] += 1
        with pytest.raises(UserError, match=rf"a/x.png cannot be read as an image \(it is no file, but a {kind}\)"):
            images: Any = splits.train if place == "train" else splits.test
            [images.source.where(index) for index in range(16)]
            [Images(images.source, range(16), lambda image: torch.zeros(1))[index] for index in range(16)]
    assert len(splits.train) + len(splits.validation) == whole["train"] and len(splits.test) == whole["val"]
    assert sum(len(batch.labels) for batch in train_loader(splits.train, 4, 0, seed=0)) == len(splits.train) // 4 * 4


def test_an_image_that_would_fill_the_memory_once_scaled_is_refused(tmp_path: Path) -> None:
    for size, whole in (((1000, 1), True), ((1, 1000), True), ((1001, 1), False), ((1, 500_000), False)):
        Image.new("1", size).save(tmp_path / "a.png")
        if whole:
            assert read_image(tmp_path / "a.png", 3).size == size
        else:
            with pytest.raises(OSError, match=rf"it is {size[0]} pixels wide and {size[1]} high"):
                read_image(tmp_path / "a.png", 3)


def test_a_small_file_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("1", (100, 100)).save(tmp_path / "a.png")
    with pytest.raises(OSError, match="exceeds limit of 2000 pixels"):
        read_image(tmp_path / "a.png", 3)


def test_no_suffix_makes_pillow_run_a_program(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")  # which Pillow would give to Ghostscript
    with pytest.raises(OSError, match="it is of no format that Pillow reads"):
        read_image(tmp_path / "a.jpg", 3)


def test_a_decoder_may_raise_what_it_likes(tmp_path: Path) -> None:
    Image.new("RGB", (40, 36), (9, 99, 9)).save(tmp_path / "a.avif")
    content = (tmp_path / "a.avif").read_bytes()
    place = content.index(b"mdat") + 12
    (tmp_path / "a.avif").write_bytes(content[:place] + bytes(len(content) - place))  # a RuntimeError of Pillow's
    with pytest.raises(OSError, match=r"Failed to decode"):
        read_image(tmp_path / "a.avif", 3)


MODES = {  # how the pixel (200, 100, 50) reads, of each mode that a file may have
    "1 png": [255, 255, 255],
    "L png": [124, 124, 124],
    "LA png": [124, 124, 124],
    "P png": [200, 100, 50],
    "PA tif": [200, 100, 50],
    "CMYK jpg": [200, 100, 50],
    "CMYK tif": [200, 100, 50],
    "YCbCr jpg": [200, 100, 50],
    "RGBA tif": [200, 100, 50],
}


@pytest.mark.parametrize("kind", MODES)
def test_every_mode_becomes_colours(kind: str, tmp_path: Path) -> None:
    mode, suffix = kind.split()
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    image = {"P": palette, "PA": palette.convert("PA")}.get(mode) or image.convert(mode)
    if mode == "1":
        image.paste(1, (0, 0, 16, 16))
    image.save(tmp_path / f"a.{suffix}")
    read = np.asarray(read_image(tmp_path / f"a.{suffix}", 3))
    np.testing.assert_allclose(read[8, 8].astype(int), MODES[kind], atol=3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "avif", "tif"])
def test_of_an_animation_the_first_picture_is_read(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    read = np.asarray(read_image(tmp_path / f"a.{suffix}", 3))
    np.testing.assert_allclose(read[8, 8].astype(int), [255, 0, 0], atol=3)


def test_16_bits_in_either_order_of_bytes(tmp_path: Path) -> None:
    for order, start in ((">u2", b"MM\0*"), ("<u2", b"II*\0")):
        short, long = order[0] + "H", order[0] + "I"
        tags = [(256, 256), (257, 2), (258, 16), (259, 1), (262, 1), (273, 134), (277, 1), (278, 2), (279, 1024)]
        entries = [
            struct.pack(f"{order[0]}HHII", tag, 4, 1, value)  # all as numbers of 32 bits
            for tag, value in tags
        ]
        head = start + struct.pack(long, 8) + struct.pack(short, len(tags))
        content = head + b"".join(entries) + bytes(4)
        (tmp_path / "a.tif").write_bytes(content.ljust(134, b"\0") + _ramp(16).astype(order).tobytes())
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif", 1)), _ramp(8))


TURNED = {1: "ab/cd", 2: "ba/dc", 3: "dc/ba", 4: "cd/ab", 5: "ac/bd", 6: "ca/db", 7: "db/ca", 8: "bd/ac"}
CORNERS = {"a": (250, 0, 0), "b": (0, 250, 0), "c": (0, 0, 250), "d": (250, 250, 0)}


def _corners(text: str) -> Image.Image:
    """An image of 16x16 pixels with four colours, as `ab/cd` names them."""
    colours = np.array([[CORNERS[name] for name in row] for row in text.split("/")], np.uint8)
    return Image.fromarray(colours.repeat(8, 0).repeat(8, 1))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", TURNED)
def test_every_source_turns_images_as_their_exif_data_say(orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for part in ("train", "val", "test"):
        for name in "abc":
            Path("files", part, name).mkdir(parents=True)
            for place in range(5):
                _corners("ab/cd").save(Path("files", part, name, f"{place}.{suffix}"), exif=exif, quality=100)
    common = [*COLOURS, "dataset.path=files", "dataset.validation_share=0.2", "model.crop=1"]
    found = [_splits(f"dataset={source}", *common).test[0].inputs for source in ("image_folder", "image_table")]
    expected = np.asarray(_corners(TURNED[orientation]))[[[4], [12]], [4, 12]] / 255
    for image in found:
        image = image * torch.tensor([0.2, 0.3, 0.4])[:, None, None] + torch.tensor([0.5, 0.4, 0.3])[:, None, None]
        np.testing.assert_allclose(image[:, [[7], [21]], [7, 21]].permute(1, 2, 0), expected, atol=0.1)


def test_broken_exif_data_say_nothing(tmp_path: Path) -> None:
    _corners("ab/cd").save(tmp_path / "a.jpg", exif=b"Exif\x00\x00no TIFF at all", quality=100)
    with Image.open(tmp_path / "a.jpg") as image:
        np.testing.assert_allclose(np.asarray(decode(image, 3))[4, 4], CORNERS["a"], atol=20)


# --- broken images


def _break(*paths: Path) -> None:
    """Half a file, an empty one, text: in turn."""
    for place, path in enumerate(paths):
        content = path.read_bytes()
        path.write_bytes([content[: len(content) // 2], b"", b"<html>not found</html>"][place % 3])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_broken_image_stops_an_evaluation_with_its_path(kind: int, workers: int) -> None:
    root = make_folder(Path("files"), ["a", "b", "c"])
    broken = root / "val" / "b" / "4.jpg"
    _break(*[root / "val" / "c" / f"{place}.jpg" for place in range(kind)], broken)
    for place in range(kind):
        (root / "val" / "c" / f"{place}.jpg").unlink()
    splits = _splits(*_folder_settings())
    with pytest.raises(UserError) as error:
        list(evaluation_loader(splits.test, 4, workers))
    assert str(error.value).startswith(f"{broken.absolute()} cannot be read as an image (")
    assert str(error.value).endswith("mend it or take it out") and "\n" not in str(error.value)


def test_an_evaluation_of_a_broken_image_ends_with_one_line(monkeypatch, capsys) -> None:
    root = make_folder(Path("files"), ["a", "b", "c"])
    _break(root / "val" / "a" / "0.jpg")
    narrowed = ["sparsity=dense", "model.training.epochs=0", "evaluation.timing_rounds=0", "evaluation.gallery=0"]
    line = _mistake(
        [*_folder_settings(), *narrowed, "stages=[base,evaluate]", "hardware.workers=1"], monkeypatch, capsys
    )
    assert "files/val/a/0.jpg cannot be read as an image" in line


@pytest.mark.parametrize("workers", [0, 2])
def test_training_takes_another_image_for_a_broken_one(workers: int) -> None:
    root = make_folder(Path("files"), ["a", "b", "c"])
    whole = _splits(*_folder_settings())
    places = list(whole.train.indices)  # type: ignore[attr-defined]
    _break(*[Path(whole.train.source.where(places[index])) for index in (3, 4, 23)])  # type: ignore[attr-defined]
    assert root.is_dir()
    splits = _splits(*_folder_settings("dataset.broken_share=0.2"))
    train: Any = splits.train
    batches: list[Batch] = list(train_loader(train, 24, workers, seed=0))
    assert len(batches) == 1 and torch.isfinite(batches[0].inputs).all()
    assert train.broken.nonzero().flatten().tolist() == [3, 4, 23], "told by the processes that load"
    for index, instead in ((3, 5), (4, 5), (23, 0)):
        assert int(train[0, index].labels) == int(train.source.labels[places[instead]])
        assert torch.equal(train[1, index].inputs, train[1, index].inputs)


def test_broken_images_are_counted_and_named_once_and_noted(monkeypatch) -> None:
    make_folder(Path("files"), ["a", "b", "c"])
    settings = [*_folder_settings("dataset.broken_share=0.2"), "sparsity=dense", "stages=[base]", "hardware.workers=2"]
    whole: Any = _splits(*_folder_settings()).train
    broken = [Path(whole.source.where(whole.indices[index])) for index in (0, 7)]
    _break(*broken)
    monkeypatch.setattr(sys, "argv", ["sttabt", *SMALL, *settings, "model.training.epochs=3"])
    main()
    (file,) = Path("runs").rglob("sttabt.log")
    (line,) = [line for line in file.read_text().splitlines() if "cannot be read" in line]
    assert "2 of 24 training images cannot be read, others take their place: " in line
    assert all(str(path) in line for path in broken)
    (record,) = Path("artifacts", "base").glob("*/artifact.json")
    assert '"broken_images": 2' in record.read_text()


def test_too_many_broken_images_stop_the_run(monkeypatch, capsys) -> None:
    make_folder(Path("files"), ["a", "b", "c"])
    whole: Any = _splits(*_folder_settings()).train
    _break(*[Path(whole.source.where(whole.indices[index])) for index in (0, 7)])
    settings = [*_folder_settings("dataset.broken_share=0.05"), *TRAINED, "hardware.workers=1"]
    line = _mistake(settings, monkeypatch, capsys)
    assert "2 of 24 training images are broken, more than dataset.broken_share=0.05; the last: " in line


# --- any data set with a column of images


def _table(classes: int = 3, count: int = 30) -> datasets.Dataset:
    images = [Image.new("RGB", (40, 36), (60 * (place % classes), place, 90)) for place in range(count)]
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=list("abc")[:classes])})
    return datasets.Dataset.from_dict({"img": images, "fine": [place % classes for place in range(count)]}, features)


TABLE = ["dataset=image_table", "dataset.path=files", *COLOURS, "dataset.validation_share=0.2"]
COLUMNS = ["dataset.image_column=img", "dataset.label_column=fine"]


def _save(kind: str) -> list[str]:
    """Train and test of the same images; the settings that a format needs beside TABLE."""
    if kind == "save_to_disk":
        datasets.DatasetDict({"train": _table(), "test": _table()}).save_to_disk("files")
        return COLUMNS
    if kind == "parquet":
        Path("files").mkdir()
        for split in ("train", "test"):
            _table().to_parquet(f"files/{split}-00000-of-00001.parquet")
        return COLUMNS
    make_folder(Path("files"), list("abc"), parts=("train", "test"))
    return []  # imagefolder calls its columns image and label


@pytest.mark.parametrize("kind", ["save_to_disk", "parquet", "imagefolder"])
def test_a_local_copy_in_each_format_gives_the_same_splits(kind: str) -> None:
    splits = _splits(*TABLE, *_save(kind))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (24, 6, 30)
    assert splits.class_names == ("a", "b", "c")
    assert sorted(_labels(splits.test)) == [0] * 10 + [1] * 10 + [2] * 10
    for index in (0, 29):
        item = splits.test[index]
        assert item.inputs.shape == (3, 28, 28)
        red = float((item.inputs[0] * 0.2 + 0.5).mean()) * 255
        assert red == pytest.approx((20 if kind == "imagefolder" else 60) * int(item.labels), abs=4)


def test_labels_that_are_words_are_numbered_alike_in_all_splits() -> None:
    words = _table().cast_column("fine", datasets.Value("int64")).map(lambda row: {"word": "xyz"[row["fine"]]})
    words = words.remove_columns("fine")
    datasets.DatasetDict({"train": words, "test": words.select([2, 1, 5])}).save_to_disk("files")
    splits = _splits(*TABLE, "dataset.image_column=img", "dataset.label_column=word")
    assert splits.class_names == ("x", "y", "z")
    assert _labels(splits.test) == [2, 1, 2]


TABLE_MISTAKES = {
    "dataset.image_column=imgg": "dataset.image_column=imgg is no column of files train: did you mean 'img'?",
    "dataset.label_column=coarse": "dataset.label_column=coarse is no column of files train",
    "dataset.image_column=fine": "dataset.image_column=fine of files train holds no images, columns that do: img",
    "dataset.test_split=validation": "has no split validation: choose one of: test, train",
    "dataset.classes=7": "dataset.classes=7 but the data has 3 classes",
}


@pytest.mark.parametrize("override", TABLE_MISTAKES)
def test_a_table_that_does_not_fit_is_one_line(override: str, monkeypatch, capsys) -> None:
    given = [*TABLE, *COLUMNS]
    given = [each for each in given if each.partition("=")[0] != override.partition("=")[0]]
    _save("save_to_disk")
    assert TABLE_MISTAKES[override] in _mistake([*given, override, *TRAINED], monkeypatch, capsys)


def test_secret_labels_cannot_be_scored() -> None:
    secret = _table().cast_column("fine", datasets.Value("int64")).map(lambda row: {"fine": -1})
    datasets.DatasetDict({"train": _table(), "test": secret}).save_to_disk("files")
    with pytest.raises(
        UserError, match=r"files test, row 0 has the label -1, which is none of the 3 classes.* dataset\.test_split"
    ):
        _splits(*TABLE, *COLUMNS)


@pytest.mark.parametrize("values", [(1, 2, 3), (0, 2, 9), (5, 10, 11)])
def test_labels_that_do_not_count_from_0_are_numbered_in_their_order(values: tuple[int, ...]) -> None:
    numbers = _table().cast_column("fine", datasets.Value("int64")).map(lambda row: {"fine": values[row["fine"]]})
    datasets.DatasetDict({"train": numbers, "test": numbers.select([2, 1, 3])}).save_to_disk("files")
    splits = _splits(*TABLE, *COLUMNS)
    assert splits.class_names == tuple(map(str, values)) and _labels(splits.test) == [2, 1, 0]


LABELS: dict[str, tuple[list, list, tuple[str, ...], list[int]]] = {  # of train and of test, names, test classes
    "floats": ([0.0, 1.0, 2.0], [2.0, 0.0], ("0", "1", "2"), [2, 0]),
    "floats and integers": ([1, 2, 3], [3.0, 1.0], ("1", "2", "3"), [2, 0]),
    "words and integers": (["1", "2", "3"], [3, 1], ("1", "2", "3"), [2, 0]),
    "signs": ([-1, 0, 1], [1, -1], ("-1", "0", "1"), [2, 0]),
    "words": (["x", "z", "y"], ["z", "x"], ("x", "y", "z"), [2, 0]),
}


def _with_labels(labels: list) -> datasets.Dataset:
    count = len(labels) * 10
    images = [Image.new("RGB", (40, 36), (place, 9, 90)) for place in range(count)]
    columns = {"img": images, "fine": [labels[place % len(labels)] for place in range(count)]}
    table = datasets.Dataset.from_dict(columns)
    return table.cast_column("img", datasets.Image())


@pytest.mark.parametrize("kind", LABELS)
def test_a_label_of_a_table_is_the_same_class_whatever_its_type(kind: str) -> None:
    train, test, names, expected = LABELS[kind]
    datasets.DatasetDict({"train": _with_labels(train), "test": _with_labels(test)}).save_to_disk("files")
    splits = _splits(*TABLE, *COLUMNS)
    assert splits.class_names == names and _labels(splits.test)[:2] == expected


NO_LABELS: dict[str, tuple[list, str]] = {
    "missing": ([0, 1, None], "files train, row 2 has no label: complete it"),
    "nan": ([0.0, 1.0, float("nan")], "files train, row 2 has no label: complete it"),
    "infinity": ([0.0, 1.0, float("inf")], "files train, row 2 has no label: complete it"),
    "lists": ([[0], [1], [2]], "dataset.label_column=fine of files train holds no labels, but list: name a column"),
    "days": ([date(2020, 1, day) for day in (1, 2, 3)], "holds no labels, but date32: name a column of numbers or"),
    "bytes": ([b"a", b"b", b"c"], "holds no labels, but binary: name a column of numbers or words"),
}


@pytest.mark.parametrize("kind", NO_LABELS)
def test_what_is_no_label_of_a_table_is_named(kind: str) -> None:
    labels, message = NO_LABELS[kind]
    datasets.DatasetDict({"train": _with_labels(labels), "test": _with_labels([0, 1, 2])}).save_to_disk("files")
    with pytest.raises(UserError, match=message):
        _splits(*TABLE, *COLUMNS)


def test_a_class_that_only_the_test_split_has_is_named() -> None:
    datasets.DatasetDict({"train": _with_labels([0, 1, 2]), "test": _with_labels([1, 2, 3])}).save_to_disk("files")
    with pytest.raises(UserError, match="files test, row 2 has the label 3, which is none of the 3 classes"):
        _splits(*TABLE, *COLUMNS)


def test_an_image_that_is_missing_or_a_pipe_is_broken() -> None:
    os.mkfifo("pipe.png")
    table = _table().cast_column("img", datasets.Image(decode=False))
    stored = [None, {"bytes": None, "path": str(Path("pipe.png").absolute())}]
    for row, image, reason in zip((3, 4), stored, ["it is missing", "it is no file, but a pipe"], strict=True):
        rows = table.to_list()
        rows[row]["img"] = image
        Path("files").mkdir(exist_ok=True)
        for split, content in (("train", table.to_list()), ("test", rows)):
            file = datasets.Dataset.from_list(content, table.features).data.table
            pq.write_table(file.replace_schema_metadata(_table().data.table.schema.metadata), f"files/{split}.parquet")
        splits = _splits(*TABLE, *COLUMNS)
        assert digest(splits.contents["test"], Path("store")) != digest(splits.contents["train"], Path("store"))
        with pytest.raises(UserError, match=rf"^files test, row {row}.* cannot be read as an image \({reason}\)"):
            list(evaluation_loader(splits.test, 8))


def test_a_split_without_rows_is_named() -> None:
    _save("save_to_disk")
    (file,) = Path("files", "test").glob("*.arrow")
    empty = _table().data.table.slice(0, 0)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, empty.schema) as stream:
        stream.write_table(empty)
    with pytest.raises(UserError, match=r"files test has no rows: set dataset.train_split and dataset.test_split"):
        _splits(*TABLE, *COLUMNS)


def test_a_pipe_in_a_copy_is_not_waited_for() -> None:
    for kind in ("save_to_disk", "parquet"):
        _save(kind)
        (file,) = Path("files").rglob("*train*.parquet" if kind == "parquet" else "train/*.arrow")
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(UserError, match=rf"{file.name} is no file, but a pipe: take it out"):
            _splits(*TABLE, *COLUMNS)
        shutil.rmtree("files")


def test_a_copy_with_code_does_not_run_it() -> None:
    Path("files").mkdir()
    Path("files", "files.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    with pytest.raises(UserError, match="files, split train: cannot be loaded"):
        _splits(*TABLE, *COLUMNS)
    assert not Path("ran").exists()


def test_a_row_without_a_label_is_named() -> None:
    words = _table().cast_column("fine", datasets.Value("string"))
    features = words.features
    rows = words.cast_column("img", datasets.Image(decode=False)).to_list()
    rows[4]["fine"] = None
    datasets.DatasetDict({"train": words, "test": datasets.Dataset.from_list(rows, features)}).save_to_disk("files")
    with pytest.raises(UserError, match=r"^files test, row 4 has no label: complete it"):
        _splits(*TABLE, *COLUMNS)


def test_a_table_that_is_damaged_or_saved_without_splits_is_one_line() -> None:
    _table().save_to_disk("files")
    with pytest.raises(UserError, match=r"files is a data set that was saved without splits: save a DatasetDict"):
        _splits(*TABLE, *COLUMNS)
    shutil.rmtree("files")
    _save("parquet")
    file = Path("files", "train-00000-of-00001.parquet")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(
        UserError, match=r"files, split train: cannot be loaded \(.+\): set dataset.train_split"
    ) as error:
        _splits(*TABLE, *COLUMNS)
    assert "\n" not in str(error.value)


def test_a_broken_image_of_a_table_is_named_by_its_row() -> None:
    table = _table()
    rows = table.cast_column("img", datasets.Image(decode=False)).to_list()
    rows[4]["img"] = {"bytes": b"no image", "path": "five.png"}
    broken = datasets.Dataset.from_list(rows, features=table.features)
    datasets.DatasetDict({"train": table, "test": broken}).save_to_disk("files")
    splits = _splits(*TABLE, *COLUMNS)
    with pytest.raises(UserError, match=r"^files test, row 4 \(five\.png\) cannot be read as an image"):
        list(evaluation_loader(splits.test, 8))


def test_cifar_without_network_says_how_to_get_it(monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    use_hub.cache_clear()
    line = _mistake(["dataset=cifar10", "model.patch_size=8", *TRAINED], monkeypatch, capsys)
    assert "dataset.hub_id=uoft-cs/cifar10, split train: is not in the cache and the hub is out of reach" in line
    assert "give a local copy with dataset.path=FOLDER" in line


# --- augmentation


def test_an_augmented_epoch_repeats_with_any_number_of_workers_and_differs_from_the_next() -> None:
    make_idx(Path("files"))
    train: Any = _splits("dataset=fashion_mnist", "dataset.path=files", "dataset.validation_share=0.2").train

    def epoch(number: int, workers: int = 0) -> torch.Tensor:
        loader = train_loader(train, 8, workers, seed=3)
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        return torch.cat([batch.inputs for batch in loader])

    first = epoch(0)
    assert torch.equal(epoch(0), first) and torch.equal(epoch(0, workers=2), first)
    assert not torch.equal(epoch(1), first)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("recipe", ["rand-m9-mmax9-mstd0.5-inc1", "rand-m5-n1-mstd0.5-inc1", "''"])
def test_every_augmentation_gives_finite_images_of_the_right_shape(recipe: str, channels: int) -> None:
    make_idx(Path("files"))
    overrides = ["dataset=fashion_mnist", "dataset.path=files", "dataset.validation_share=0.2"]
    overrides += [f"dataset.channels={channels}", *(COLOURS[:2] if channels == 3 else [])]
    train: Any = _splits(
        *overrides, f"dataset.augmentation.rand_augment={recipe}", "dataset.augmentation.erasing=1"
    ).train
    images = torch.stack([train[epoch, index].inputs for epoch in range(4) for index in range(len(train))])
    assert images.shape[1:] == (channels, 28, 28) and torch.isfinite(images).all()
    erased = (images[:, -1] < -0.85).flatten(1).any(1)  # random pixels are; what is drawn is black at the least
    assert erased.float().mean() > 0.9


def test_no_augmentation_gives_the_evaluated_image() -> None:
    make_idx(Path("files"))
    splits = _splits(
        "dataset=fashion_mnist", "dataset.path=files", "dataset.validation_share=0.2", "dataset.augment=false"
    )
    train: Any = splits.train
    splits.validation.indices = train.indices  # type: ignore[attr-defined]
    assert torch.equal(train[3, 5].inputs, splits.validation[5].inputs)


def test_a_random_augmentation_that_timm_does_not_know_is_one_line(monkeypatch, capsys) -> None:
    make_idx(Path("files"))
    files = ["dataset=fashion_mnist", "dataset.path=files", "dataset.validation_share=0.2"]
    line = _mistake([*files, "dataset.augmentation.rand_augment=rand-z9", *TRAINED], monkeypatch, capsys)
    assert "dataset.augmentation.rand_augment=rand-z9 is not timm's notation" in line
    line = _mistake([*files, "dataset.augmentation.rand_augment=rand-m9-mstd0.5-inc1", *TRAINED], monkeypatch, capsys)
    assert "rand_augment=rand-m9-mstd0.5-inc1 may draw a strength of 10, at which Pillow" in line and "mmax9" in line


# --- settings


MISTAKES = {
    "dataset=fashion_mnist dataset.path=nowhere": "nowhere is no folder: for Fashion-MNIST `apt-get install dataset-",
    "dataset=fashion_mnist dataset.path=''": "dataset.path is missing: give dataset.path=FOLDER",
    "dataset=fashion_mnist dataset.path=. dataset.class_names=[a]": "are 1 names for dataset.classes=10",
    "dataset=fashion_mnist dataset.path=. dataset.channels=3": "dataset.mean=[0.286] has 1 numbers: give one",
    "dataset=fashion_mnist dataset.path=. model.std=[0]": "model.std=[0.0] is out of range",
    "dataset=fashion_mnist dataset.path=. dataset.channels=2": "dataset.channels=2 is out of range: images are",
    "dataset=fashion_mnist dataset.path=. dataset.augmentation.scale=0": "augmentation.scale=0.0 is out of range",
    "dataset=fashion_mnist dataset.path=. dataset.augmentation.erasing_mode=pixl": "did you mean 'pixel'?",
    "dataset=image_table": "dataset.hub_id is missing: give the id of a data set on the hub",
    "dataset=image_table dataset.path=nowhere": "nowhere is no folder: give a local copy, or none for the hub",
    "dataset=digits dataset.metric=top5 dataset.classes=4": "dataset.metric=top5 says nothing of dataset.classes=4",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_setting_of_images_that_does_not_fit_is_one_line(command: str, monkeypatch, capsys) -> None:
    assert MISTAKES[command] in _mistake(command.split(), monkeypatch, capsys)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["dataset.augmentation.flip=0"], "digits have their own preparation"),
        (["model.crop=0.5"], "digits have their own preparation"),
        (["dataset=fashion_mnist", "dataset.path=.", "dataset.hub_id=x"], "it is for source image_table"),
        (["dataset=fashion_mnist", "dataset.path=.", "dataset.label_column=x"], "source idx has none"),
        (
            ["dataset=fashion_mnist", "dataset.path=.", "dataset.augment=false", "dataset.augmentation.flip=0"],
            "dataset.augment=false leaves images as they are",
        ),
        (["dataset=image_table", "dataset.path=.", "dataset.hub_id=x", "dataset.image_size=28"], "gives a local copy"),
        (["approx.training.label_smoothing=0.1"], "an approximation has no labels to smooth"),
        (["model.training.mix_share=0.5"], "model.training mixes no images"),
    ],
)
def test_a_setting_of_images_without_effect_is_named(overrides: list[str], expected: str) -> None:
    (line,) = without_effect(_settings(*overrides), overrides)
    assert expected in line
