"""What the page's charts are drawn from: points with their costs, and which of them no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sttabt.report.curves import Style, place
from sttabt.report.pareto import PANELS
from sttabt.report.points import Point
from sttabt.report.rows import METRICS
from sttabt.report.table import table_columns

COSTS = dict(PANELS)


def chart(points: Sequence[Point], styles: dict[str, Style], first: int) -> dict[str, Any]:
    """Of the points of one data set; the first of them is the page's row number `first`."""
    metric = METRICS[points[0].rows[0].metric]
    curves = list(dict.fromkeys(point.series for point in points))
    costs = [{name: value.mean for name in COSTS if (value := place(point, name))} for point in points]
    scores = [100 * score.mean for point in points if (score := point.value("score"))]
    fronts = {name: pareto_front([own.get(name) for own in costs], scores) for name in COSTS}
    columns = table_columns(points)[2:]  # method and setting are said first
    return {
        "metric": f"{metric.title} ({metric.unit})",
        "curves": [{"name": name, "colour": styles[name].colour} for name in curves],
        "points": [
            {
                "row": f"row-{first + index}",
                "curve": curves.index(point.series),
                "score": scores[index],
                "costs": costs[index],
                "front": [name for name, front in fronts.items() if index in front],
                "lines": [
                    ", ".join(part for part in (point.series, point.setting) if part),
                    *(f"{column.title}: {column.text(point)}" for column in columns),
                ],
            }
            for index, point in enumerate(points)
        ],
    }


def pareto_front(costs: Sequence[float | None], scores: Sequence[float]) -> list[int]:
    """Which points have a higher score than all that cost less or as much, by cost; those without a cost are none."""
    known = [
        (cost, -score, index) for index, (cost, score) in enumerate(zip(costs, scores, strict=True)) if cost is not None
    ]
    front: list[int] = []
    for _, _, index in sorted(known):
        if not front or scores[index] > scores[front[-1]]:
            front.append(index)
    return front
