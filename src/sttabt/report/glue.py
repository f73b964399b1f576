"""The paper's figure of GLUE: nine panels against its own keep ratio, over padded positions."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sttabt.report.curves import (
    add_legend,
    curve_styles,
    draw_curves,
    draw_published,
    legend_height,
    palette,
    published_handles,
)
from sttabt.report.figures import FULL_WIDTH, figure_style, save
from sttabt.report.literature import LABEL, MODEL, curve_lines, glue_tasks, published_curves
from sttabt.report.points import Point, point_frame
from sttabt.report.rows import METRICS
from sttabt.report.tasks import PADDED

COLUMNS = 3
HEIGHT = 1.75  # inches of a panel


def draw_glue(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes glue.*, a panel a task and model; None without rows of GLUE.

    BERT-base has what was published of it beside its rows; tasks without rows show that alone, and say so. Other models
    stand alone.
    """
    of_glue = {name: points for name, points in datasets.items() if points[0].rows[0].dataset in glue_tasks()}
    if not of_glue or not all(point.value(PADDED) for points in of_glue.values() for point in points):
        return None
    every = [point for points in of_glue.values() for point in points]
    with_rows = {points[0].rows[0].dataset for points in of_glue.values()}
    panels = [(points[0].rows[0].dataset, points) for points in of_glue.values()]
    like = any(points[0].rows[0].model == MODEL for points in of_glue.values())
    panels += [(dataset, []) for dataset in glue_tasks() if like and dataset not in with_rows]
    panels.sort(key=lambda panel: panel[0])
    shown = [dataset for dataset, points in panels if _like(dataset, points)]
    found = {dataset: own for dataset in shown if (own := published_curves(dataset, glue_tasks()[dataset]))}
    lines = -(-len(panels) // COLUMNS)
    colour = palette(every, found.values())
    styles = curve_styles(every, colour)
    handles = published_handles(list(found.values()), every, colour, LABEL)
    below = 0.3 + legend_height([*styles, *(str(handle.get_label()) for handle in handles)], FULL_WIDTH)
    with figure_style():
        figure = Figure(figsize=(FULL_WIDTH, below + lines * HEIGHT), layout="constrained")
        axes = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
        for panel, (dataset, points) in zip(axes, panels, strict=False):
            metric = points[0].rows[0].metric if points else glue_tasks()[dataset]
            if _like(dataset, points):
                draw_published(panel, found[dataset], colour)
            draw_curves(panel, points, styles, PADDED)
            task = dataset.removeprefix("glue_")
            title = f"{task}, {points[0].rows[0].model}" if points else f"{task} (no rows: published alone)"
            panel.set_title(title, fontsize=7.5)
            panel.set_ylabel(f"{METRICS[metric].title} ({METRICS[metric].unit})", fontsize=7)
            panel.set_xlim(left=0)
            panel.tick_params(labelsize=7)
        for panel in axes[len(panels) :]:
            panel.set_visible(False)
        for panel in axes[len(panels) - COLUMNS : len(panels)]:
            panel.set_xlabel("padded keep ratio")
        figure.suptitle("GLUE, keep ratio over positions padded to the longest of 1,024 texts", fontsize=9)
        add_legend(figure, styles, handles)
        path = save(figure, folder, "glue")
    frames = [point_frame(of_glue, [PADDED])]
    for dataset, published in found.items():
        common = {"dataset": dataset, "from": LABEL, "metric": glue_tasks()[dataset]}
        frames.append(pd.DataFrame([common | line for line in curve_lines(published, PADDED)]))
    pd.concat(frames).astype({"seeds": "Int64"}).to_csv(folder / "glue.csv", index=False)
    return path


def _like(dataset: str, points: list[Point]) -> bool:
    """Whether a panel has what was published: of the same model in the same metric, or no rows at all."""
    return all((row.model, row.metric) == (MODEL, glue_tasks()[dataset]) for point in points for row in point.rows)
