"""The table of overheads: what planning and the approximate network take, as shares of the dense model."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sttabt.report.literature import MODEL, published_overhead
from sttabt.report.markup import markdown_table, write_latex
from sttabt.report.points import Point

PARTS = ("approximate_network", "planning")
LABEL = "published (BERT-base, 128 tokens)"
TITLE = "What the approximate network and planning take, in % of the dense model's multiply-adds and time"
PUBLISHED_NOTE = (
    "Published planning counts every operation, as half a multiply-add; here it is matrix products alone, so that only"
    " its time compares the two."
)
NOISE_NOTE = (
    "The time of planning is that of network and planning less that of the network: below 0 it is lost in the noise of"
    " both."
)
HEADS = {
    "model": "model and data",
    "method": "method",
    "factor": "factor",
    "occupancy": "keep ratio",
    "approximate_network_macs": "network, MACs %",
    "planning_macs": "planning, MACs %",
    "approximate_network_time": "network, time %",
    "planning_time": "planning, time %",
    "time": "all, time %",
    "time_frozen": "all, % of frozen dense time",
}


def write_overhead(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes overhead.md, overhead.tex and overhead.csv; returns the first, None where no row plans."""
    frame = overhead_frame(datasets)
    if frame.empty:
        return None
    frame.to_csv(folder / "overhead.csv", index=False)
    heads, lines = overhead_lines(frame)
    (folder / "overhead.md").write_text(
        "\n".join(
            [
                f"## {TITLE}",
                "",
                *markdown_table(heads, lines, [i > 1 for i in range(len(heads))]),
                "",
                *overhead_notes(frame),
                "",
            ]
        ),
        encoding="utf-8",
    )
    write_latex(folder / "overhead.tex", [(TITLE, heads, lines)])
    return folder / "overhead.md"


def overhead_frame(datasets: dict[str, list[Point]]) -> pd.DataFrame:
    """A line a point that plans, shares in [0, 1] as means over seeds; then what was published of BERT-base, where
    rows of it are there.
    """
    lines: list[dict[str, object]] = []
    for points in datasets.values():
        for point in points:
            first = point.rows[0]
            macs = {part: _share(point, part) for part in PARTS}
            if not any(macs.values()):
                continue
            line: dict[str, object] = {"model": f"{first.model}, {first.dataset}", "method": point.series}
            line |= {"setting": point.setting, "factor": first.factor, "occupancy": _mean(point, "occupancy")}
            line |= {f"{part}_macs": share for part, share in macs.items()}
            line |= {f"{part}_time": _mean(point, f"time.{part}_ratio") for part in PARTS}
            line |= {"time": _mean(point, "time_ratio"), "time_frozen": _mean(point, "time_ratio_frozen")}
            lines.append(line)
    if lines and any(point.rows[0].model == MODEL for points in datasets.values() for point in points):
        for each in published_overhead():
            known: dict[str, object] = {
                "model": LABEL,
                "method": each.method,
                "factor": each.factor,
                "occupancy": each.keep,
            }
            lines.append(known | {f"{each.part}_macs": each.share})
    return pd.DataFrame(lines).astype({"factor": "Int64"}) if lines else pd.DataFrame()


def overhead_lines(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Heads and cells for people; columns without any value are left out."""
    columns = [name for name in HEADS if frame[name].notna().any()]
    shares = [name for name in columns if name.endswith(("_macs", "time", "_frozen"))]
    texts = frame[columns].astype(object)
    for name in columns:
        kind = (lambda value: f"{100 * value:.3g}") if name in shares else str
        kind = (lambda value: f"{value:.3f}") if name == "occupancy" else kind
        texts[name] = ["-" if pd.isna(value) else kind(value) for value in texts[name]]
    return [HEADS[name] for name in columns], texts.to_numpy().tolist()


def overhead_notes(frame: pd.DataFrame) -> list[str]:
    """What a reader of the table needs who sees published numbers, or a time below 0."""
    published = frame["model"].eq(LABEL).any()
    return [PUBLISHED_NOTE] * bool(published) + [NOISE_NOTE] * bool(frame["planning_time"].astype(float).lt(0).any())


def _share(point: Point, part: str) -> float:
    return sum(row.macs.get(part, 0.0) / row.macs_dense for row in point.rows) / len(point.rows)


def _mean(point: Point, name: str) -> float | None:
    value = point.value(name)
    return None if value is None else value.mean
