"""The figure of a sweep: its metric against tokens kept, multiply-adds and measured time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sttabt.report.curves import Style, add_legend, curve_styles, draw_curves, legend_height, place
from sttabt.report.figures import FULL_WIDTH, figure_style, save
from sttabt.report.points import Point, point_frame
from sttabt.report.rows import METRICS
from sttabt.report.table import heading

PANELS = (
    ("occupancy", "keep ratio (share of real tokens)"),
    ("macs_share", "multiply-adds (share of dense)"),
    ("time_ratio", "measured time (share of dense)"),
    ("time_ratio_frozen", "measured time (share of frozen dense)"),
    ("budget.asked", "budget (share of dense)"),
)
MANY, HEAPED = 8, 0.25  # points that can heap up, and the share of the scores' range that their better half then fills
WHERE_KNOWN = ("time_ratio_frozen", "budget.asked")  # panels of rows that have them


def draw_pareto(datasets: dict[str, list[Point]], folder: Path) -> Path:
    """Writes pareto.png, pareto.pdf, pareto.svg and pareto.csv; returns the path of the first.

    A block of panels a data set, with one axis of scores; soft scores are not drawn. More than two data sets have
    smaller blocks, two beside each other. Where a few points are far below the others, which then heap up, a second
    line of panels shows these alone.
    """
    every = [point for points in datasets.values() for point in points]
    styles, panels_of = curve_styles(every), panel_axes(every)
    many = len(datasets) > 2
    columns = 2 if many else 1
    lines = -(-len(datasets) // columns)
    zooms = {name: None if many else heap(points) for name, points in datasets.items()}
    panel_lines = [1 + (zoom is not None) for zoom in zooms.values()]
    with figure_style():
        width = 15 if many else FULL_WIDTH
        height = legend_height(list(styles), width) + (2.3 * lines if many else 2.4 * sum(panel_lines))
        figure = Figure(figsize=(width, height), layout="constrained")
        heights = None if many else panel_lines
        blocks = figure.subfigures(lines, columns, squeeze=False, height_ratios=heights).flat
        for block, (dataset, points) in zip(blocks, datasets.items(), strict=False):  # an odd number leaves one empty
            zoom = zooms[dataset]
            panels = block.subplots(1 + (zoom is not None), len(panels_of), sharey="row", squeeze=False)
            metric = METRICS[points[0].rows[0].metric]
            for line in panels:
                for panel, (name, _) in zip(line, panels_of, strict=True):
                    _draw_panel(panel, points, styles, name)
                line[0].set_ylabel(f"{metric.title} ({metric.unit})")
            for panel, (name, title) in zip(panels[-1], panels_of, strict=True):
                panel.set_xlabel(_axis(name, title if len(panels_of) < 4 else title.replace(" (", "\n("), points))
            if zoom is not None:
                for panel, (name, _) in zip(panels[1], panels_of, strict=True):
                    _zoom_panel(panel, points, name, zoom)
                panels[1][0].set_ylabel(f"the better half,\n{metric.title} ({metric.unit})")
            block.suptitle(heading(points), fontsize=9 if many else 10)
        add_legend(figure, styles)
        path = save(figure, folder, "pareto")
    point_frame(datasets, [name for name, _ in panels_of]).to_csv(folder / "pareto.csv", index=False)
    return path


def panel_axes(points: Sequence[Point]) -> list[tuple[str, str]]:
    """(name, title) of the costs; those of WHERE_KNOWN only if any of the points has them."""
    return [each for each in PANELS if each[0] not in WHERE_KNOWN or any(point.value(each[0]) for point in points)]


def heap(points: Sequence[Point]) -> float | None:
    """The median score, where the better half of the points fills less than a quarter of the range of scores."""
    scores = _scores(points)
    low, middle, high = min(scores), statistics.median_high(scores), max(scores)
    return middle if len(scores) >= MANY and high - middle < HEAPED * (high - low) else None


def _scores(points: Sequence[Point]) -> list[float]:
    return [score.mean for point in points if (score := point.value("score"))]


def _zoom_panel(panel: Axes, points: Sequence[Point], name: str, lowest: float) -> None:
    """What has a score of `lowest` at least alone."""
    near = [point for point in points if _scores([point])[0] >= lowest]
    highest = max(_scores(near))
    margin = 12 * (highest - lowest) or 0.5
    panel.set_ylim(100 * lowest - margin, 100 * highest + margin)
    if places := [found.mean for point in near if (found := place(point, name))]:
        space = 0.07 * (max(places) - min(places)) or 0.05
        panel.set_xlim(min(places) - space, max(places) + space)
    panel.set_title("")  # the panel above says what was not measured


def _axis(name: str, title: str, points: Sequence[Point]) -> str:
    """The label of an axis; times of batches of several sizes share a panel, which says so."""
    sizes = sorted({int(row.time["batch_size"]) for point in points for row in point.rows if row.time})
    return f"{title}\nbatch {' and '.join(map(str, sizes))}" if name.startswith("time_ratio") and sizes else title


def _draw_panel(panel: Axes, points: Sequence[Point], styles: dict[str, Style], name: str) -> None:
    if not any(point.value(name) for point in points):
        panel.text(0.5, 0.5, "timing was off", ha="center", va="center", transform=panel.transAxes, color="#555555")
        panel.set_xticks([])
        panel.grid(False)
        return
    draw_curves(panel, points, styles, name)
    places = [found for point in points if (found := place(point, name))]
    panel.set_xlim(0, 1.07 * max(found.mean + (found.std or 0) for found in places))
    missing = len(points) - len(places)
    if missing and name != "budget.asked":  # what was asked is not measured
        what = "timing was off" if name == "time_ratio" else "not measured"
        note = f"{what}\nfor {missing} point{'s' * (missing > 1)}"  # panels beside it may say the like
        panel.set_title(note, fontsize=8, color="#555555")
