"""From rows to points: rows that share everything but the seed become one point of one curve.

Data sets stay apart, and so do models of one data set: each has its own points, its own table and its own panels.
"""

from __future__ import annotations

import logging
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from sttabt.errors import UserError
from sttabt.report.rows import LABELS, Row

ONE_PANEL = ("split", "metric")  # rows of one model on one data set that differ here are not comparable
ONE_TABLE = ("dataset", "model", *ONE_PANEL)
# Where rows of one method differ here or in their `settings`, each value gets a curve of its own.
VARIANTS = ("experiment", "factor", "propagation", "samples", "device", "threads", "version", "commit")
SWEPT = ("p_logit", "keep_ratio", "merged", "mask_weight")  # what moves along a curve

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Value:
    """Mean and sample standard deviation over seeds; no deviation for one seed."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Point:
    """One setting of one method, measured with one seed or several."""

    label: str  # the method's name for readers
    variant: str  # what tells its curve from the method's other curves; mostly empty
    setting: str  # where it is on the curve, e.g. `p_logit -1.5`
    rows: tuple[Row, ...]
    chosen: tuple[str, ...] = ()  # its settings that were chosen by validation
    scattered: bool = False  # of a search: its curve has no order, and no line

    @property
    def series(self) -> str:
        """The name of the point's curve."""
        return f"{self.label}, {self.variant}" if self.variant else self.label

    def value(self, name: str) -> Value | None:
        """Mean and std of a field or property of the rows; None where a row does not have it.

        A value of a field that has several is named as in table.csv: `other_scores.f1`.
        """
        values = [value for row in self.rows if (value := _value(row, name)) is not None]
        if len(values) < len(self.rows):
            return None
        return Value(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def points_by_dataset(
    rows: Sequence[Row], chosen: Sequence[str] = (), along: Sequence[str] = ()
) -> dict[str, list[Point]]:
    """The points of each data set, sorted by its name; of several models on one: of each `MODEL on DATASET`.

    chosen, along: as `to_points`.

    Raises:
        UserError: rows of one of them differ in split or metric, so that they cannot share a panel.
    """
    models: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        models[row.dataset].add(row.model)
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.dataset, row.model)):
        groups[f"{row.model} on {row.dataset}" if len(models[row.dataset]) > 1 else row.dataset].append(row)
    for group, own in groups.items():
        for name in ONE_PANEL:
            values = sorted({str(getattr(row, name)) for row in own})
            if len(values) > 1:
                raise UserError(
                    f"the rows of {group} differ in {name} ({', '.join(values)}) and one panel shows one {name}: "
                    f"make a report for each from a folder that holds its rows alone"
                )
    return {group: to_points(own, chosen, along) for group, own in groups.items()}


def to_points(rows: Sequence[Row], chosen: Sequence[str] = (), along: Sequence[str] = ()) -> list[Point]:
    """Groups rows that share all settings but the seed: dense first, then by method, curve and cost.

    The settings `chosen` (see `best_by_validation`), and those of a search, `along`, may change along a curve and are
    named at each of its points.
    """
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.seed, row.config_hash, row.command)):
        key = (row.method, row.attention, *(getattr(row, name) for name in (*ONE_TABLE, *VARIANTS, *SWEPT)))
        key += tuple(sorted(row.settings.items()))
        groups[key].append(row)
    named = (*chosen, *along)
    varying = {label: [name for name in names if name not in named] for label, names in _varying(rows).items()}
    points = []
    for group in groups.values():
        first = group[0]
        variant = [f"{name} {spell(_variant(first, name))}" for name in varying[first.label]]
        if first.method == "backtracking" and first.keep_ratio is None:
            variant.append("dynamic count")
        setting = [f"{name} {spell(getattr(first, name))}" for name in SWEPT if getattr(first, name) is not None]
        own = tuple(name for name in named if name not in SWEPT and _variant(first, name) is not None)
        setting += [f"{name} {spell(_variant(first, name))}" for name in own]
        kind = tuple(name for name in own if name in chosen), bool(along)
        if len({row.seed for row in group}) == len(group):
            points.append(Point(first.label, ", ".join(variant), ", ".join(setting), tuple(group), *kind))
            continue
        # Two rows of one seed differ in something that a row does not name, so their mean would mean nothing.
        log.warning("%d rows of %s differ in more than the seed: they are shown apart", len(group), first.label)
        for row in group:
            apart = ", ".join([*setting, f"seed {row.seed}", f"config {row.config_hash}"])
            points.append(Point(first.label, ", ".join(variant), apart, (row,), *kind))
    return sorted(points, key=_order)


def point_frame(datasets: dict[str, list[Point]], names: Sequence[str]) -> pd.DataFrame:
    """A line a point: what it is, its score, and the fields `names`, each as mean and std over seeds."""
    lines = []
    for points in datasets.values():
        for point in points:
            first = point.rows[0]
            line: dict[str, object] = {"dataset": first.dataset, "model": first.model, "from": "rows"}
            line |= {"curve": point.series, "setting": point.setting, "seeds": len(point.rows), "metric": first.metric}
            for name in ("score", *names):
                value = point.value(name)
                line |= {name: value and value.mean, f"{name}_deviation": value and value.std}
            lines.append(line)
    return pd.DataFrame(lines)


def _varying(rows: Sequence[Row]) -> dict[str, list[str]]:
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
    return {
        label: [
            name
            for name in (*VARIANTS, *sorted({name for row in group for name in row.settings}))
            if len({_variant(row, name) for row in group}) > 1
        ]
        for label, group in by_label.items()
    }


def _variant(row: Row, name: str) -> object:
    return getattr(row, name) if name in VARIANTS else row.settings.get(name)


def _value(row: Row, name: str) -> float | None:
    field, _, key = name.partition(".")
    value = getattr(row, field)
    return value.get(key) if key and value is not None else value


def _order(point: Point) -> tuple:
    known = list(LABELS.values())
    rank = known.index(point.label) if point.label in known else len(known)
    first = point.rows[0]
    variants = tuple((value is None, str(value)) for value in (getattr(first, name) for name in VARIANTS))
    cost = statistics.fmean(row.macs_share for row in point.rows)
    one_table = tuple(getattr(first, name) for name in ONE_TABLE)
    return (rank, point.label, one_table, variants, point.variant, cost, point.setting)


def spell(value: object) -> str:
    """A setting's value for readers."""
    return f"{value:g}" if isinstance(value, float) else str(value)
