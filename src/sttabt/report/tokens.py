"""The figure of the tokens: which patches of some images, or words of some texts, each layer still reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from sttabt.report.figures import WRONG, figure_style, save
from sttabt.report.gallery import Gallery, ImageGallery, TextGallery
from sttabt.report.texts import draw_texts, texts_size

MOST_LAYERS = 8  # columns; more layers than that are thinned out evenly
MOST_IMAGES = 4  # of a block
MOST_TEXTS = 3  # of the figure, but at least one a block
TILE = 0.9  # inches
LETTER = 0.075  # inches a letter of the labels
STRENGTH = 0.88  # how far dropped patches fade


@dataclass(frozen=True)
class Block:
    """What the figure shows of one data set: (name, gallery) of some models, images below each other, texts beside."""

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
            drawn.append((texts_size(texts, count), partial(draw_texts, title=block.title, columns=texts, texts=count)))
            shown += [(block.title, name, gallery, count) for name, gallery in texts]
        where = f", {block.title}" if len(blocks) > 1 else ""
        for name, gallery in images:
            title = f"{name}:\npatches that each layer reads{where}"
            drawn.append((_size(gallery), partial(_draw_images, title=title, gallery=gallery)))
            shown.append((block.title, name, gallery, min(len(gallery.labels), MOST_IMAGES)))
    with figure_style():
        width, height = max(width for (width, _), _ in drawn), sum(height for (_, height), _ in drawn)
        figure = Figure(figsize=(width, height), layout="constrained")
        parts = figure.subfigures(len(drawn), 1, height_ratios=[height for (_, height), _ in drawn], squeeze=False)
        for part, (_, draw_part) in zip(parts[:, 0], drawn, strict=True):
            draw_part(part)
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.set(w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01)  # type: ignore[call-arg]
        path = save(figure, folder, "tokens")
    _frame(shown).to_csv(folder / "tokens.csv", index=False)
    return path


def faded_colour(image: np.ndarray) -> tuple[int, int, int]:
    """What dropped patches fade to: light grey, or light blue in a grey image, whose own shades would be mistaken."""
    return (203, 226, 246) if (image == image[..., :1]).all() else (240, 240, 240)


def fade(image: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """image uint8 (height, width, 1 or 3), patches bool (rows, columns) -> uint8 RGB, dropped patches faded."""
    height, width = image.shape[:2]
    # A patch owns the pixels whose centres lie in it, also where the sides do not divide.
    down = np.arange(height) * patches.shape[0] // height
    across = np.arange(width) * patches.shape[1] // width
    kept = patches[down][:, across, None]
    colours = np.broadcast_to(image, (height, width, 3)).astype(float)
    faded = colours + (np.array(faded_colour(image)) - colours) * STRENGTH
    return np.where(kept, colours, np.round(faded)).astype(np.uint8)


def _layers(gallery: Gallery) -> list[int]:
    """The layers shown, counted from 1; layer l reads what is alive at boundary l - 1."""
    layers = int(gallery.layers)
    return sorted({round(place) for place in np.linspace(1, layers, min(layers, MOST_LAYERS))})


def _size(gallery: ImageGallery) -> tuple[float, float]:
    """Width and height of a block in inches."""
    shown = min(len(gallery.labels), MOST_IMAGES)
    widest = max(len(line) for index in range(len(gallery.labels)) for line in _lines(gallery, index))
    return (1 + len(_layers(gallery))) * TILE + widest * LETTER, shown * TILE + 0.92


def _draw_images(part: SubFigure, title: str, gallery: ImageGallery) -> None:
    images = gallery.images[:MOST_IMAGES]
    alive = gallery.patches_alive[:MOST_IMAGES]
    layers = _layers(gallery)
    axes = part.subplots(len(images), 1 + len(layers), squeeze=False)
    part.suptitle(title, fontsize=10)
    for index, image in enumerate(images):
        _show(axes[index, 0], fade(image, np.ones_like(alive[index, 0])))
        for axis, layer in zip(axes[index, 1:], layers, strict=True):
            _show(axis, fade(image, alive[index, layer - 1]))
        _name(axes[index, 0], gallery, index)
    axes[0, 0].set_title("image", fontsize=8)
    for axis, layer in zip(axes[0, 1:], layers, strict=True):
        axis.set_title(f"layer {layer}\n{100 * alive[:, layer - 1].mean():.0f} %", fontsize=8)


def _name(axis: Axes, gallery: Gallery, index: int) -> None:
    colour = WRONG if gallery.caption(index).right is False else "black"
    axis.set_ylabel("\n".join(_lines(gallery, index)), rotation=0, ha="right", va="center", fontsize=8, color=colour)


def _lines(gallery: Gallery, index: int) -> list[str]:
    caption = gallery.caption(index)
    mark = {True: "✓ ", False: "✗ ", None: ""}[caption.right]
    return [
        f"{kind}: {shorten(text, 18, placeholder='…')}"
        for kind, text in (("label", caption.label), (f"{mark}predicted", caption.prediction))
    ]


def _show(axis: Axes, image: np.ndarray) -> None:
    axis.imshow(image, interpolation="nearest" if image.shape[0] <= 64 else "antialiased")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=True, linewidth=0.5, color="#BBBBBB")


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
