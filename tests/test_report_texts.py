"""The report of texts: several data sets beside each other, published curves, heat maps of words."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sttabt.report.build import make_report
from sttabt.report.curves import curve_styles
from sttabt.report.gallery import TextGallery, choose, read_gallery
from sttabt.report.literature import LABEL, published_curves
from sttabt.report.points import points_by_dataset, to_points
from sttabt.report.rows import Row
from sttabt.report.table import format_points, format_table
from sttabt.report.texts import COLUMN, lay_out
from test_report import LAYERS, Page, make_row, write_rows

SENTENCES = (
    "[CLS] a quietly moving , beautifully un ##der ##state ##d film that earns its $ 5 tears and never begs for them"
    " [SEP]",
    "[CLS] the plot is a me ##and ##ering mess , and the jokes fall flat long before the un ##be ##lie ##va ##ble"
    " ending arrives to put everybody in the theatre out of their misery [SEP]",
    "[CLS] not bad at all [SEP]",
    "[CLS] it is dull [SEP]",
)


def make_text_row(method: str = "concrete", share: float = 0.5, seed: int = 0, **changes) -> Row:
    """A made-up result on sentences of which a quarter of the padded positions are real."""
    row = make_row(method, share, seed, **({"dataset": "glue_sst2", "model": "bert_base"} | changes))
    return replace(row, occupancy_padded=row.occupancy / 4)


def make_text_sweep(dataset: str = "glue_sst2", seeds: tuple[int, ...] = (0,), **changes) -> list[Row]:
    changes = {"dataset": dataset} | changes
    rows = [make_text_row("dense", seed=seed, **changes) for seed in seeds]
    shares = (0.2, 0.4, 0.7)
    rows += [make_text_row("concrete", share, seed, **changes) for share in shares for seed in seeds]
    rows += [make_text_row("backtracking", share + 0.05, **changes) for share in shares]
    rows += [make_text_row("backtracking", share, attention="actual", **changes) for share in shares]
    rows += [make_text_row("ltp", share - 0.03, mask_weight=share, keep_ratio=None, **changes) for share in shares]
    return [*rows, *(make_text_row("forward_topk", share, **changes) for share in shares)]


def make_text_gallery(share: float, seed: int = 0, sentences: tuple[str, ...] = SENTENCES) -> TextGallery:
    """Sentences of which each layer reads a random subset of what the one before read; the class token always."""
    lines = [sentence.split() for sentence in sentences]
    longest = max(map(len, lines))
    generator = np.random.default_rng(seed)
    lives = (generator.random((len(lines), longest)) * 2 * share * (LAYERS + 1)).astype(int)
    lives[:, 0] = LAYERS + 1
    words = np.array([[*line, *[""] * (longest - len(line))] for line in lines])
    alive = (np.arange(LAYERS + 1)[:, None] < lives[:, None]) & (words != "")[:, None]
    labels = np.arange(len(lines)) % 2
    return TextGallery(
        alive=alive,
        layers=np.array(LAYERS),
        labels=labels,
        predictions=np.where(labels + seed % 2 == 2, 0, labels),
        class_names=np.array(["negative", "positive"]),
        words=words,
    )


def write_text_rows(folder: Path, rows: list[Row]) -> Path:
    """With a gallery beside each row that drops something."""
    write_rows(folder, rows)
    for index, row in enumerate(rows):
        if row.method != "dense":
            make_text_gallery(row.occupancy, seed=index).write(folder / f"job-{index}" / "tokens.npz")
    return folder
