"""The figure of the approximate attention: how far it is from the base model's, untrained and distilled."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sttabt.report.figures import FULL_WIDTH, figure_style, save
from sttabt.report.literature import MODEL, published_attention
from sttabt.report.points import Point
from sttabt.report.rows import Row

# The start of a network, as the keys of Row.approx end; `general` was distilled on a corpus without labels.
STARTS = {"random": "_random", "interpolated": "_interpolated", "general": "_general", "distilled": ""}
STYLES = {
    "random": ("#7F7F7F", "s"),
    "interpolated": ("#E69F00", "^"),
    "general": ("#009E73", "D"),
    "distilled": ("#0072B2", "o"),
}
KINDS = {"kl": "KL divergence", "mse": "mean squared error"}
LABEL = "published (BERT-base)"

Place = tuple[str, str, int]  # data set, model, factor


def draw_attention_quality(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes attention_quality.*: KL divergence and squared error by data set and factor; None without networks.

    Means over seeds with bars of one standard deviation.
    """
    frame = quality_frame(row for points in datasets.values() for point in points for row in point.rows)
    if frame.empty:
        return None
    places = list(dict.fromkeys(zip(frame["dataset"], frame["model"], frame["factor"], strict=True)))
    shown = [start for start in STARTS if start in set(frame["start"])]
    with figure_style():
        width = min(FULL_WIDTH, max(4.6, 1.6 + 0.8 * len(places)))
        figure = Figure(figsize=(width, 4.4), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True)
        for panel, (kind, title) in zip(panels, KINDS.items(), strict=True):
            _draw_panel(panel, frame, places, shown, kind)
            panel.set_ylabel(title)
            if frame[kind].max() > 10 * frame[kind].min() and kind == "mse":
                panel.set_yscale("log")
            else:
                panel.set_ylim(0, 1.08 * panel.dataLim.ymax)
        panels[1].set_xticks(range(len(places)), _names(places), fontsize=7.5)
        figure.suptitle("Distance of the approximate attention from the base model's", fontsize=9)
        handles = [
            Line2D([], [], color=STYLES[start][0], marker=STYLES[start][1], linestyle="none", label=start)
            for start in shown
        ]
        if set(frame["from"]) > {"rows"}:
            handles.append(
                Line2D([], [], color="#555555", marker="o", markerfacecolor="none", linestyle="none", label=LABEL)
            )
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles) if width > 5 else 3, frameon=False
        )
        path = save(figure, folder, "attention_quality")
    frame.to_csv(folder / "attention_quality.csv", index=False)
    return path


def quality_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """A line a data set, model, factor and start: mean and std over seeds; then what was published of them."""
    found: dict[tuple[Place, str, str], dict[tuple, float]] = defaultdict(dict)
    for row in rows:
        if row.approx is None or row.factor is None:
            continue
        for start, ending in STARTS.items():
            for kind in KINDS:
                if (key := f"{kind}{ending}") in row.approx:
                    # Rows of one network repeat its distances.
                    network = (row.seed, *row.approx.values())
                    found[(row.dataset, row.model, row.factor), start, kind][network] = row.approx[key]
    lines = []
    for place in sorted({place for place, _, _ in found}):
        for start in STARTS:
            own = {kind: list(found[place, start, kind].values()) for kind in KINDS if (place, start, kind) in found}
            if own:
                lines.append(
                    _line(place, start, "rows", {kind: statistics.fmean(v) for kind, v in own.items()})
                    | {f"{kind}_std": statistics.stdev(v) if len(v) > 1 else None for kind, v in own.items()}
                )
    for place in sorted({place for place, _, _ in found}):
        published = published_attention(place[0]) if place[1] == MODEL else {}
        for start in STARTS:
            own_values = {
                kind: published[start, place[2], kind] for kind in KINDS if (start, place[2], kind) in published
            }
            if own_values:
                lines.append(_line(place, start, LABEL, own_values))
    return pd.DataFrame(lines)


def _line(place: Place, start: str, source: str, values: dict[str, float]) -> dict[str, object]:
    return {"dataset": place[0], "model": place[1], "factor": place[2], "start": start, "from": source, **values}


def _draw_panel(panel: Axes, frame: pd.DataFrame, places: list[Place], shown: list[str], kind: str) -> None:
    for line in frame.to_dict("records"):
        place = places.index((line["dataset"], line["model"], line["factor"]))
        x = place + 0.16 * (shown.index(line["start"]) - (len(shown) - 1) / 2)
        colour, marker = STYLES[line["start"]]
        if line["from"] == "rows":
            std = line[f"{kind}_std"]
            error = None if pd.isna(std) else [std]
            panel.errorbar([x], [line[kind]], yerr=error, color=colour, marker=marker, markersize=5, capsize=2)
        else:
            panel.plot([x], [line[kind]], color=colour, marker=marker, markersize=6, markerfacecolor="none")
    panel.set_xlim(-0.6, len(places) - 0.4)
    panel.grid(axis="x", visible=False)


def _names(places: list[Place]) -> list[str]:
    """What the places differ in, and the rest once."""
    models = {model for _, model, _ in places}
    return [
        "\n".join([*([model] if len(models) > 1 else []), dataset.removeprefix("glue_"), f"factor {factor}"])
        for dataset, model, factor in places
    ]
