"""A result in the forms that loggers show: the row as named values, its tokens as pictures, shaded text and a table."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sttabt.report.gallery import Caption, Gallery, ImageGallery, TextGallery
from sttabt.report.images import fade
from sttabt.report.rows import Row

SIDE = 112  # pixels that the shorter side of a small image is enlarged to
GAP = 4  # pixels of white between images


def result_values(row: Row) -> dict[str, Any]:
    """`result/<field>` of everything that a row holds and measures; what it did not measure is not there."""
    measured = {name: getattr(row, name) for name in ("macs_total", "macs_share", "time_ratio", "time_ratio_frozen")}
    return dict(_flat("result", row.to_dict() | measured))


def strips(gallery: ImageGallery) -> list[tuple[np.ndarray, str]]:
    """A picture a sample, uint8 (height, width, 3), with its caption: the image, then what each layer reads of it."""
    found = []
    for index, image in enumerate(gallery.images):
        times = max(1, SIDE // min(image.shape[:2]))
        alive = gallery.patches_alive[index, :-1]
        shown = [fade(image, np.ones_like(alive[0])), *(fade(image, patches) for patches in alive)]
        gap = np.full((image.shape[0] * times, GAP, 3), 255, dtype=np.uint8)
        parts = [part for each in shown for part in (each.repeat(times, 0).repeat(times, 1), gap)]
        found.append((np.concatenate(parts[:-1], axis=1), _line(gallery.caption(index))))
    return found


def shaded(gallery: TextGallery) -> str:
    """A page: every text with its caption, each word the darker, the more layers read it."""
    layers = int(gallery.layers)
    texts = []
    for index in range(len(gallery.labels)):
        words = []
        for (word, continues), depth in zip(gallery.pieces(index), gallery.depth[index], strict=False):
            style = f"background:rgba(0,114,178,{0.75 * depth / layers:.2f})" if depth else "color:#999"
            title = f"read by {depth} of {layers} layers"
            words.append(f'{"" if continues else " "}<span style="{style}" title="{title}">{html.escape(word)}</span>')
        caption = html.escape(f"{_line(gallery.caption(index))}, occupancy {gallery.share(index):.2f}")
        texts.append(f"<p>{''.join(words).strip()}<br><small>{caption}</small></p>")
    return f'<body style="font-family:sans-serif">{"".join(texts)}</body>'


def table(gallery: Gallery) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows, a row a sample: what it is, what was predicted, and what each layer still reads.

    Of images that is the number of tokens, of texts the words.
    """
    layers = int(gallery.layers)
    columns = ["sample", "label", "prediction", "occupancy", *(f"layer {layer}" for layer in range(1, layers + 1))]
    rows: list[list[Any]] = []
    for index in range(len(gallery.labels)):
        caption, alive = gallery.caption(index), gallery.alive[index]
        read: list[Any] = alive[:-1].sum(-1).tolist()
        if isinstance(gallery, TextGallery):
            alive = alive[:, : gallery.length(index)]
            read = [" ".join(gallery.words[index, : alive.shape[-1]][each]) for each in alive[:-1]]
        rows.append([index, caption.label, caption.prediction, float(alive.mean()), *read])
    return columns, rows


def _line(caption: Caption) -> str:
    mark = {True: " (right)", False: " (wrong)", None: ""}[caption.right]
    return f"label {caption.label}, predicted {caption.prediction}{mark}"


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}/{key}", inner)
    elif value is not None and value != []:
        yield name, value
