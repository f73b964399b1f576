"""The figure of a sweep: its metric against tokens kept, multiply-adds and measured time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sttabt.report.curves import Style, add_legend, curve_styles, draw_curves, place
from sttabt.report.figures import figure_style, save
from sttabt.report.points import Point
from sttabt.report.rows import METRICS
from sttabt.report.table import heading

PANELS = (
    ("occupancy", "keep ratio (share of real tokens)"),
    ("macs_share", "multiply-adds (share of dense)"),
    ("time_ratio", "measured time (share of dense)"),
)


def draw_pareto(datasets: dict[str, list[Point]], folder: Path) -> Path:
    """Writes pareto.png, pareto.pdf, pareto.svg and pareto.csv; returns the path of the first.

    A block of panels a data set, with one axis of scores; soft scores are not drawn. More than two data sets have
    smaller blocks, two beside each other.
    """
    styles = curve_styles([point for points in datasets.values() for point in points])
    many = len(datasets) > 2
    columns = 2 if many else 1
    lines = -(-len(datasets) // columns)
    with figure_style():
        figure = Figure(figsize=(15 if many else 10.5, 0.9 + (2.3 if many else 3.0) * lines), layout="constrained")
        blocks = figure.subfigures(lines, columns, squeeze=False).flat
        for block, points in zip(blocks, datasets.values(), strict=False):  # an odd number leaves a block empty
            panels = block.subplots(1, len(PANELS), sharey=True)
            for panel, (name, title) in zip(panels, PANELS, strict=True):
                _draw_panel(panel, points, styles, name)
                panel.set_xlabel(title, fontsize=8 if many else 9)
            metric = METRICS[points[0].rows[0].metric]
            panels[0].set_ylabel(f"{metric.title} ({metric.unit})")
            block.suptitle(heading(points), fontsize=9 if many else 10)
        add_legend(figure, styles)
        path = save(figure, folder, "pareto")
    _frame(datasets).to_csv(folder / "pareto.csv", index=False)
    return path


def _draw_panel(panel: Axes, points: Sequence[Point], styles: dict[str, Style], name: str) -> None:
    if not any(point.value(name) for point in points):
        panel.text(0.5, 0.5, "timing was off", ha="center", va="center", transform=panel.transAxes, color="#555555")
        panel.set_xticks([])
        panel.grid(False)
        return
    draw_curves(panel, points, styles, name)
    places = [found for point in points if (found := place(point, name))]
    panel.set_xlim(0, 1.07 * max(found.mean + (found.deviation or 0) for found in places))
    missing = len(points) - len(places)
    if missing:
        note = f"timing was off for {missing} point{'s' * (missing > 1)}"
        panel.set_title(note, fontsize=8, color="#555555")


def _frame(datasets: dict[str, list[Point]]) -> pd.DataFrame:
    lines = []
    for dataset, points in datasets.items():
        for point in points:
            line: dict[str, object] = {"dataset": dataset, "curve": point.series, "setting": point.setting}
            line |= {"seeds": len(point.rows), "metric": point.rows[0].metric}
            for name in ("score", *(name for name, _ in PANELS)):
                value = point.value(name)
                line[name] = value.mean if value else None
                line[f"{name}_deviation"] = value.deviation if value else None
            lines.append(line)
    return pd.DataFrame(lines)
