"""From rows to points: rows that share everything but the seed become one point of one curve.

Data sets stay apart, and so do models of one data set: each has its own points, its own table and its own panels.
"""

from __future__ import annotations

import logging
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from sttabt.errors import UserError
from sttabt.report.labels import rank
from sttabt.report.rows import DENSE, Row

ONE_PANEL = ("split", "metric")  # rows of one model on one data set that differ here are not comparable
ONE_TABLE = ("dataset", "model", *ONE_PANEL)
# Where rows of one method differ here or in a setting that is not their knob, each value gets a curve of its own.
VARIANTS = ("experiment", "factor", "samples", "device", "threads", "precision", "version")
METHOD = ("method", "label", "knob")
COSTS = {"macs_share": "macs", "time_ratio": "time", "time_ratio_frozen": "frozen time"}  # that a budget may be of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Value:
    """Mean and sample standard deviation over seeds; std is None for one seed."""

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
    commit: str = ""  # of its rows, where it tells the curve apart

    @property
    def dense(self) -> bool:
        """Whether it is the model that all others are compared with."""
        return self.rows[0].method == DENSE

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

    Where a name is that of several data, each has its own points: see `data_apart`. chosen, along: as `to_points`.

    Raises:
        UserError: rows of one of them differ in split or metric, so that they cannot share a panel.
    """
    rows = data_apart(rows)
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

    A sweep may go on after a commit, so that rows of several are one curve; but where one seed of one setting was run
    by several, they are what is compared, and each has a curve of its own. The settings `chosen` (see
    `best_by_validation`), and those of a search, `along`, may change along a curve and are named at each of its points.
    """
    rows = sorted(rows, key=lambda row: (row.seed, row.config_hash, row.command))
    again = _run_again(rows)
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        groups[(*_setting(row), row.commit if row.label in again else "")].append(row)
    named = (*chosen, *along)
    varying = {label: [name for name in names if name not in named] for label, names in _varying(rows, again).items()}
    points = []
    for group in groups.values():
        first = group[0]
        values = [(name, value_of(first, name)) for name in varying[first.label] if name != first.knob]
        variant = [text for name, value in values if (text := describe(name, value))]
        setting = [] if first.knob is None else [f"{first.knob} {spell(first.knob_value)}"]
        if first.budget is not None:
            setting = [f"budget {spell(first.budget['asked'])} of {COSTS[first.budget_of or '']}"]
        own = tuple(name for name in named if name != first.knob and value_of(first, name) is not None)
        setting += [f"{name} {spell(value_of(first, name))}" for name in own]
        kind = tuple(name for name in own if name in chosen), bool(along), first.commit if first.label in again else ""
        if len({row.seed for row in group}) == len(group):
            points.append(Point(first.label, ", ".join(variant), ", ".join(setting), tuple(group), *kind))
            continue
        # Two rows of one seed differ in something that a row does not name, so their mean would mean nothing.
        log.warning("%d rows of %s differ in more than the seed: they are shown apart", len(group), first.label)
        for row in group:
            apart = ", ".join([*setting, f"seed {row.seed}", f"config {row.config_hash}"])
            points.append(Point(first.label, ", ".join(variant), apart, (row,), *kind))
    return sorted(points, key=_order)


def data_apart(rows: Sequence[Row]) -> list[Row]:
    """The rows, in their order; where a name is that of several data they are called `DATASET (data HASH)`.

    Rows that do not say what their data are belong to the only ones of that name.
    """
    hashes: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        hashes[row.dataset].add(row.data)
    several = {name for name, found in hashes.items() if len(found - {""}) > 1}
    return [replace(row, dataset=row.dataset + _which(row)) if row.dataset in several else row for row in rows]


def as_recorded(row: Row) -> Row:
    """A point's row under the name that its data set has in the row's file."""
    return replace(row, dataset=row.dataset.removesuffix(_which(row)))


def _which(row: Row) -> str:
    return f" (data {row.data or 'unknown'})"


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
                line |= {name: value and value.mean, f"{name}_std": value and value.std}
            lines.append(line)
    return pd.DataFrame(lines)


def value_of(row: Row, name: str) -> object:
    """Of a field that tells curves apart, or of a setting; None where the row's method has no such setting."""
    return getattr(row, name) if name in (*VARIANTS, "commit") else row.settings.get(name)


def set_settings(row: Row, but: Sequence[str] = ()) -> list[tuple[str, object]]:
    """The settings of a row that are set, but for those named, in order: what it shares with its other seeds.

    A text that is empty is not set: tables of older versions left it out.
    """
    return sorted((name, value) for name, value in row.settings.items() if name not in but and value not in (None, ""))


def asked_budget(row: Row) -> tuple[object, ...]:
    """What was asked of a row's cost; () where nothing was."""
    return () if row.budget is None else (row.budget_of, row.budget["asked"])


def describe(name: str, value: object) -> str:
    """What a value says of a curve, e.g. `factor 4`, or `dynamic` of what is on; "" of what is off or not set."""
    if value is None or value is False or value == "":
        return ""
    return name if value is True else f"{name} {spell(value)}"


def spell(value: object) -> str:
    """A setting's value for readers."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _setting(row: Row) -> tuple[object, ...]:
    """What a row shares with its other seeds, whatever commit ran them."""
    fields = (getattr(row, name) for name in (*METHOD, *ONE_TABLE, *VARIANTS))
    return (*fields, *asked_budget(row), *set_settings(row, but=row.found))


def _run_again(rows: Sequence[Row]) -> set[str]:
    """Labels of which several commits ran one seed of one setting, or some a tree that was changed after its commit."""
    commits: dict[str, set[str]] = defaultdict(set)
    seeds: dict[tuple, set[str]] = defaultdict(set)
    for row in rows:
        commits[row.label].add(row.commit)
        seeds[(row.label, row.seed, *_setting(row))].add(row.commit)
    found = {str(label) for (label, *_), own in seeds.items() if len(own) > 1}
    changed = {label for label, own in commits.items() if len(own) > 1 and any(one.endswith("+") for one in own)}
    for label in sorted(found | changed):
        named = ", ".join(one or "one unknown" for one in sorted(commits[label]))
        log.warning("%s was run by several commits (%s), which are shown apart", label, named)
    return found | changed


def _varying(rows: Sequence[Row], again: set[str]) -> dict[str, list[str]]:
    """By label: in what its rows differ, apart from what moves along their curves; `again` may in commits."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
    return {
        label: [
            name
            for name in (
                *VARIANTS,
                *(("commit",) if label in again else ()),
                *sorted({name for row in group for name in row.settings}),
            )
            if len({value_of(row, name) for row in group if name not in (row.knob, *row.found)}) > 1
        ]
        for label, group in by_label.items()
    }


def _value(row: Row, name: str) -> float | None:
    field, _, key = name.partition(".")
    value = getattr(row, field)
    return value.get(key) if key and value is not None else value


def _order(point: Point) -> tuple:
    first = point.rows[0]
    variants = tuple((value is None, str(value)) for value in (getattr(first, name) for name in VARIANTS))
    cost = statistics.fmean(row.macs_share for row in point.rows)
    one_table = tuple(getattr(first, name) for name in ONE_TABLE)
    return (rank(point.label), one_table, variants, point.variant, cost, point.setting)
