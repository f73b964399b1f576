"""Texts of the token figure: the same sentences under several methods, words shaded by the layers that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import fill, shorten

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

from sttabt.report.figures import FONT, WRONG
from sttabt.report.gallery import TextGallery

MOST_TOKENS = 60  # of a text; the rest is left out
WORD_SIZE = 7.5  # points
# All lengths below are inches.
COLUMN = 1.88  # words of a method; three fit into FULL_WIDTH
GAP = 0.12  # between columns
LABELS = 0.75  # what the texts are, on the left
LINE = 0.17  # a line of words
SPACE = 0.05  # between words
MARGIN = 0.08
TITLE, HEADS, FOOT, KEY = 0.3, 0.48, 0.3, 0.3  # heights: the block's title, its heads, under a text, the key of colours


@dataclass(frozen=True)
class Piece:
    """A token on the page: its index, what is written, its left edge and width in inches, and its line."""

    token: int
    text: str
    left: float
    width: float
    line: int


def texts_size(columns: Sequence[tuple[str, TextGallery]], texts: int) -> tuple[float, float]:
    """Width and height in inches of a block with so many texts."""
    height = sum(_lines(columns[0][1], index) * LINE + FOOT for index in range(texts))
    return 2 * MARGIN + LABELS + len(columns) * (COLUMN + GAP), TITLE + HEADS + height + KEY


def draw_texts(part: SubFigure, title: str, columns: Sequence[tuple[str, TextGallery]], texts: int) -> None:
    """A column a method, (title, gallery) of the same texts; each word is the darker, the more layers read it."""
    width, height = part.bbox.width / part.dpi, part.bbox.height / part.dpi
    axes = part.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))  # inches from the top left
    axes.axis("off")
    axes.text(MARGIN, TITLE / 2, title, fontsize=9, va="center", parse_math=False)
    for column, (name, gallery) in enumerate(columns):
        left = MARGIN + LABELS + column * (COLUMN + GAP)
        axes.text(
            left,
            TITLE + 0.05,
            fill(shorten(name, 84, placeholder="…"), 28),
            fontsize=7.5,
            va="top",
            weight="bold",
            parse_math=False,
        )
        top = TITLE + HEADS
        for index in range(texts):
            caption = gallery.caption(index)
            if column == 0 and caption.label:
                label = fill(shorten(caption.label, 24, placeholder="…"), 12)
                axes.text(MARGIN, top, f"label:\n{label}", fontsize=7.5, va="top", parse_math=False)
            _draw_text(axes, gallery, index, left, top)
            top += _lines(gallery, index) * LINE
            mark = {True: "✓ ", False: "✗ ", None: ""}[caption.right]
            said = f"{mark}predicted {shorten(caption.prediction, 16, placeholder='…')}, " if caption.prediction else ""
            axes.text(
                left, top + 0.03, f"{said}{100 * gallery.share(index):.0f} % kept",
                fontsize=7, va="top", color=WRONG if caption.right is False else "#555555", parse_math=False,
            )  # fmt: skip
            top += FOOT
    _draw_key(axes, int(columns[0][1].layers), top + 0.05)


def lay_out(pieces: Sequence[tuple[str, bool]]) -> list[Piece]:
    """Breaks (text, goes on with the word before) into lines of COLUMN inches; longer words break at any piece."""
    font = FontProperties(family=FONT, size=WORD_SIZE)
    widths = [text_to_path.get_text_width_height_descent(text, font, False)[0] / 72 for text, _ in pieces]
    starts = [index for index, (_, continues) in enumerate(pieces) if index == 0 or not continues]
    found: list[Piece] = []
    left, line = 0.0, 0
    for start, end in pairwise([*starts, len(pieces)]):
        if left and left + sum(widths[start:end]) > COLUMN:
            left, line = 0.0, line + 1
        for token in range(start, end):
            if left and left + widths[token] > COLUMN:
                left, line = 0.0, line + 1
            found.append(Piece(token, pieces[token][0], left, widths[token], line))
            left += widths[token]
        left += SPACE
    return found


def _lines(gallery: TextGallery, index: int) -> int:
    return lay_out(_pieces(gallery, index))[-1].line + 1


def _pieces(gallery: TextGallery, index: int) -> list[tuple[str, bool]]:
    pieces = gallery.pieces(index)
    return pieces if len(pieces) <= MOST_TOKENS else [*pieces[:MOST_TOKENS], ("…", False)]


def _draw_text(axes: Axes, gallery: TextGallery, index: int, left: float, top: float) -> None:
    layers = int(gallery.layers)
    for piece in lay_out(_pieces(gallery, index)):
        # The sign that a text goes on is no token.
        depth = int(gallery.depth[index, piece.token]) if piece.token < MOST_TOKENS else 0
        x, y = left + piece.left, top + piece.line * LINE
        _box(axes, x, y, piece.width, depth, layers)
        axes.text(
            x, y + LINE / 2, piece.text, fontsize=WORD_SIZE, va="center_baseline", color=_ink(depth, layers),
            parse_math=False,
        )  # fmt: skip


def _draw_key(axes: Axes, layers: int, top: float) -> None:
    left = MARGIN + LABELS
    axes.text(left, top + LINE / 2, "layers that read a word:", fontsize=8, va="center_baseline")
    for depth in range(layers + 1):
        x = left + 1.5 + depth * 0.2
        _box(axes, x, top, 0.2, depth, layers)
        axes.text(
            x + 0.1, top + LINE / 2, str(depth), fontsize=7, ha="center", va="center_baseline",
            color=_ink(depth, layers),
        )  # fmt: skip


def _box(axes: Axes, left: float, top: float, width: float, depth: int, layers: int) -> None:
    colour = colormaps["Blues"](0.08 + 0.8 * depth / layers) if depth else "white"
    axes.add_patch(Rectangle((left, top + 0.01), width, LINE - 0.02, facecolor=colour, linewidth=0))


def _ink(depth: int, layers: int) -> str:
    if not depth:
        return "#8A8A8A"
    return "white" if depth > 0.6 * layers else "black"
