"""The figure of text data sets: a panel each, against tokens kept, counted in two ways, and against multiply-adds.

Published keep ratios count padding, this project's do not. They share an axis only where this project's are counted
in that way, too (`occupancy_padded`), and that axis says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sttabt.report.curves import (
    DASHED,
    Style,
    add_legend,
    curve_styles,
    draw_curves,
    draw_published,
    legend_height,
    palette,
)
from sttabt.report.figures import FULL_WIDTH, figure_style, save
from sttabt.report.literature import LABEL, MODEL, Published, curve_lines, published_curves
from sttabt.report.points import Point, point_frame
from sttabt.report.rows import METRICS
from sttabt.report.table import report_heading

PADDED = "occupancy_padded"
COSTS = {
    "occupancy": "keep ratio over real tokens",
    PADDED: "keep ratio over positions padded to the longest of 1,024 texts",
    "macs_share": "multiply-adds (share of the unpadded dense model's)",
}
MOST_COLUMNS = 5
WIDTH, HEIGHT = 2.3, 1.75  # of a panel among several, in inches


def draw_tasks(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes tasks.png, tasks.pdf, tasks.svg and tasks.csv; returns the path of the first, None without texts.

    Published curves are drawn of the methods that the rows of a data set have.
    """
    texts = {name: points for name, points in datasets.items() if all(point.value(PADDED) for point in points)}
    if not texts:
        return None
    colour = palette(point for points in texts.values() for point in points)
    styles = curve_styles([point for points in texts.values() for point in points], colour)
    published = {name: found for name, points in texts.items() if (found := _published(points))}
    alone = len(texts) == 1
    lines = -(-len(texts) // MOST_COLUMNS)
    columns = -(-len(texts) // lines)
    with figure_style():
        # One data set has its three panels beside each other, several have a block of panels a cost.
        width = FULL_WIDTH if alone else max(8.0, columns * WIDTH)
        height = 2.6 if alone else len(COSTS) * (lines * HEIGHT + 0.5)
        figure = Figure(figsize=(width, height + legend_height(list(styles), width)), layout="constrained")
        blocks = [figure] if alone else list(figure.subfigures(len(COSTS), 1, squeeze=False)[:, 0])
        shape = (1, len(COSTS)) if alone else (lines, columns)
        panels = np.concatenate([block.subplots(*shape, squeeze=False).ravel() for block in blocks])
        for index, (cost, title) in enumerate(COSTS.items()):
            beside = published if cost == PADDED else {}
            title += "; dashed: published" if beside else ""
            own = list(np.array_split(panels, len(COSTS))[index])
            _draw_panels(own, texts, styles, cost, beside, colour)
            if alone:
                own[0].set_xlabel(fill(title, 32))
            else:
                blocks[index].supxlabel(title, fontsize=9)
        if alone:
            figure.suptitle(report_heading(texts), fontsize=10)
        add_legend(figure, styles, [Line2D([], [], color="#555555", label=LABEL, **DASHED)] if published else [])
        path = save(figure, folder, "tasks")
    _frame(texts, published).to_csv(folder / "tasks.csv", index=False)
    return path


def _published(points: list[Point]) -> Published | None:
    """What was published of the data set, this model, and the methods that it has rows of."""
    first = points[0].rows[0]
    found = published_curves(first.dataset, first.metric) if first.model == MODEL else None
    labels = {point.label for point in points}
    return found and Published(found.dense, {label: own for label, own in found.curves.items() if label in labels})


def _draw_panels(
    panels: Sequence[Axes],
    texts: dict[str, list[Point]],
    styles: dict[str, Style],
    cost: str,
    published: dict[str, Published],
    colour: dict[str, str],
) -> None:
    for panel, (dataset, points) in zip(panels, texts.items(), strict=False):
        if dataset in published:
            draw_published(panel, published[dataset], colour)
        draw_curves(panel, points, styles, cost)
        panel.set_xlim(left=0)
        metric = METRICS[points[0].rows[0].metric]
        panel.set_ylabel(f"{metric.title}\n({metric.unit})", fontsize=8)
        panel.tick_params(labelsize=8)
        if len(texts) > 1:
            panel.set_title(f"{points[0].rows[0].dataset} ({points[0].rows[0].model})", fontsize=8.5)
    for panel in panels[len(texts) :]:
        panel.set_visible(False)


def _frame(texts: dict[str, list[Point]], published: dict[str, Published]) -> pd.DataFrame:
    frames = [point_frame(texts, list(COSTS))]
    for name, found in published.items():
        first = texts[name][0].rows[0]
        common = {"dataset": first.dataset, "from": LABEL, "metric": first.metric}
        frames.append(pd.DataFrame([common | line for line in curve_lines(found, PADDED)]))
    return pd.concat(frames).astype({"seeds": "Int64"})  # published points have none
