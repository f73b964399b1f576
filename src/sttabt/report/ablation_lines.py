"""Figures of one setting: p, how much a row's own impact weighs when importance is tracked back, and the factor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from sttabt.report.ablation import Ablation, ablations
from sttabt.report.curves import DASHED, MARKERS
from sttabt.report.figures import FULL_WIDTH, figure_style, save
from sttabt.report.labels import colours
from sttabt.report.literature import MODEL, Curve, published_propagation
from sttabt.report.points import Point
from sttabt.report.rows import METRICS, Row
from sttabt.report.table import heading

LABEL = "published (BERT-base)"
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
HEIGHT, LINE = 2.4, 0.15  # inches: panels of a data set, a line of their legend
COLUMNS = {
    "score": "",  # the metric's own title
    "occupancy": "keep ratio (real tokens)",
    "macs_share": "multiply-adds (share of dense)",
    "approx.kl": "KL of the attention",
}

Published = dict[tuple[str, int], Curve]  # by (method, factor)


def draw_ablation_p(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes ablation_p.*: score and keep ratio against p; None without rows of several p."""

    def published(row: Row) -> Published:
        return published_propagation(row.dataset, row.metric) if row.model == MODEL else {}

    return _draw(datasets, folder, "ablation_p", ("propagation", "p"), ("score", "occupancy"), published)


def draw_ablation_factor(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes ablation_factor.*: score, multiply-adds and divergence against the factor; None without several."""
    columns = ("score", "macs_share", "approx.kl")
    return _draw(datasets, folder, "ablation_factor", ("factor", "factor"), columns, lambda _: {})


def _draw(
    datasets: dict[str, list[Point]],
    folder: Path,
    name: str,
    setting: tuple[str, str],
    columns: Sequence[str],
    published: Callable[[Row], Published],
) -> Path | None:
    """A line of panels a data set; setting: (a field of the rows or one of their settings, what the axis calls it)."""
    found = {key: own for key, points in datasets.items() if (own := ablations(points, setting[:1]))}
    if not found:
        return None
    firsts = {key: datasets[key][0].rows[0] for key in found}
    heights = [HEIGHT + LINE * (len(own) + len(published(firsts[key]))) for key, own in found.items()]
    with figure_style():
        figure = Figure(figsize=(FULL_WIDTH, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(found), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (key, own) in zip(parts, found.items(), strict=True):
            panels = part.subplots(1, len(columns))
            handles = []
            theirs = published(firsts[key])
            colour = colours([*(each.label for each in own), *(label for label, _ in theirs)])
            for each, style in zip(own, _styles(own, colour), strict=True):
                for panel, field in zip(panels, columns, strict=True):
                    _draw_line(panel, each, field, style)
                handles.append(Line2D([], [], label=each.title, **style))
            for index, ((label, factor), curve) in enumerate(theirs.items()):
                style = DASHED | {"color": colour[label], "marker": "x+"[index % 2]}
                title = f"{label}, factor {factor}: {LABEL}"
                handles += panels[0].plot([x for x, _ in curve], [100 * y for _, y in curve], label=title, **style)
            for panel, field in zip(panels, columns, strict=True):
                metric = METRICS[firsts[key].metric]
                panel.set(xlabel=setting[1], ylabel=COLUMNS[field] or f"{metric.title} ({metric.unit})")
                _scale(panel, field, [value for each in own for (value,) in each.points], setting[1] == "factor")
            part.suptitle(heading(datasets[key]), fontsize=9)
            part.legend(handles=handles, loc="outside lower center", ncols=1, frameon=False, fontsize=7, handlelength=3)
        path = save(figure, folder, name)
    frames = [_frame(own, setting[1], columns, published(firsts[key])) for key, own in found.items()]
    pd.concat(frames).to_csv(folder / f"{name}.csv", index=False)
    return path


def _draw_line(panel: Axes, ablation: Ablation, field: str, style: dict[str, Any]) -> None:
    found = [(x, value) for (x,), point in ablation.points.items() if (value := point.value(field))]
    scale = 100 if field == "score" else 1
    panel.errorbar(
        [x for x, _ in found],
        [scale * value.mean for _, value in found],
        yerr=[scale * (value.std or 0) for _, value in found],
        capsize=2,
        elinewidth=0.8,
        **style,
    )


def _scale(panel: Axes, field: str, values: Sequence[float], doubling: bool) -> None:
    if doubling:
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
        panel.xaxis.set_minor_locator(NullLocator())
    if field != "score":
        panel.set_ylim(0, 1.08 * panel.dataLim.ymax)


def _styles(own: Sequence[Ablation], colour: dict[str, str]) -> list[dict[str, Any]]:
    """Colour by method, marker by ablation, line by ablation within the method."""
    before = [sum(other.label == each.label for other in own[:index]) for index, each in enumerate(own)]
    return [
        {"color": colour[each.label], "marker": MARKERS[index % len(MARKERS)], "markersize": 4.5,
         "linestyle": LINES[nth % len(LINES)], "linewidth": 1.3}
        for index, (each, nth) in enumerate(zip(own, before, strict=True))
    ]  # fmt: skip


def _frame(own: Sequence[Ablation], name: str, columns: Sequence[str], published: Published) -> pd.DataFrame:
    first = next(iter(own[0].points.values())).rows[0]
    common = {"dataset": first.dataset, "model": first.model, "metric": first.metric}
    lines: list[dict[str, object]] = []
    for each in own:
        for (x,), point in each.points.items():
            line = common | {"from": "rows", "curve": each.title, name: x, "seeds": len(point.rows)}
            for field in columns:
                value = point.value(field)
                line |= {field: value and value.mean, f"{field}_std": value and value.std}
            lines.append(line)
    for (label, factor), curve in published.items():
        title = f"{label}, factor {factor}"
        lines += [common | {"from": LABEL, "curve": title, name: x, "score": score} for x, score in curve]
    return pd.DataFrame(lines)
