"""The figure of a search: all settings tried, by validation score and multiply-adds, and the front among them."""

from __future__ import annotations

from itertools import cycle, groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sttabt.report.curves import MARKERS
from sttabt.report.figures import FULL_WIDTH, figure_style, save
from sttabt.report.front import front
from sttabt.report.points import Point, asked_budget, point_frame
from sttabt.report.rows import METRICS

COST, SCORE = "validation.macs_share", "validation.score"
PLAIN = "#56B4E9"
FRONT = "#D55E00"
HEIGHT = 3.2  # inches of a panel


def draw_search(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes search.*; None where no method was tried with several values of two settings or more.

    A panel a data set, a marker a method. Colour is the method's knob, where several values of it were tried.
    """
    panels = {name: own for name, points in datasets.items() if (own := _searched(points))}
    if not panels:
        return None
    with figure_style():
        columns = min(2, len(panels))
        lines = -(-len(panels) // columns)
        size = (FULL_WIDTH if columns > 1 else 4.6, HEIGHT * lines)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel, points in zip(grid, panels.values(), strict=False):
            _draw(panel, points)
        for panel in grid[len(panels) :]:
            panel.set_axis_off()
        path = save(figure, folder, "search")
    frame = point_frame(panels, [SCORE, COST])
    on_front = [index in {*front(_results(points))} for points in panels.values() for index in range(len(points))]
    frame.assign(front=on_front).to_csv(folder / "search.csv", index=False)
    return path


def _searched(points: list[Point]) -> list[Point]:
    """The points of methods that were tried with several values of two settings or more."""
    found = []
    for _, group in groupby(points, key=lambda point: point.label):
        own = [point for point in group if point.value(SCORE)]
        tried = [_settings(point) for point in own]
        names = {name for each in tried for name in each}
        if sum(len({each.get(name) for each in tried}) > 1 for name in names) > 1:
            found += own
    return found


def _settings(point: Point) -> dict[str, object]:
    """What was tried: a budget stands for all settings that were found for it."""
    first = point.rows[0]
    given = {name: value for name, value in first.settings.items() if name not in first.found}
    return {**given, "factor": first.factor, "budget": asked_budget(first)}


def _results(points: list[Point]) -> list[tuple[float, float]]:
    pairs = [(point.value(COST), point.value(SCORE)) for point in points]
    return [(cost.mean, score.mean) for cost, score in pairs if cost and score]


def _draw(panel: Axes, points: list[Point]) -> None:
    first = points[0].rows[0]
    metric = METRICS[first.metric]
    costs, scores = map(np.array, zip(*_results(points), strict=True))
    scores = 100 * scores
    best = front(list(zip(costs, scores, strict=True)))
    panel.step(costs[best], scores[best], where="post", color=FRONT, linewidth=1, zorder=1)
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": FRONT, "linewidths": 1.2}
    panel.scatter(costs[best], scores[best], s=70, zorder=3, label="front", **ring)
    for label, marker in zip(dict.fromkeys(point.label for point in points), cycle(MARKERS), strict=False):
        own = [index for index, point in enumerate(points) if point.label == label]
        knob, values = _knob([points[index] for index in own])
        look: dict[str, Any] = {"c": values, "cmap": "viridis"} if knob else {"color": PLAIN}
        shown = panel.scatter(costs[own], scores[own], s=22, marker=marker, label=label, zorder=2, **look)
        if knob:
            assert panel.figure is not None
            panel.figure.colorbar(shown, ax=panel, fraction=0.05, label=knob)
    panel.set_xlabel("multiply-adds on validation (share of dense)")
    panel.set_ylabel(f"{metric.title} on validation ({metric.unit})")
    panel.set_title(f"{first.model} on {first.dataset}", fontsize=9)
    panel.legend(frameon=False, fontsize=7.5, loc="best")


def _knob(points: list[Point]) -> tuple[str, list[float]]:
    """The setting that moves along the curve of one method and its values; ("", []) where it has but one number."""
    firsts = [point.rows[0] for point in points]
    values = [row.knob_value for row in firsts]
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    names = {row.knob for row in firsts}
    if len(names) > 1 or len(numbers) < len(values) or len(set(numbers)) < 2:
        return "", []
    return firsts[0].knob or "", numbers
