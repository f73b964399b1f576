"""The figure of the tokens: which patches of some images, or words of some texts, each layer still reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure, SubFigure

from sttabt.report.figures import figure_style, save
from sttabt.report.gallery import Gallery, ImageGallery, TextGallery
from sttabt.report.image_rows import draw_rows, rows_size
from sttabt.report.images import draw_images, images_size
from sttabt.report.texts import draw_texts, texts_size

MOST_IMAGES = 4  # of a block
BESIDE = 2  # methods of images that fit beside each other; more have a line each, with MOST_IN_LINES images
MOST_IN_LINES = 2
MOST_TEXTS = 3  # of the figure, but at least one a block
TEXTS_BESIDE = 3  # methods of texts beside each other; more go into blocks below


@dataclass(frozen=True)
class Block:
    """What the figure shows of one data set: (name, gallery) of some models, beside each other."""

    title: str
    galleries: Sequence[tuple[str, Gallery]]


def draw_tokens(blocks: Sequence[Block], folder: Path) -> Path:
    """Writes tokens.png, tokens.pdf, tokens.svg and tokens.csv; returns the path of the first."""
    drawn: list[tuple[tuple[float, float], Callable[[SubFigure], None]]] = []
    shown: list[tuple[str, str, Gallery, int]] = []
    for block in blocks:
        texts = [(name, gallery) for name, gallery in block.galleries if isinstance(gallery, TextGallery)]
        images = [(name, gallery) for name, gallery in block.galleries if isinstance(gallery, ImageGallery)]
        if texts:
            count = min(len(texts[0][1].labels), max(1, MOST_TEXTS // len(blocks)))
            count = count if len(texts) <= TEXTS_BESIDE else 1
            for start in range(0, len(texts), TEXTS_BESIDE):
                some = texts[start : start + TEXTS_BESIDE]
                title = block.title if start == 0 else f"{block.title} (continued)"
                drawn.append((texts_size(some, count), partial(draw_texts, title=title, columns=some, texts=count)))
            shown += [(block.title, name, gallery, count) for name, gallery in texts]
        if images:
            title = f"{block.title}: patches that each layer reads"
            beside = len(images) <= BESIDE
            count = min(len(images[0][1].labels), MOST_IMAGES if beside else MOST_IN_LINES)
            size = (images_size if beside else rows_size)(images, count)
            draw = partial(draw_images if beside else draw_rows, title=title, columns=images, images=count)
            drawn.append((size, draw))
            shown += [(block.title, name, gallery, count) for name, gallery in images]
    with figure_style():
        width, height = max(width for (width, _), _ in drawn), sum(height for (_, height), _ in drawn)
        figure = Figure(figsize=(width, height))
        parts = figure.subfigures(len(drawn), 1, height_ratios=[height for (_, height), _ in drawn], squeeze=False)
        for part, (_, draw_part) in zip(parts[:, 0], drawn, strict=True):
            draw_part(part)
        path = save(figure, folder, "tokens")
    _frame(shown).to_csv(folder / "tokens.csv", index=False)
    return path


def _frame(shown: Sequence[tuple[str, str, Gallery, int]]) -> pd.DataFrame:
    """A line a token: how many layers read it. Words as the tokenizer gives them; images have no words."""
    lines = []
    for title, name, gallery, samples in shown:
        for sample in range(samples):
            words = gallery.words[sample] if isinstance(gallery, TextGallery) else [""] * gallery.alive.shape[-1]
            length = gallery.length(sample) if isinstance(gallery, TextGallery) else len(words)
            depth = gallery.alive[sample, :-1].sum(axis=0)
            lines += [(title, name, sample, token, words[token], depth[token]) for token in range(length)]
    return pd.DataFrame(lines, columns=["data", "model", "sample", "token", "word", "layers"])
