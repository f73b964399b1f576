"""Tables of the results: for people (markdown, also on the page) and for programs (all columns, comma separated)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from sttabt.report.csv_rows import flat_row, write_table
from sttabt.report.markup import markdown_table, write_latex
from sttabt.report.points import ONE_TABLE, Point, Value, as_recorded, data_apart, to_points
from sttabt.report.rows import APPROX_KEYS, FOUND, METRICS, Row


@dataclass(frozen=True)
class Column:
    """One column of the table for people."""

    title: str
    text: Callable[[Point], str]
    key: Callable[[Point], float | str | None]  # what the column is sorted by; None has no value
    number: bool = True


def format_table(rows: Sequence[Row]) -> str:
    """A markdown table of the rows, dense first, then by method and cost; one table a model and data set.

    Rows that share everything but the seed are one line: mean ± sample standard deviation over n seeds.
    """
    rows = sorted(data_apart(rows), key=_comparable)
    return "\n".join(format_points(to_points(list(group))) for _, group in groupby(rows, key=_comparable))


def format_points(points: Sequence[Point]) -> str:
    """The table of points that share model and data set, as `format_table` shows it."""
    rows = [row for point in points for row in point.rows]
    columns = table_columns(points)
    lines = [f"## {heading(points)}", "", *markdown_table(
        [column.title for column in columns],
        [[column.text(point) for column in columns] for point in points],
        [column.number for column in columns],
    )]  # fmt: skip
    heads, approx = approx_table(rows)
    if approx:
        lines += ["", "Distance of the approximate attention from the base model's:", ""]
        lines += markdown_table(heads, approx, [True] * len(heads))
    return "\n".join([*lines, "", *notes(points), ""])


def table_columns(points: Sequence[Point]) -> list[Column]:
    """The columns of the table for people; those that no point has a value for are left out."""
    scale, unit = (1e9, "GMACs") if max(p.rows[0].macs_dense for p in points) >= 1e9 else (1e6, "MMACs")
    metric = METRICS[points[0].rows[0].metric]
    columns = [
        Column("method", lambda p: p.series, lambda p: p.series, number=False),
        Column("setting", lambda p: p.setting or "-", lambda p: p.setting or None, number=False),
        Column("seeds", lambda p: str(len(p.rows)), lambda p: len(p.rows)),
        _column(f"{metric.title} {metric.unit}", "score", 100, 2),
        *(_column(f"{other.title} {other.unit}", f"other_scores.{name}", 100, 2) for name, other in METRICS.items()),
        _column(f"soft masks {metric.unit}", "score_soft", 100, 2),
        _column(f"averaged weights {metric.unit}", "score_ema", 100, 2),
        _column("budget", "budget.asked", 1, 3),
        _column("reached, when found", "budget.reached", 1, 3),
        Column("found", _found, _found_value, number=False),
        _column("occupancy", "occupancy", 1, 3),
        _column("occupancy, averaged weights", "ema.occupancy", 1, 3),
        _column("padded keep ratio", "occupancy_padded", 1, 3),
        _column(unit, "macs_total", 1 / scale, 3),
        _column("share of dense MACs", "macs_share", 1, 3),
        _time_column("share of dense time (quartiles)", "time_ratio", "ratio"),
        _time_column("share of frozen dense time (quartiles)", "time_ratio_frozen", "ratio_frozen"),
        _time_column("single samples (quartiles)", "single_time_ratio", "single_ratio"),
        _time_column("single samples, frozen dense (quartiles)", "single_time_ratio_frozen", "single_ratio_frozen"),
    ]
    return [column for column in columns if any(column.key(point) is not None for point in points)]


def write_tables(datasets: dict[str, list[Point]], folder: Path) -> Path:
    """Writes table.md, table.tex and table.csv; returns the path of the first."""
    (folder / "table.md").write_text("\n".join(map(format_points, datasets.values())), encoding="utf-8")
    tables = []
    for points in datasets.values():
        columns = table_columns(points)
        lines = [[column.text(point) for column in columns] for point in points]
        tables.append((heading(points), [column.title for column in columns], lines))
    write_latex(folder / "table.tex", tables)
    rows = [row for points in datasets.values() for point in points for row in point.rows]
    write_table([as_recorded(row) for row in rows], folder / "table.csv")
    return folder / "table.md"


def report_heading(datasets: dict[str, list[Point]]) -> str:
    """What a report is about: the heading of its only data set, or the names of several."""
    if len(datasets) > 1:
        return f"{len(datasets)} data sets: {', '.join(datasets)}"
    (points,) = datasets.values()
    return heading(points)


def heading(points: Sequence[Point]) -> str:
    """What the points of one data set have in common, e.g. `small on digits: accuracy on test, 360 samples`."""
    first = points[0].rows[0]
    samples = ", ".join(f"{count:,}" for count in sorted({row.samples for point in points for row in point.rows}))
    return f"{first.model} on {first.dataset}: {METRICS[first.metric].title} on {first.split}, {samples} samples"


def notes(points: Sequence[Point]) -> list[str]:
    """Sentences that a reader of the table needs."""
    found = ["Occupancy is the share of real tokens alive, averaged over all layer boundaries."]
    if any(point.value("budget.asked") for point in points):
        found.append(
            "A budget is a share of the dense model's cost; what reaches it was found on validation data, so that the"
            " shares that were measured differ a little."
        )
    if any(len(point.rows) > 1 for point in points):
        found.append("± is the sample standard deviation over seeds.")
    if chosen := sorted({name for point in points for name in point.chosen}):
        found.append(f"Of each point, {' and '.join(chosen)} are those of the lowest validation loss among all tried.")
    rows = [row for point in points for row in point.rows]
    if any(row.occupancy_padded is not None for row in rows):
        found.append(
            "The padded keep ratio is the paper's: over positions padded to the longest of 1,024 texts, so that most"
            " of it is padding; it is here for overlays alone."
        )
    if any(row.time_baseline == "unpadded" for row in rows):
        found.append("Dense texts ran faster without padding than as a padded batch: that is the dense time.")
    if any(point.value("time_ratio") for point in points):
        found.append("Time is the median over interleaved rounds of this model's time divided by the dense model's.")
        if any(row.time_ratio_frozen is not None for row in rows):
            found.append(
                "The frozen dense model runs every token in the kernels that the pruned one runs in, so that its share"
                " is what pruning alone gives; the share of dense time is what both give."
            )
        sizes = sorted({int(row.time["batch_size"]) for row in rows if row.time})
        found.append(f"Samples in a timed batch: {', '.join(map(str, sizes))}.")
    else:
        found.append("Timing was off.")
    if len(commits := Counter(row.commit for row in rows)) > 1:
        named = ", ".join(f"{count} of {commit or 'one unknown'}" for commit, count in sorted(commits.items()))
        found.append(f"The rows are of several commits: {named}.")
    for label in dict.fromkeys(point.label for point in points):
        parts = sorted({part for row in rows if row.label == label for part in row.left_to_torch})
        if parts:
            found.append(f"Of {label} plain torch computed, without kernels, {'; '.join(parts)}.")
    return found


def approx_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines: how near the approximate attention is to the base model's. No lines where none was measured."""
    columns = {
        "KL trained": "kl",
        "MSE trained": "mse",
        "KL interpolated": "kl_interpolated",
        "MSE interpolated": "mse_interpolated",
        "KL random": "kl_random",
        "MSE random": "mse_random",
    }
    measured = {
        (row.factor or 0, row.seed, *(row.approx[key] for key in APPROX_KEYS)): row for row in rows if row.approx
    }
    lines = []
    for _, row in sorted(measured.items(), key=lambda item: item[0]):
        values = row.approx or {}
        lines.append([str(row.factor or "-"), str(row.seed), *(f"{values[key]:.3g}" for key in columns.values())])
    return ["factor", "seed", *columns], lines


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """A line a row, in the order given, with the columns of table.csv: `macs.stem`, `occupancy_by_boundary.0`."""
    return pd.DataFrame(map(flat_row, rows))


def _column(title: str, name: str, scale: float, digits: int) -> Column:
    def text(point: Point) -> str:
        value = point.value(name)
        if value is None:
            return "-"
        std = "" if value.std is None else f" ± {value.std * scale:.{digits}f}"
        return f"{value.mean * scale:.{digits}f}{std}"

    return Column(title, text, lambda point: _mean(point.value(name)))


def _time_column(title: str, name: str, key: str) -> Column:
    def text(point: Point) -> str:
        value = point.value(name)
        if value is None:
            return "-"
        if value.std is not None:
            return f"{value.mean:.3f} ± {value.std:.3f}"
        time = point.rows[0].time or {}
        return f"{value.mean:.3f} ({time[f'{key}_low']:.3f} to {time[f'{key}_high']:.3f})"

    return Column(title, text, lambda point: _mean(point.value(name)))


def _mean(value: Value | None) -> float | None:
    return None if value is None else value.mean


def _found(point: Point) -> str:
    """The settings that were found for a budget."""
    names = point.rows[0].found
    values = {name: _column(name, f"budget.{FOUND}{name}", 1, 3).text(point) for name in names}
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "-"


def _found_value(point: Point) -> str | None:
    return _found(point) if point.rows[0].found else None


def _comparable(row: Row) -> tuple[str, ...]:
    return tuple(getattr(row, name) for name in ONE_TABLE)
