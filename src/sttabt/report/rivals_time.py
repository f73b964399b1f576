"""The figure of rivals: score against measured time of methods under one budget, where they are worth a look."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.markers import CARETDOWN
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from sttabt.report.curves import (
    LEGEND_LINE,
    TUNED_LINE,
    Style,
    add_legend,
    curve_styles,
    draw_curves,
    legend_height,
    place,
    untuned,
)
from sttabt.report.figures import FULL_WIDTH, figure_style, save
from sttabt.report.points import Point, point_frame
from sttabt.report.rows import METRICS

NAME = "rivals_time"
BATCHES = ("time_ratio_frozen", "time_ratio")  # against the frozen dense model, and against the library's
SINGLES = ("single_time_ratio_frozen", "single_time_ratio")
BELOW = 0.12  # of a score, below the dense model's: what is further down would press the others together
TAIL = 8  # one point of so many is left out below, where the others then have twice the room
HEIGHT, COLUMNS = 2.5, 2  # inches, and panels beside each other
LETTERS = 54  # of a title that is as wide as a panel
WIDE = 4.0  # the longest time by the shortest, above which an axis is logarithmic
PAD = 0.06  # inches between panels, above each other
STEPS = (1, 2, 2.5, 5, 10)  # between ticks
GREY = "#555555"


@dataclass(frozen=True)
class Panel:
    """Points of one model on one data set, in batches or one sample at a time."""

    points: Sequence[Point]  # the dense model, and what has a budget
    names: tuple[str, str]  # BATCHES | SINGLES

    @cached_property
    def frozen(self) -> bool:
        """Whether times are against the frozen dense model; against the library's where that was not measured."""
        return any(point.value(self.names[0]) for point in self.points if not point.dense)

    @property
    def baseline(self) -> str:
        """The model that times are a share of."""
        return "frozen dense model" if self.frozen else "library's dense model"

    @property
    def axis(self) -> str:
        """The times that are drawn."""
        return self.names[0] if self.frozen else self.names[1]

    @cached_property
    def drawn(self) -> list[Point]:
        """The points that have a place."""
        return [point for point in self.points if place(point, self.axis)]

    @property
    def filled(self) -> bool:
        """Whether there is more than the dense model to see."""
        return any(not point.dense for point in self.drawn)

    @property
    def library(self) -> float | None:
        """What a time against the frozen dense model is against the library's; None where there is one of them alone.

        Each point has been timed beside both, so that they differ a little in it: this is their median.
        """
        both = [(point.value(self.names[0]), point.value(self.names[1])) for point in self.points]
        factors = [other.mean / frozen.mean for frozen, other in both if frozen and other]
        return statistics.median(factors) if factors else None


def draw_rivals_time(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes rivals_time.png, .pdf, .svg and .csv; returns the first, None where no budgets were timed.

    Of each data set a panel of batches and one of single samples, of the dense model and of what has a budget. Time is
    against the frozen dense model, and above, about, against the library's; the table has both of each point.
    """
    every = {name: timed(points) for name, points in datasets.items()}
    found = {name: points for name, points in every.items() if not all(point.dense for point in points)}
    lines = _grid(found.values())
    if not lines:
        return None
    panels = [panel for line in lines for panel in line]
    styles = curve_styles([point for points in found.values() for point in points])
    entries, keys = _entries(styles), _keys(panels, styles)
    with figure_style():
        figure = Figure(
            figsize=_size(lines, [*entries, *(str(key.get_label()) for key in keys)]),
            layout=ConstrainedLayoutEngine(h_pad=PAD),
        )
        ranges = {names: _range(panel for panel in panels if panel.names == names) for names in (BATCHES, SINGLES)}
        for axes, own in zip(figure.subplots(len(lines), len(lines[0]), squeeze=False), lines, strict=True):
            _draw_line(axes, own, styles, ranges)
        add_legend(figure, entries, keys, "outside right upper" if len(panels) == 1 else "outside lower center")
        path = save(figure, folder, NAME)
    point_frame(found, [*BATCHES, *SINGLES]).to_csv(folder / f"{NAME}.csv", index=False)
    return path


def timed(points: Sequence[Point]) -> list[Point]:
    """The dense model, and what has a budget and a time."""
    return [
        point
        for point in points
        if point.dense or (point.value("budget.asked") and any(map(point.value, (*BATCHES, *SINGLES))))
    ]


def _grid(datasets: Iterable[Sequence[Point]]) -> list[list[Panel]]:
    """A line of panels a data set, the longest first; where nothing was timed one at a time, two data sets a line."""
    every = [[panel for names in (BATCHES, SINGLES) if (panel := Panel(points, names)).filled] for points in datasets]
    if any(len(own) > 1 for own in every):
        return sorted(every, key=len, reverse=True)
    flat = [panel for own in every for panel in own]
    return [flat[start : start + COLUMNS] for start in range(0, len(flat), COLUMNS)]


def _size(lines: Sequence[Sequence[Panel]], labels: Sequence[str]) -> tuple[float, float]:
    """Inches: as wide as a page's text; labels: of the legend, beside one panel, and below several."""
    if len(lines) == len(lines[0]) == 1:
        return FULL_WIDTH, max(HEIGHT, LEGEND_LINE * (len(labels) + 1))
    return FULL_WIDTH, HEIGHT * len(lines) + legend_height(labels, FULL_WIDTH)


def _entries(styles: dict[str, Style]) -> dict[str, Style]:
    """The curves that a legend names: where a method is there fine-tuned and not, the latter."""
    return {
        series: style for series, style in styles.items() if untuned(series) == series or untuned(series) not in styles
    }


def _keys(panels: Sequence[Panel], styles: dict[str, Style]) -> list[Line2D]:
    """What a legend says besides the names of curves."""
    tuned = Line2D(
        [], [], color=GREY, marker="o", markersize=5, markerfacecolor="white", linestyle=TUNED_LINE, linewidth=1.4,
        label="dashed and open: fine-tuned",
    )  # fmt: skip
    baselines = {panel.baseline for panel in panels}
    upright = Line2D(
        [], [], color=GREY, marker="|", markersize=9, linestyle="none", markeredgewidth=0.8,
        label=f"time of the {baselines.pop() if len(baselines) == 1 else 'dense model'}",
    )  # fmt: skip
    return [tuned, upright] if any(untuned(series) != series for series in styles) else [upright]


def _range(panels: Iterable[Panel]) -> tuple[float, float]:
    """The least and the longest time of panels that share an axis, and the dense model's."""
    times = [value.mean for panel in panels for point in panel.drawn if (value := place(point, panel.axis))]
    return min([1.0, *times]), max([1.0, *times])


def _draw_line(
    line: Sequence[Axes],
    own: Sequence[Panel],
    styles: dict[str, Style],
    ranges: dict[tuple[str, str], tuple[float, float]],
) -> None:
    """Panels beside each other; those of one model have one axis of scores."""
    for axes, panel in zip(line, own, strict=False):  # the last line may have fewer
        _draw(axes, panel, styles, ranges[panel.names])
        if panel is not own[0] and panel.points is own[0].points:
            axes.set_ylabel("")
    for axes in line[len(own) :]:
        axes.set_visible(False)


def _draw(axes: Axes, panel: Panel, styles: dict[str, Style], times: tuple[float, float]) -> None:
    first = panel.points[0].rows[0]
    metric = METRICS[first.metric]
    low, high = _scores(panel.points)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    _time_axis(axes, panel, times)
    axes.axvline(1, color=GREY, linewidth=0.8, zorder=1)
    draw_curves(axes, panel.drawn, styles, panel.axis)
    for point in panel.points:
        if point.dense and not place(point, panel.axis) and (score := point.value("score")):
            axes.axhline(100 * score.mean, color=styles[point.series].colour, linestyle=":", linewidth=1)
    below = _mark_below(axes, panel, styles)
    axes.set_ylabel(f"{metric.title} on {first.split} ({metric.unit})")
    title = "\n".join(textwrap.wrap(f"{first.model} on {first.dataset}: {_what(panel)}", LETTERS))
    note = f"\n▼ {below} {'points are' if below > 1 else 'point is'} further down" if below else ""
    axes.set_title(title + note, fontsize=8)


def _what(panel: Panel) -> str:
    if panel.names == SINGLES:
        return "single samples"
    sizes = sorted({int(row.time["batch_size"]) for point in panel.drawn for row in point.rows if row.time})
    return f"batches of {' and '.join(map(str, sizes))}"


def _scores(points: Sequence[Point]) -> tuple[float, float]:
    """The lowest and the highest score of a panel, in percent."""
    scores = sorted(score.mean for point in points if (score := point.value("score")))
    top = next((score.mean for point in points if point.dense and (score := point.value("score"))), scores[-1])
    lowest = max(scores[0], top - BELOW)
    without = scores[len(scores) // TAIL]
    if scores[-1] - without < (scores[-1] - lowest) / 2:
        lowest = max(lowest, without)
    margin = 5 * (scores[-1] - lowest) or 0.5
    return 100 * lowest - margin, 100 * scores[-1] + margin


def _mark_below(axes: Axes, panel: Panel, styles: dict[str, Style]) -> int:
    """An arrow at the edge for each point below it; how many they are."""
    bottom = axes.get_ylim()[0]
    below = [point for point in panel.drawn if (score := point.value("score")) and 100 * score.mean < bottom]
    for point in below:
        if time := place(point, panel.axis):
            axes.plot(
                time.mean, 0.03, color=styles[point.series].colour, marker=CARETDOWN, markersize=5,
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
    return len(below)


def _time_axis(axes: Axes, panel: Panel, times: tuple[float, float]) -> None:
    """Times against the frozen dense model below, and against the library's above, where both are known."""
    least, most = times
    wide = most > WIDE * least
    if wide:
        axes.set_xscale("log")
        axes.set_xlim(least / 1.12, most * 1.12)
    else:
        space = 0.06 * (most - least) or 0.05
        axes.set_xlim(least - space, most + space)
    _ticks(axes.xaxis, wide)
    axes.set_xlabel(f"time, share of the {panel.baseline}'s")
    if panel.frozen and (factor := panel.library):
        above = axes.secondary_xaxis("top", functions=(partial(np.multiply, factor), partial(np.multiply, 1 / factor)))
        _ticks(above.xaxis, wide)
        above.set_xlabel("share of the library's dense model's (about)", color=GREY, fontsize=7)
        above.tick_params(colors=GREY, labelsize=7)
        above.spines["top"].set(visible=True, color=GREY, linewidth=0.6)


def _ticks(axis: XAxis, wide: bool) -> None:
    """Plain numbers, as many as have room."""
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)) if wide else MaxNLocator(7, steps=STEPS))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
