"""The figure of the tokens: which patches of some images, or words of some texts, each layer still reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from sttabt.report.figures import WRONG, figure_style, save
from sttabt.report.gallery import Gallery, ImageGallery, TextGallery

MOST_LAYERS = 8  # columns; more layers than that are thinned out evenly
MOST_IMAGES = 4  # images or texts of a block
MOST_WORDS = 40  # of a text; the rest is left out
CELL = 0.2  # inches a word is wide
LINE = 0.11  # inches a layer of a text is high
TILE = 0.9  # inches
LETTER = 0.075  # inches a letter of the labels
LONGEST_WORD = 12  # letters
STRENGTH = 0.88  # how far dropped patches fade


def draw_tokens(blocks: Sequence[tuple[str, Gallery]], folder: Path) -> Path:
    """Writes tokens.png and tokens.pdf, one block of images a title; returns the path of the first."""
    sizes = [_size(gallery) for _, gallery in blocks]
    heights = [height for _, height in sizes]
    widest = max(len(line) for _, g in blocks for index in range(len(g.labels)) for line in _lines(g, index))
    with figure_style():
        width = max(width for width, _ in sizes) + widest * LETTER
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (title, gallery) in zip(parts, blocks, strict=True):
            if isinstance(gallery, TextGallery):
                _draw_texts(part, title, gallery)
            elif isinstance(gallery, ImageGallery):
                _draw_images(part, title, gallery)
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.set(w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01)  # type: ignore[call-arg]
        return save(figure, folder, "tokens")


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


def _size(gallery: Gallery) -> tuple[float, float]:
    """Width, without the labels, and height of a block in inches."""
    shown = min(len(gallery.labels), MOST_IMAGES)
    if isinstance(gallery, TextGallery):
        return max(6.0, MOST_WORDS * CELL), shown * (int(gallery.layers) * LINE + LONGEST_WORD * LETTER) + 0.6
    return (1 + len(_layers(gallery))) * TILE, shown * TILE + 0.92


def _draw_texts(part: SubFigure, title: str, gallery: TextGallery) -> None:
    """A map a text: a column a word, a row a layer, dark where the layer reads the word."""
    shown, layers = min(len(gallery.labels), MOST_IMAGES), int(gallery.layers)
    axes = part.subplots(shown, 1, squeeze=False)[:, 0]
    part.suptitle(f"{title}: words that each layer reads, first layer on top", fontsize=10)
    for index, axis in enumerate(axes):
        length = min(gallery.length(index), MOST_WORDS)
        axis.imshow(gallery.alive[index, :-1, :length], cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
        words = [shorten(str(word), LONGEST_WORD, placeholder="…") or "…" for word in gallery.words[index, :length]]
        axis.set_xticks(range(length), words, rotation=90, fontsize=6)
        axis.set_yticks([0, layers - 1], ["1", str(layers)], fontsize=6)
        axis.set_xlim(-0.5, MOST_WORDS - 0.5)
        axis.tick_params(length=0)
        axis.grid(False)
        _name(axis, gallery, index)


def _draw_images(part: SubFigure, title: str, gallery: ImageGallery) -> None:
    images = gallery.images[:MOST_IMAGES]
    alive = gallery.patches_alive[:MOST_IMAGES]
    layers = _layers(gallery)
    axes = part.subplots(len(images), 1 + len(layers), squeeze=False)
    part.suptitle(f"{title}:\npatches that each layer reads", fontsize=10)
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
