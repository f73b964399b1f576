"""The two figures of ImageNet: accuracy against the tokens kept, and against multiply-adds among other models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sttabt.report.curves import (
    MARKERS,
    add_legend,
    curve_styles,
    draw_curves,
    draw_published,
    legend_height,
    palette,
    published_handles,
)
from sttabt.report.figures import FULL_WIDTH, figure_style, save
from sttabt.report.literature import curve_lines, imagenet_macs, published_imagenet
from sttabt.report.points import Point, point_frame

DATASET = "imagenet"
LABEL = "published"
PANEL = 2.9  # inches of height
GREY = "#6B6B6B"

Models = dict[str, list[Point]]  # points of ImageNet by model


def draw_keep_ratio(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes imagenet_keep_ratio.*, a panel a model with what was published of it; None without rows of ImageNet."""
    models = _models(datasets)
    if not models:
        return None
    published = {model: found for model in models if (found := published_imagenet(model))}
    every = [point for points in models.values() for point in points]
    colour = palette(every, published.values())
    styles = curve_styles(every, colour)
    handles = published_handles(list(published.values()), every, colour, LABEL)
    columns = min(len(models), 2)
    lines = -(-len(models) // columns)
    width = FULL_WIDTH if columns > 1 else 4.6
    below = legend_height([*styles, *(str(handle.get_label()) for handle in handles)], width)
    with figure_style():
        figure = Figure(figsize=(width, below + PANEL * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel, (model, points) in zip(panels, models.items(), strict=False):
            if model in published:
                draw_published(panel, published[model], colour)
            draw_curves(panel, points, styles, "occupancy")
            panel.set_xlim(0, 1.04)
            panel.set(xlabel="keep ratio", ylabel="accuracy on ImageNet (%)")
            panel.set_title(model, fontsize=9)
        for panel in panels[len(models) :]:
            panel.set_visible(False)
        add_legend(figure, styles, handles)
        path = save(figure, folder, "imagenet_keep_ratio")
    frames = [point_frame(models, ("occupancy",))]
    for model, found in published.items():
        common = {"dataset": DATASET, "model": model, "from": LABEL, "metric": "accuracy"}
        frames.append(pd.DataFrame([common | line for line in curve_lines(found, "occupancy")]))
    pd.concat(frames).to_csv(folder / "imagenet_keep_ratio.csv", index=False)
    return path


def draw_macs(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes imagenet_macs.*, all models in one panel beside the literature's; None without rows of ImageNet."""
    models = _models(datasets)
    if not models:
        return None
    points = [
        replace(point, variant=", ".join(part for part in (model if len(models) > 1 else "", point.variant) if part))
        for model, own in models.items()
        for point in own
    ]
    styles = curve_styles(points)
    with figure_style():
        figure = Figure(figsize=(FULL_WIDTH, 3.9), layout="constrained")
        panel = figure.subplots()
        handles: list[Artist] = [Line2D([], [], linestyle="none", label="literature (published):")]
        for index, (name, curve) in enumerate(sorted(imagenet_macs().items())):
            shares, scores = zip(*curve, strict=True)
            handles += panel.plot(
                shares, [100 * score for score in scores], color=GREY, marker=MARKERS[index % len(MARKERS)],
                markerfacecolor=GREY if index < len(MARKERS) else "white", markersize=4.5, linestyle=":",
                linewidth=0.8, label=name,
            )  # fmt: skip
        draw_curves(panel, points, styles, "macs_total", scale=1e-9)
        panel.set(xlabel="multiply-adds (G), everything counted", ylabel="accuracy on ImageNet (%)")
        panel.set_xlim(left=0)
        panel.set_title(", ".join(models), fontsize=9)
        add_legend(figure, styles, handles, where="outside right upper")
        path = save(figure, folder, "imagenet_macs")
    literature = [
        {"curve": name, "from": LABEL, "macs_total": 1e9 * macs, "score": score}
        for name, curve in sorted(imagenet_macs().items())
        for macs, score in curve
    ]
    frame = pd.concat([point_frame(models, ("macs_total",)), pd.DataFrame(literature)])
    frame.to_csv(folder / "imagenet_macs.csv", index=False)
    return path


def _models(datasets: dict[str, list[Point]]) -> Models:
    firsts = {points[0].rows[0].model: points for points in datasets.values() if _of_imagenet(points)}
    return dict(sorted(firsts.items()))


def _of_imagenet(points: Sequence[Point]) -> bool:
    first = points[0].rows[0]
    return (first.dataset, first.metric) == (DATASET, "accuracy")
