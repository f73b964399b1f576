"""Runs of images and of texts whose models learn nothing, for what is done with a made model."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from transformers import BertConfig, BertTokenizerFast

from conftest import BERT
from sttabt.cli.composition import compose_settings
from sttabt.pipeline.stages import run_stages
from sttabt.store.job import Job

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "book", "the", "very", "##ly"]
IMAGES = ["experiment=debug", "logger=none", "evaluation.timing_rounds=0"]
TEXTS = [
    *("name=test", "model=bert_base", "model.pretrained=false", "model.fine_tune=false"),
    *("model.width=32", "model.depth=3", "model.heads=4"),
    *("dataset=text_file", "dataset.path=reviews.csv", "dataset.class_names=[bad,good]", "dataset.max_tokens=16"),
    *("logger=none", "fast_dev_run=2", "evaluation.timing_rounds=0", "hardware=cpu", "hardware.batch_size=8"),
]
RUNS = (
    [*IMAGES, "sparsity=concrete"],
    [*IMAGES, "sparsity=backtracking", "sparsity.keep_ratio=0.3"],
    [*IMAGES, "sparsity=forward_topk", "sparsity.keep_ratio=0.4", "stages=[base,prune]"],
    [*TEXTS, "model.huggingface=words", "sparsity=ltp"],
)


def make_tokenizer(folder: Path) -> BertTokenizerFast:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return BertTokenizerFast(str(folder / "vocab.txt"))


def make_runs(folder: Path) -> list[str]:
    """All RUNS with `folder` as the current one; gives the lines that they log."""
    words = make_tokenizer(folder / "words")
    BertConfig(**{**BERT, "num_labels": 2}).save_pretrained(folder / "words")
    words.save_pretrained(folder / "words")
    pairs = [("good", "film"), ("bad", "book")]
    lines = [f"a {word} {thing} {number * 'very '},{word}" for number in range(20) for word, thing in pairs]
    (folder / "reviews.csv").write_text("\n".join(["sentence,label", *lines]) + "\n")
    kept = _Kept()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        root = logging.getLogger()
        level = root.level
        root.addHandler(kept)
        root.setLevel("INFO")
        try:
            for arguments in RUNS:
                settings = compose_settings(arguments, output=str(folder / "output"))
                run_stages(settings, Job("python -m sttabt.run test", "alone", False, "0123"))
        finally:
            root.removeHandler(kept)
            root.setLevel(level)
    return kept.lines


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
