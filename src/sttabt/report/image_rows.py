"""Images of the token figure under many methods: a line a method, with what each of some layers reads."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill, shorten

import numpy as np
from matplotlib.figure import SubFigure

from sttabt.report.figures import FULL_WIDTH, WRONG
from sttabt.report.gallery import ImageGallery
from sttabt.report.images import BETWEEN, GAP, KEY, MARGIN, TITLE, draw_key, fade, layers_shown, show

MOST_LAYERS = 5  # of an image; more are thinned out evenly
# All lengths below are inches.
NAMES = 1.45  # the methods, on the left
LABEL, HEAD, FOOT = 0.2, 0.12, 0.17  # heights: what the images are, the layers, under a line
LARGEST = 0.6  # of a tile


def rows_size(columns: Sequence[tuple[str, ImageGallery]], images: int) -> tuple[float, float]:
    """Width and height in inches of a block with so many images, all in every line."""
    lines = len(columns) * (_tile(columns, images) + FOOT)
    return FULL_WIDTH, TITLE + LABEL + HEAD + _tile(columns, images) + FOOT + lines + KEY + MARGIN


def draw_rows(part: SubFigure, title: str, columns: Sequence[tuple[str, ImageGallery]], images: int) -> None:
    """A line a method, (name, gallery) of the same images; what a layer does not read is faded."""
    width, height = part.bbox.width / part.dpi, part.bbox.height / part.dpi
    page = part.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, width), ylim=(height, 0))  # inches from the top left
    page.axis("off")
    page.text(MARGIN, TITLE / 2, title, fontsize=9, va="center", parse_math=False)
    tile, first = _tile(columns, images), columns[0][1]
    layers = layers_shown(first, MOST_LAYERS)
    begin = TITLE + LABEL + HEAD
    lefts = [MARGIN + NAMES + index * (len(layers) * (tile + BETWEEN) + GAP) for index in range(images)]
    for index, left in enumerate(lefts):
        label = shorten(first.caption(index).label, 36, placeholder="…")
        page.text(left, TITLE, f"label: {label}", fontsize=7.5, va="top", parse_math=False)
        whole = fade(first.images[index], np.ones_like(first.patches_alive[index, 0]))
        show(part, whole, left, TITLE + LABEL, tile)
        for number, layer in enumerate(layers):
            x = left + number * (tile + BETWEEN) + tile / 2
            head = f"layer {layer}" if number == 0 else str(layer)
            page.text(x, begin + tile + FOOT - 0.04, head, fontsize=7, ha="center", va="bottom")
    top = begin + tile + FOOT
    for name, gallery in columns:
        page.text(
            MARGIN, top, fill(shorten(name, 84, placeholder="…"), 24), fontsize=7, va="top", weight="bold",
            parse_math=False,
        )  # fmt: skip
        for index, left in enumerate(lefts):
            for number, layer in enumerate(layers_shown(gallery, MOST_LAYERS)):
                image = fade(gallery.images[index], gallery.patches_alive[index, layer - 1])
                show(part, image, left + number * (tile + BETWEEN), top, tile)
            caption = gallery.caption(index)
            mark = {True: "✓ ", False: "✗ ", None: ""}[caption.right]
            share = 100 * gallery.patches_alive[index, :-1].mean()
            page.text(
                left, top + tile + 0.03,
                f"{mark}predicted {shorten(caption.prediction, 24, placeholder='…')}, {share:.0f} % of patches read",
                fontsize=6.5, va="top", color=WRONG if caption.right is False else "#555555", parse_math=False,
            )  # fmt: skip
        top += tile + FOOT
    draw_key(part, page, first.images[0], MARGIN + NAMES, top)


def _tile(columns: Sequence[tuple[str, ImageGallery]], images: int) -> float:
    """The side of a tile: all images of a line fit into the width."""
    layers = max(len(layers_shown(gallery, MOST_LAYERS)) for _, gallery in columns)
    room = FULL_WIDTH - 2 * MARGIN - NAMES - (images - 1) * GAP
    return min(LARGEST, room / (images * layers) - BETWEEN)
