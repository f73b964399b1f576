"""The page: one file with the table, the figures and the images inside, that needs no network."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from sttabt.report.catalogue import catalogue
from sttabt.report.chart import chart
from sttabt.report.curves import Style, curve_styles
from sttabt.report.gallery import Gallery, ImageGallery, TextGallery
from sttabt.report.images import STRENGTH, faded_colour
from sttabt.report.overhead import TITLE as OVERHEAD
from sttabt.report.overhead import overhead_frame, overhead_lines, overhead_notes
from sttabt.report.pareto import panel_axes
from sttabt.report.points import Point
from sttabt.report.rivals import rival_notes, rival_tables
from sttabt.report.rows import METRICS
from sttabt.report.table import Column, approx_table, heading, notes, report_heading, table_columns


@dataclass(frozen=True)
class Section:
    """What the page shows of one data set."""

    heading: str
    unit: str  # of the scores
    columns: list[Column]
    points: Sequence[Point]
    first: int  # the page's number of the first point
    chart: dict[str, Any]
    layers: list[list[float]]  # occupancy at each boundary, by point
    approx_heads: list[str]
    approx: list[list[str]]


def write_page(
    path: Path,
    title: str,
    datasets: dict[str, list[Point]],
    figures: dict[str, Path],
    galleries: Sequence[tuple[str, Gallery]],
    start: str,
) -> Path:
    """Writes the page. `figures`: by name in the catalogue; `galleries`: (name, gallery), `start` is shown first."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_file("page.html.j2"))
    points = [point for own in datasets.values() for point in own]
    styles = curve_styles(points)
    entries = catalogue()
    rivals = rival_tables(datasets)
    firsts = accumulate((len(own) for own in datasets.values()), initial=0)
    overhead = overhead_frame(datasets)
    overhead_heads, overhead_cells = overhead_lines(overhead) if len(overhead) else ([], [])
    path.write_text(
        template.render(
            title=title,
            heading=report_heading(datasets),
            facts=_facts(points),
            style=Markup(_file("page.css")),
            script=Markup(_file("page.js")),
            costs=dict(panel_axes(points)),
            sections=[_section(own, styles, first) for own, first in zip(datasets.values(), firsts, strict=False)],
            overhead_title=OVERHEAD,
            overhead_heads=overhead_heads,
            overhead=overhead_cells,
            overhead_notes=overhead_notes(overhead) if len(overhead) else [],
            notes=notes(points),
            rivals=rivals,
            rivals_notes=rival_notes(rivals),
            figures=[
                (name, entries[name].title, _address(path.read_bytes()))
                for name, path in figures.items()
                if path.suffix == ".png"
            ],
            galleries=_galleries(galleries, start),
            token_key=_token_key([gallery for _, gallery in galleries]),
        ),
        encoding="utf-8",
    )
    return path


def _file(name: str) -> str:
    return files("sttabt.report").joinpath(name).read_text(encoding="utf-8")


def _section(points: Sequence[Point], styles: dict[str, Style], first: int) -> Section:
    rows = [row for point in points for row in point.rows]
    heads, approx = approx_table(rows)
    unit = METRICS[rows[0].metric].unit
    return Section(
        heading=heading(points),
        unit=unit,
        columns=table_columns(points),
        points=points,
        first=first,
        chart=chart(points, styles, first),
        layers=[_layers(point) for point in points],
        approx_heads=heads,
        approx=approx,
    )


def _facts(points: Sequence[Point]) -> list[tuple[str, str]]:
    """What a reader asks about the rows as a whole: (question, all values)."""
    rows = [row for point in points for row in point.rows]
    names = ("experiment", "device", "threads", "precision", "version", "commit", "sweep")
    facts = [(name, ", ".join(filter(None, dict.fromkeys(str(getattr(row, name)) for row in rows)))) for name in names]
    return [(name, values) for name, values in facts if values]  # without git there is no commit


def _layers(point: Point) -> list[float]:
    """Occupancy at each boundary, averaged over seeds."""
    columns = zip(*(row.occupancy_by_boundary for row in point.rows), strict=True)
    return [sum(column) / len(point.rows) for column in columns]


def _galleries(galleries: Sequence[tuple[str, Gallery]], start: str) -> dict[str, Any]:
    """Images once each, and for each gallery the number of boundaries at which every patch or word is alive."""
    images: dict[str, str] = {}
    sets = []
    for name, gallery in galleries:
        captions = [asdict(gallery.caption(index)) for index in range(len(gallery.labels))]
        shown: dict[str, Any] = {"name": name, "layers": int(gallery.layers), "captions": captions}
        if isinstance(gallery, TextGallery):
            lengths = [gallery.length(index) for index in range(len(captions))]
            lifetimes = gallery.alive.sum(axis=1)
            pieces = [gallery.pieces(index) for index in range(len(captions))]
            shown["words"] = [[text for text, _ in own] for own in pieces]
            shown["continues"] = [[continues for _, continues in own] for own in pieces]
            shown["lifetimes"] = [own[:length].tolist() for own, length in zip(lifetimes, lengths, strict=True)]
        elif isinstance(gallery, ImageGallery):
            shown["grid"] = [int(side) for side in gallery.grid]
            shown["images"] = [_keep(image, images) for image in gallery.images]
            shown["faded"] = [[*faded_colour(image), STRENGTH] for image in gallery.images]
            shown["lifetimes"] = gallery.patches_alive.sum(axis=1).reshape(len(captions), -1).tolist()
        sets.append(shown)
    first = next((index for index, each in enumerate(sets) if each["name"] == start), 0)
    return {"images": images, "sets": sets, "first": first}


def _token_key(galleries: Sequence[Gallery]) -> list[tuple[str, str]]:
    """(colour, meaning) of what is drawn over images and behind words."""
    images = [image for each in galleries if isinstance(each, ImageGallery) for image in each.images]
    colours = list(dict.fromkeys(faded_colour(image) for image in images))
    meaning = "a patch that is faded to this is dropped, or merged into others"
    found = [(f"rgb{colour}", meaning) for colour in colours]
    if any(isinstance(gallery, TextGallery) for gallery in galleries):
        found.append(("rgba(var(--mark), .6)", "a word is the darker, the more layers read it; a pale one is dropped"))
    return found


def _keep(image: Any, images: dict[str, str]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image).save(buffer, "PNG", optimize=True)
    key = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    images[key] = _address(buffer.getvalue())
    return key


def _address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
