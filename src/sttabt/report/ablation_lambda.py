"""The heat maps of the concrete masks' loss weights: what they do to the score and to the tokens kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sttabt.report.ablation import ablations
from sttabt.report.figures import FULL_WIDTH, figure_style, save
from sttabt.report.literature import MODEL, published_lambdas
from sttabt.report.points import Point
from sttabt.report.rows import METRICS

NAMES = ("lambda_mask", "lambda_p")
LABEL = "published (BERT-base on CoLA, padded keep ratio)"
HEIGHT = 2.3  # inches of a line of panels

Cells = Mapping[tuple[float, float], float]  # by (lambda_mask, lambda_p)


def draw_ablation_lambda(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes ablation_lambda.*: score and keep ratio by λ_mask and λ_p; None without rows of several of both.

    Means over seeds; a pair without rows stays blank.
    """
    lines: list[tuple[str, str, Cells, Cells]] = []  # title, unit of the scores, score, keep ratio
    for points in datasets.values():
        first = points[0].rows[0]
        metric = METRICS[first.metric]
        own = ablations(points, NAMES)
        for each in own:
            cells = {pair: _means(point) for pair, point in each.points.items()}
            score: Cells = {pair: 100 * mean for pair, (mean, _) in cells.items()}
            keep: Cells = {pair: mean for pair, (_, mean) in cells.items()}
            lines.append(
                (f"{each.title}: {first.model} on {first.dataset}", f"{metric.title} ({metric.unit})", score, keep)
            )
        like = first.model == MODEL
        if own and like and (published := published_lambdas(first.dataset, first.metric)):
            theirs = {pair: 100 * value for pair, value in published.score.items()}
            lines.append((LABEL, f"{metric.title} ({metric.unit})", theirs, published.keep))
    if not lines:
        return None
    with figure_style():
        figure = Figure(figsize=(FULL_WIDTH, HEIGHT * len(lines)), layout="constrained")
        parts = figure.subfigures(len(lines), 1, squeeze=False)[:, 0]
        for part, (title, unit, score, keep) in zip(parts, lines, strict=True):
            left, right = part.subplots(1, 2)
            _draw_map(left, score, unit, "{:.1f}")
            _draw_map(right, keep, "keep ratio", "{:.3f}")
            part.suptitle(title, fontsize=9)
        path = save(figure, folder, "ablation_lambda")
    frame = [
        {"from": title, NAMES[0]: mask, NAMES[1]: p, "score": value / 100, "occupancy": keep[mask, p]}
        for title, _, score, keep in lines
        for (mask, p), value in score.items()
    ]
    pd.DataFrame(frame).to_csv(folder / "ablation_lambda.csv", index=False)
    return path


def _means(point: Point) -> tuple[float, float]:
    score, keep = point.value("score"), point.value("occupancy")
    assert score is not None and keep is not None, "every row has both"
    return score.mean, keep.mean


def _draw_map(panel: Axes, cells: Cells, title: str, form: str) -> None:
    masks = sorted({mask for mask, _ in cells})
    weights = sorted({p for _, p in cells})
    values = np.array([[cells.get((mask, p), np.nan) for p in weights] for mask in masks])
    image = panel.imshow(values, cmap="cividis", aspect="auto", origin="lower")
    panel.set_xticks(range(len(weights)), [f"{p:g}" for p in weights])
    panel.set_yticks(range(len(masks)), [f"{mask:g}" for mask in masks])
    panel.set(xlabel="λ_p", ylabel="λ_mask")
    panel.set_title(title, fontsize=8)
    panel.grid(False)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (line, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "black" if value > middle else "white"
            panel.text(column, line, form.format(value), ha="center", va="center", color=colour, fontsize=8)
    assert panel.figure is not None
    panel.figure.colorbar(image, ax=panel, fraction=0.05)
