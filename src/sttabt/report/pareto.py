"""The figure of a sweep: its metric against tokens kept, multiply-adds and measured time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sttabt.report.figures import COLOURS, OTHER_COLOURS, figure_style, save
from sttabt.report.points import Point, Value
from sttabt.report.rows import METRICS
from sttabt.report.table import heading

PANELS = (
    ("occupancy", "keep ratio (share of real tokens)"),
    ("macs_share", "multiply-adds (share of dense)"),
    ("time_ratio", "measured time (share of dense)"),
)
MARKERS = "osD^vPX<>p"
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))


def draw_pareto(points: Sequence[Point], folder: Path) -> Path:
    """Writes pareto.png, pareto.pdf and pareto.csv; returns the path of the first.

    A curve a method through the means over seeds, with bars of one standard deviation; soft scores are not drawn.
    """
    curves = {name: list(group) for name, group in groupby(points, key=lambda point: point.series)}
    with figure_style():
        figure = Figure(figsize=(10.5, 3.9), layout="constrained")
        axes = figure.subplots(1, len(PANELS), sharey=True)
        for panel, (name, title) in zip(axes, PANELS, strict=True):
            _draw_panel(panel, curves, name)
            panel.set_xlabel(title)
        metric = METRICS[points[0].rows[0].metric]
        axes[0].set_ylabel(f"{metric.title} ({metric.unit})")
        figure.suptitle(heading([row for point in points for row in point.rows]), fontsize=10)
        bars, labels = axes[0].get_legend_handles_labels()
        handles = [line for line, *_ in bars]  # without the error bars
        widest = max(len(label) for label in labels)
        columns = min(len(labels), max(1, int(150 / (widest + 8))))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        path = save(figure, folder, "pareto")
    _frame(points).to_csv(folder / "pareto.csv", index=False)
    return path


def _draw_panel(panel: Axes, curves: dict[str, list[Point]], name: str) -> None:
    everything = [point for points in curves.values() for point in points]
    if not any(point.value(name) for point in everything):
        panel.text(0.5, 0.5, "timing was off", ha="center", va="center", transform=panel.transAxes, color="#555555")
        panel.set_xticks([])
        panel.grid(False)
        return
    styles = _styles(curves)
    for series, points in curves.items():
        known = [(x, y) for point in points if (x := _place(point, name)) and (y := point.value("score"))]
        known.sort(key=lambda pair: pair[0].mean)
        dense = points[0].label == "dense"
        colour, marker, line = styles[series]
        if dense:
            for point in points:
                score = point.value("score")
                assert score is not None
                panel.axhline(100 * score.mean, color=colour, linestyle=":", linewidth=1)
        panel.errorbar(
            [x.mean for x, _ in known],
            [100 * y.mean for _, y in known],
            xerr=[x.deviation or 0 for x, _ in known] if any(x.deviation for x, _ in known) else None,
            yerr=[100 * (y.deviation or 0) for _, y in known] if any(y.deviation for _, y in known) else None,
            color=colour, marker="*" if dense else marker, linestyle=":" if dense else line, label=series,
            markersize=10 if dense else 5, linewidth=1.4, capsize=2, elinewidth=0.9,
        )  # fmt: skip
    places = [place for point in everything if (place := _place(point, name))]
    panel.set_xlim(0, 1.07 * max(place.mean + (place.deviation or 0) for place in places))
    missing = len(everything) - len(places)
    if missing:
        note = f"timing was off for {missing} point{'s' * (missing > 1)}"
        panel.set_title(note, fontsize=8, color="#555555")


def _place(point: Point, name: str) -> Value | None:
    """Where the point is on the panel's axis; the dense model's time is its own reference, measured or not."""
    value = point.value(name)
    return Value(1.0, None) if value is None and name == "time_ratio" and point.label == "dense" else value


def _styles(curves: dict[str, list[Point]]) -> dict[str, tuple]:
    """Colour by method, marker by curve, line by curve within the method."""
    labels = list(dict.fromkeys(points[0].label for points in curves.values()))
    others = [label for label in labels if label not in COLOURS]
    seen: dict[str, int] = {}
    styles = {}
    for index, (series, points) in enumerate(curves.items()):
        label = points[0].label
        colour = COLOURS.get(label) or OTHER_COLOURS[others.index(label) % len(OTHER_COLOURS)]
        nth = seen[label] = seen.get(label, -1) + 1
        styles[series] = (colour, MARKERS[index % len(MARKERS)], LINES[nth % len(LINES)])
    return styles


def _frame(points: Sequence[Point]) -> pd.DataFrame:
    lines = []
    for point in points:
        line: dict[str, object] = {"curve": point.series, "setting": point.setting, "seeds": len(point.rows)}
        for name in ("score", *(name for name, _ in PANELS)):
            value = point.value(name)
            line[name] = value.mean if value else None
            line[f"{name}_deviation"] = value.deviation if value else None
        lines.append(line)
    return pd.DataFrame(lines)
