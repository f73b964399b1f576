"""The figure of rivals: score against measured time of methods under one budget, where they are worth a look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sttabt.report.curves import Style, add_legend, curve_styles, draw_curves, place
from sttabt.report.figures import figure_style, save
from sttabt.report.points import Point, point_frame
from sttabt.report.rows import METRICS

NAME = "rivals_time"
TIMES = {  # the first that any point has
    "time_ratio_frozen": "measured time,\nshare of the frozen dense model's",
    "time_ratio": "measured time,\nshare of the dense model's",
}
BELOW = 0.12  # of a score, below the dense model's: what is further down would press the others together
PANEL, LEGEND, HEIGHT = 3.4, 3.1, 3.9  # inches
COLUMNS = 3


def draw_rivals_time(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes rivals_time.png, .pdf, .svg and .csv; returns the first, None where no budgets were timed.

    A panel a data set, of the dense model and of what has a budget and was timed, with one legend.
    """
    every = {name: timed(points) for name, points in datasets.items()}
    found = {name: points for name, points in every.items() if not all(point.dense for point in points)}
    if not found:
        return None
    styles = curve_styles([point for points in found.values() for point in points])
    with figure_style():
        columns = min(len(found), COLUMNS)
        lines = -(-len(found) // columns)
        figure = Figure(figsize=(PANEL * columns + LEGEND, HEIGHT * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for panel, points in zip(panels, found.values(), strict=False):  # the last line may have fewer
            _draw(panel, points, styles)
        for panel in list(figure.axes)[len(found) :]:
            panel.set_visible(False)
        add_legend(figure, styles, where="outside right upper")
        path = save(figure, folder, NAME)
    point_frame(found, list(TIMES)).to_csv(folder / f"{NAME}.csv", index=False)
    return path


def timed(points: Sequence[Point]) -> list[Point]:
    """The dense model, and what has a budget and a time."""
    axis = _axis(points)
    return [point for point in points if place(point, axis) and (point.dense or point.value("budget.asked"))]


def _axis(points: Sequence[Point]) -> str:
    return next((name for name in TIMES if any(point.value(name) for point in points)), "time_ratio")


def _draw(panel: Axes, points: Sequence[Point], styles: dict[str, Style]) -> None:
    axis, first = _axis(points), points[0].rows[0]
    metric = METRICS[first.metric]
    draw_curves(panel, points, styles, axis)
    scores = [score.mean for point in points if (score := point.value("score"))]
    top = next((point.value("score") for point in points if point.dense), None)
    highest = max(scores)
    lowest = max(min(scores), (top.mean if top else highest) - BELOW)
    margin = 5 * (highest - lowest) or 0.5
    panel.set_ylim(100 * lowest - margin, 100 * highest + margin)
    below = sum(score < lowest for score in scores)
    batches = sorted({int(row.time["batch_size"]) for point in points for row in point.rows if row.time})
    panel.set_xlabel(f"{TIMES[axis]}, batch {' and '.join(map(str, batches))}")
    panel.set_ylabel(f"{metric.title} on {first.split} ({metric.unit})")
    note = f"\n{below} {'points are' if below > 1 else 'point is'} further down" if below else ""
    panel.set_title(f"{first.model} on {first.dataset}{note}", fontsize=8)
