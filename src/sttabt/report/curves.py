"""Curves of a metric against a cost, and their colours, which are the same in every panel of a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from sttabt.report.labels import DENSE, colours, rank
from sttabt.report.literature import Published
from sttabt.report.points import Point, Value
from sttabt.settings.methods.base import TUNED

HOURGLASS, BOW = ((-1, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)), ((-1, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
CORNER = ((-1, -1), (-1, 1), (0, 1), (0, 0), (1, 0), (1, -1), (-1, -1))
TURNED = tuple((-x, -y) for x, y in CORNER)
MARKERS: tuple[Any, ...] = (*"osD^vPX<>pd", HOURGLASS, CORNER, BOW, TURNED, "h")  # all have an inside that can be open
DASHED: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.0, "marker": "x", "markersize": 4, "alpha": 0.75}
TUNED_LINE = (0, (3, 1.5))  # dashes are for what is fine-tuned alone
SHADES = (0.0, 0.6, 0.3)  # white in the markers of a method's first setting, of its second, ...

LEGEND_LINE = 0.16  # inches
LEGEND_FONT, ENTRY = 7.5, 6.3  # points; widths of a legend's line and its gaps beside a label, in them
LINE_OF_LABEL = 50  # letters: "back-tracking (approximate attention), fine-tuned" alone has nearly as many
LONGEST = 90  # letters of a label in a legend: a curve of many settings would be wider than the figure


@dataclass(frozen=True)
class Style:
    """How a curve is drawn: colour by method, marker and its shade by setting; dashed and open where fine-tuned."""

    colour: str
    marker: Any
    face: str  # colour within the marker
    line: Any
    size: int


def palette(points: Iterable[Point], published: Iterable[Published] = ()) -> dict[str, str]:
    """The colour of every label of a figure: of its rows and of the curves that others published."""
    return colours([*(point.label for point in points), *(label for found in published for label in found.curves)])


def curve_styles(points: Sequence[Point], colour: Mapping[str, str] | None = None) -> dict[str, Style]:
    """A style for each curve of all data sets of a figure, in the order in which tables show methods.

    colour: by label, where the figure has more labels than the points.
    """
    colour = colour or palette(points)
    firsts: dict[str, Point] = {}
    for point in points:
        firsts.setdefault(point.series, point)
    scattered = {point.series for point in points if point.scattered}
    settings: dict[str, list[str]] = {}  # of each method; both its curves, tuned or not, have the same marker
    markers: dict[str, Any] = {}
    styles: dict[str, Style] = {}
    for series, point in sorted(firsts.items(), key=lambda item: rank(item[1].label)):
        own, name = colour[point.label], untuned(series)
        marker = "*" if point.dense else markers.setdefault(name, MARKERS[len(markers) % len(MARKERS)])
        of_method = settings.setdefault(point.label.removesuffix(TUNED), [])
        if name not in of_method:
            of_method.append(name)
        tuned = name != series
        face = "white" if tuned else mixed(own, SHADES[of_method.index(name) % len(SHADES)])
        line = ":" if point.dense else "none" if series in scattered else TUNED_LINE if tuned else "-"
        styles[series] = Style(own, marker, face, line, 10 if point.dense else 5)
    return styles


def untuned(series: str) -> str:
    """The name of the curve of the same method and setting without fine-tuning, be it drawn or not."""
    return series.replace(TUNED, "", 1)


def mixed(colour: str, white: float) -> str:
    """The colour with a share of white in it."""
    red, green, blue = (white + (1 - white) * part for part in to_rgb(colour))
    return to_hex((red, green, blue))


def draw_curves(panel: Axes, points: Sequence[Point], styles: dict[str, Style], name: str, scale: float = 1.0) -> None:
    """A curve a method through the means over seeds, with bars of one standard deviation, against `scale * name`."""
    for series, group in groupby(points, key=lambda point: point.series):
        own, style = list(group), styles[series]
        known = [(x, y) for point in own if (x := place(point, name)) and (y := point.value("score"))]
        known.sort(key=lambda pair: pair[0].mean)
        if own[0].dense:
            for _, score in known:
                panel.axhline(100 * score.mean, color=style.colour, linestyle=":", linewidth=1)
        panel.errorbar(
            [scale * x.mean for x, _ in known],
            [100 * y.mean for _, y in known],
            xerr=[scale * (x.std or 0) for x, _ in known] if any(x.std for x, _ in known) else None,
            yerr=[100 * (y.std or 0) for _, y in known] if any(y.std for _, y in known) else None,
            color=style.colour, marker=style.marker, linestyle=style.line, markersize=style.size,
            markerfacecolor=style.face, linewidth=1.4, capsize=2, elinewidth=0.9,
        )  # fmt: skip


def place(point: Point, name: str) -> Value | None:
    """Where the point is on the panel's axis; the dense model is its own reference, measured or not."""
    value = point.value(name)
    return Value(1.0, None) if value is None and name in ("time_ratio", "budget.asked") and point.dense else value


def draw_published(panel: Axes, published: Published, colour: Mapping[str, str]) -> None:
    """Dashed curves of others, with crosses; colour: by label."""
    panel.axhline(100 * published.dense, color=DENSE, linestyle=DASHED["linestyle"], linewidth=0.8, alpha=0.6)
    for label, curve in published.curves.items():
        places, scores = zip(*curve, strict=True)
        panel.plot(places, [100 * score for score in scores], color=colour[label], **DASHED)


def published_handles(
    published: Sequence[Published], points: Iterable[Point], colour: Mapping[str, str], label: str
) -> list[Artist]:
    """For the legend: one for all published curves of methods that the points have, one each for the others."""
    others = sorted({method for found in published for method in found.curves} - {point.label for point in points})
    handles: list[Artist] = [Line2D([], [], color=colour[method], label=method, **DASHED) for method in others]
    return handles + ([Line2D([], [], color="#555555", label=label, **DASHED)] if published else [])


def add_legend(
    figure: Figure,
    styles: dict[str, Style],
    more: Sequence[Artist] = (),
    where: Literal["outside lower center", "outside right upper"] = "outside lower center",
) -> None:
    """Below all panels or beside them; `more` are labelled handles after the curves'."""
    handles: list[Artist] = [
        Line2D(
            [], [], color=style.colour, marker=style.marker, markerfacecolor=style.face, markersize=style.size,
            linestyle=style.line, linewidth=1.4, label=series,
        )
        for series, style in styles.items()
    ]  # fmt: skip
    handles += more
    for handle in handles:
        handle.set_label(short(str(handle.get_label())))
    labels = [str(handle.get_label()) for handle in handles]
    columns = 1 if where == "outside right upper" else legend_columns(labels, figure.get_figwidth())
    figure.legend(handles=handles, loc=where, ncols=columns, frameon=False, fontsize=LEGEND_FONT, handlelength=3)


def legend_columns(labels: Sequence[str], width: float) -> int:
    """How many columns of entries fit into so many inches; each is as wide as the longest of its own."""
    wide = [_inches(label) for label in labels]
    fitting = (
        columns
        for columns in range(len(labels), 0, -1)
        if sum(max(wide[start:end]) for start, end in _columns(len(labels), columns)) <= width - 0.1
    )
    return next(fitting, 1)


def legend_height(labels: Sequence[str], width: float) -> float:
    """Inches that the legend takes below the panels."""
    labels = [*map(short, labels)]
    lines = [label.count("\n") + 1 for label in labels]
    columns = _columns(len(labels), legend_columns(labels, width))
    return 0.15 + LEGEND_LINE * max(sum(lines[start:end]) for start, end in columns)


def short(label: str) -> str:
    """What fits into a legend, in a line or two; the table has the whole."""
    return textwrap.fill(textwrap.shorten(label, LONGEST, placeholder=" …"), LINE_OF_LABEL, break_on_hyphens=False)


def _columns(count: int, columns: int) -> Iterable[tuple[int, int]]:
    """Where the entries of each column begin and end: the first have one more, as matplotlib has it."""
    least, more = divmod(count, columns)
    return pairwise(accumulate([least + 1] * more + [least] * (columns - more), initial=0))


def _inches(label: str) -> float:
    """How wide an entry of a legend is."""
    lines = label.replace("$", "S").split("\n")  # dollars are no formulas here
    wide = max(TextPath((0, 0), f"{line}.", size=LEGEND_FONT).get_extents().width for line in lines)
    return float(wide + LEGEND_FONT * ENTRY) / 72
