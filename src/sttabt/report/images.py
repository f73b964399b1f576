"""Images of the token figure: the patches that each layer reads, under several methods beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill, shorten

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from sttabt.report.figures import FULL_WIDTH, WRONG
from sttabt.report.gallery import ImageGallery

MOST_TILES = 10  # of all methods together; more layers than fit are thinned out evenly
STRENGTH = 0.88  # how far dropped patches fade
# All lengths below are inches.
MARGIN = 0.08
LABELS = 0.75  # what the images are, on the left
GAP = 0.16  # between methods
BETWEEN = 0.03  # between tiles
TITLE, HEADS, FOOT = 0.28, 0.62, 0.2  # heights: the block's title, its heads, under an image
KEY, SWATCH = 0.34, 0.22  # the height of the key, and the side of its tiles


def images_size(columns: Sequence[tuple[str, ImageGallery]], images: int) -> tuple[float, float]:
    """Width and height in inches of a block with so many images."""
    return FULL_WIDTH, TITLE + HEADS + images * (_tile(columns) + FOOT) + MARGIN + KEY


def draw_images(part: SubFigure, title: str, columns: Sequence[tuple[str, ImageGallery]], images: int) -> None:
    """A group of tiles a method, (name, gallery) of the same images; what a layer does not read is faded."""
    width, height = part.bbox.width / part.dpi, part.bbox.height / part.dpi
    page = part.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, width), ylim=(height, 0))  # inches from the top left
    page.axis("off")
    page.text(MARGIN, TITLE / 2, title, fontsize=9, va="center", parse_math=False)
    tile = _tile(columns)

    first = columns[0][1]
    left = MARGIN + LABELS
    for index in range(images):
        top = TITLE + HEADS + index * (tile + FOOT)
        label = fill(shorten(first.caption(index).label, 36, placeholder="…"), 12)
        if label:
            page.text(MARGIN, top + tile / 2, f"label:\n{label}", fontsize=7.5, va="center", parse_math=False)
        show(part, fade(first.images[index], np.ones_like(first.patches_alive[index, 0])), left, top, tile)
    for name, gallery in columns:
        left += tile + GAP
        layers = layers_shown(gallery, MOST_TILES // len(columns))
        heading = fill(shorten(name, 100, placeholder="…"), int(14 * len(layers) * (tile + BETWEEN)))
        page.text(left, TITLE + 0.02, heading, fontsize=7.5, va="top", weight="bold", parse_math=False)
        for number, layer in enumerate(layers):
            x = left + number * (tile + BETWEEN)
            share = gallery.patches_alive[:images, layer - 1].mean()
            head = f"layer {layer}\n{100 * share:.0f} %" if number == 0 else f"{layer}\n{100 * share:.0f} %"
            page.text(x + tile / 2, TITLE + HEADS - 0.04, head, fontsize=7, ha="center", va="bottom")
            for index in range(images):
                patches = gallery.patches_alive[index, layer - 1]
                show(part, fade(gallery.images[index], patches), x, TITLE + HEADS + index * (tile + FOOT), tile)
        for index in range(images):
            caption = gallery.caption(index)
            mark = {True: "✓ ", False: "✗ ", None: ""}[caption.right]
            said = f"{mark}predicted {shorten(caption.prediction, 40, placeholder='…')}" if caption.prediction else ""
            page.text(
                left, TITLE + HEADS + index * (tile + FOOT) + tile + 0.03, said,
                fontsize=7, va="top", color=WRONG if caption.right is False else "#555555", parse_math=False,
            )  # fmt: skip
        left += (len(layers) - 1) * (tile + BETWEEN)
    draw_key(part, page, first.images[0], MARGIN + LABELS, height - KEY)


def layers_shown(gallery: ImageGallery, most: int) -> list[int]:
    """So many layers at most, counted from 1, evenly; layer l reads what is alive at boundary l - 1."""
    layers = int(gallery.layers)
    return sorted({round(place) for place in np.linspace(1, layers, min(layers, most))})


def show(part: SubFigure, image: np.ndarray, left: float, top: float, side: float) -> None:
    """A tile with its upper left corner at so many inches from that of the block."""
    width, height = part.bbox.width / part.dpi, part.bbox.height / part.dpi
    axes = part.add_axes((left / width, 1 - (top + side) / height, side / width, side / height))
    axes.imshow(image, interpolation="nearest" if image.shape[0] <= 64 else "antialiased", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.5, color="#BBBBBB")


def draw_key(part: SubFigure, page: Axes, image: np.ndarray, left: float, top: float) -> None:
    """What whole and faded patches are, by an image of the block."""
    for faded, meaning in ((False, "patches that the layer reads"), (True, "dropped before it, or merged into others")):
        show(part, fade(image, np.full((1, 1), not faded)), left, top + 0.04, SWATCH)
        page.text(left + SWATCH + 0.07, top + 0.04 + SWATCH / 2, meaning, fontsize=7.5, va="center")
        left += 2.0


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


def _tile(columns: Sequence[tuple[str, ImageGallery]]) -> float:
    """The side of a tile: all fit into the width, the image itself before them."""
    counts = [len(layers_shown(gallery, MOST_TILES // len(columns))) for _, gallery in columns]
    room = FULL_WIDTH - 2 * MARGIN - LABELS - len(columns) * GAP - sum(count - 1 for count in counts) * BETWEEN
    return min(0.85, room / (1 + sum(counts)))
