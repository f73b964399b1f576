"""Files of data that are damaged at random: a message or the right answer, soon, never a traceback.

A long form (`make test-long`) has many more trials.
"""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from images import make_folder, make_idx
from sttabt.cli.composition import compose_settings
from sttabt.data import load_splits
from sttabt.data.corpus import load_corpus
from sttabt.data.labelled import image_formats, read_image
from sttabt.data.rows import read_rows
from sttabt.errors import UserError
from sttabt.settings import DatasetSettings, ModelSettings
from test_text_data import WORDS, make_tokenizer, sentences

SECONDS = 5  # of this process's own time
LONG = pytest.mark.long
IMAGES = ["name=test", "model=test_vit", "model.patch_size=7", "logger=none", "dataset.validation_share=0.2"]
COLOURS = ["dataset.mean=[0.5,0.4,0.3]", "dataset.std=[0.2,0.3,0.4]", "dataset.image_size=28", "dataset.classes=3"]
TEXT = {"name": "t", "source": "text_file", "columns": ["sentence"], "label_column": "label", "classes": 2}


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """Cut off, with bits flipped, bytes changed, a gap, zeros, or a number that is huge."""
    raw = bytearray(content)
    place, length = int(random.integers(len(raw))), int(random.integers(1, 60))
    early = int(random.integers(min(len(raw), 300)))
    match int(random.integers(6)):
        case 0:
            raw = raw[:place]
        case 1:
            raw[early] ^= 1 << int(random.integers(8))
        case 2:
            for other in random.integers(len(raw), size=5):
                raw[other] = int(random.integers(256))
        case 3:
            raw[place : place + length] = b""
        case 4:
            raw[place : place + length] = bytes(len(raw[place : place + length]))
        case 5:
            raw[early : early + 4] = b"\xff\xff\xff\x7f"
    return bytes(raw)


def attempt(read: Callable[[], Any], allowed: type[Exception] = UserError) -> Any:
    """What `read` gives, or None for an error that is allowed: one short line, in time."""
    started, found = time.process_time(), None
    try:
        found = read()
    except allowed as error:
        assert "\n" not in str(error) and 10 < len(str(error)) < 2000, str(error)
    assert time.process_time() - started < SECONDS
    return found


# --- images


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _pictures() -> dict[str, bytes]:
    """One of every format and mode that Pillow writes."""
    Image.init()
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 255, (36, 40, 3), dtype=np.uint8))
    found = {}
    for kind in sorted(set(image_formats()) & set(Image.SAVE)):
        for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "I;16", "CMYK", "F"):
            image = colours.convert("L").convert(mode) if mode in ("I;16", "F") else colours.convert(mode)
            try:
                found[f"{kind} {mode}"] = _saved(image, kind)
            except (OSError, ValueError, KeyError):
                continue  # not every format has every mode
    exif = Image.Exif()
    exif[0x0112] = 6
    found["JPEG turned"] = _saved(colours, "JPEG", exif=exif)
    found["GIF animated"] = _saved(colours, "GIF", save_all=True, append_images=[colours.rotate(90)])
    for packing in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits"):
        found[f"TIFF {packing}"] = _saved(colours, "TIFF", compression=packing)
    return found


PICTURES = _pictures()


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it skips
@pytest.mark.timeout(900)
@pytest.mark.parametrize("trials", [8, pytest.param(400, marks=LONG)])
def test_damaged_images(trials: int) -> None:
    assert len(PICTURES) > 80 and {"JPEG", "PNG", "WEBP", "AVIF", "TIFF"} <= {name.split()[0] for name in PICTURES}
    random = np.random.default_rng(trials)
    for content in PICTURES.values():
        for _ in range(trials):
            damaged = damage(content, random)
            read = attempt(lambda damaged=damaged: read_image(BytesIO(damaged), 3), OSError)  # type: ignore[misc]
            assert read is None or read.mode == "RGB"


# --- files of text and tables


ROWS = pd.DataFrame({"sentence": sentences(60), "label": [index % 2 for index in range(60)]})


def _write(path: Path) -> None:
    if ".parquet" in path.name:
        ROWS.to_parquet(path)
    elif ".json" in path.name:
        ROWS.to_json(path, orient="records", lines=True)
    else:
        ROWS.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("trials", [150, pytest.param(5000, marks=LONG)])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_damaged_files_of_text(name: str, trials: int, tmp_path: Path) -> None:
    path, random = tmp_path / name, np.random.default_rng(trials)
    _write(path)
    own = DatasetSettings(path=str(path), **TEXT)
    whole, content = read_rows(path, own), path.read_bytes()
    refused = 0
    for _ in range(trials):
        path.write_bytes(damage(content, random))
        rows = attempt(lambda: read_rows(path, own))
        refused += rows is None
        assert rows is None or (len(rows.texts) == len(rows.labels) and set(rows.labels.tolist()) <= {0, 1})
        if rows is not None and name.endswith(".gz"):  # which has a checksum
            assert rows.texts == whole.texts and rows.labels.tolist() == whole.labels.tolist()
    assert refused > trials / 10


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(10**300, 10**400),
    st.floats(allow_subnormal=False),  # torch may flush them in the same process
    st.text(max_size=30),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


def _odd_json(texts: list, labels: list, path: Path) -> None:
    """A file of objects with any cells; those that are all right are read as they are, others are named."""
    lines = [json.dumps({"sentence": text, "label": label}) for text, label in zip(texts, labels, strict=False)]
    path.write_text("\n".join([*lines, ""]))
    rows = attempt(lambda: read_rows(path, DatasetSettings(path=str(path), **TEXT)))
    if rows is not None:
        assert rows.texts == [(text,) for text, _ in zip(texts, labels, strict=False)]
        assert rows.labels.tolist() == [int(float(label)) for _, label in zip(texts, labels, strict=False)]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(CELLS, max_size=4), labels=st.lists(CELLS, max_size=4))
def test_json_of_any_cells(texts: list, labels: list, tmp_path_factory: pytest.TempPathFactory) -> None:
    _odd_json(texts, labels, tmp_path_factory.getbasetemp() / "odd.jsonl")


@LONG
@settings(max_examples=20_000, deadline=None)
@given(texts=st.lists(CELLS, max_size=4), labels=st.lists(CELLS, max_size=4))
def test_json_of_any_cells_at_length(texts: list, labels: list, tmp_path_factory: pytest.TempPathFactory) -> None:
    _odd_json(texts, labels, tmp_path_factory.getbasetemp() / "odd.jsonl")


@pytest.mark.parametrize("depth", [10, 900, 5_000, 100_000])
def test_deep_json(depth: int, tmp_path: Path) -> None:
    for line in (_nested(depth), f'{{"sentence": "w1", "label": {_nested(depth)}}}', '{"a":' * depth):
        (tmp_path / "a.jsonl").write_text(line)
        assert attempt(lambda: read_rows(tmp_path / "a.jsonl", DatasetSettings(path="a.jsonl", **TEXT))) is None


def _odd_csv(texts: list[str], path: Path) -> None:
    """Any texts as a spreadsheet writes them, with commas or tabs, are read as they are, but for their line ends."""
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        file = path.with_suffix(suffix)
        frame = pd.DataFrame({"sentence": texts, "label": [1] * len(texts)})
        frame.to_csv(file, index=False, sep=separator, quoting=1)
        own = DatasetSettings(path=str(file), **TEXT, quoting="double")
        rows = attempt(lambda file=file, own=own: read_rows(file, own))  # type: ignore[misc]
        whole = [text for text in texts if text.strip() and "\0" not in text]
        assert (rows is None) == (len(whole) < len(texts) or not texts)
        assert rows is None or rows.texts == [(text,) for text in texts]


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=5)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS)
def test_any_texts_in_a_spreadsheet(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    _odd_csv(texts, tmp_path_factory.getbasetemp() / "odd.csv")


@LONG
@settings(max_examples=20_000, deadline=None)
@given(texts=TEXTS)
def test_any_texts_in_a_spreadsheet_at_length(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    _odd_csv(texts, tmp_path_factory.getbasetemp() / "odd.csv")


# --- whole data sets


def _table_of_images() -> datasets.Dataset:
    images = [Image.new("RGB", (40, 36), (60 * (place % 3), place, 90)) for place in range(15)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abc"))})
    return datasets.Dataset.from_dict({"image": images, "label": [place % 3 for place in range(15)]}, features)


def _image_set(kind: str, folder: Path) -> Callable[[], Any]:
    if kind == "idx":
        make_idx(folder, compressed=False)
        own = compose_settings([*IMAGES, "dataset=fashion_mnist", f"dataset.path={folder}"])
    elif kind == "folder":
        make_folder(folder, ["a", "b", "c"], images=5)
        own = compose_settings([*IMAGES, *COLOURS, "dataset=image_folder", f"dataset.path={folder}"])
    else:
        datasets.DatasetDict({"train": _table_of_images(), "test": _table_of_images()}).save_to_disk(str(folder))
        column = ["dataset=image_table", "dataset.label_column=label", f"dataset.path={folder}"]
        own = compose_settings([*IMAGES, *COLOURS, *column])

    def read() -> Any:
        splits = load_splits(own.dataset, own.model)
        return [split[index] for split in (splits.test, splits.validation) for index in range(len(split))]  # type: ignore

    return read


def _text_set(kind: str, folder: Path, model: ModelSettings) -> Callable[[], Any]:
    if kind == "corpus":
        (folder / "a.txt").write_text("\n".join(ROWS["sentence"]))
        (folder / "b.txt.gz").write_bytes(gzip.compress("\n".join(sentences(50, seed=1)).encode()))
        return lambda: load_corpus(str(folder), model, 32)
    frame = datasets.Dataset.from_pandas(ROWS.assign(idx=range(len(ROWS))), preserve_index=False)
    datasets.DatasetDict({"train": frame, "validation": frame}).save_to_disk(str(folder))
    arguments = ["name=t", "model=minilm_l6", f"model.huggingface={model.huggingface}", "dataset=glue_sst2"]
    own = compose_settings([*arguments, f"dataset.path={folder}"]).dataset
    return lambda: load_splits(replace(own, max_tokens=64), model)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("trials", [30, pytest.param(1000, marks=LONG)])
@pytest.mark.parametrize("kind", ["idx", "folder", "saved table", "corpus", "saved glue"])
def test_damaged_data_sets(kind: str, trials: int, tmp_path: Path) -> None:
    random, folder = np.random.default_rng(trials), tmp_path / "data"
    folder.mkdir()
    model = ModelSettings(huggingface=str(make_tokenizer(tmp_path / "model", WORDS)))
    read = _text_set(kind, folder, model) if kind in ("corpus", "saved glue") else _image_set(kind, folder)
    assert attempt(read) is not None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    shutil.copytree(folder, tmp_path / "whole")
    for trial in range(trials):
        path = files[trial % len(files)]
        path.write_bytes(damage(path.read_bytes(), random))
        attempt(read)
        shutil.copy(tmp_path / "whole" / path.relative_to(folder), path)
    assert attempt(read) is not None
