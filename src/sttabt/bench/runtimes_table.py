"""Rows of the comparison of runtimes, and the table of them. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

COLUMNS = (
    "batch", "runtime", "model", "MACs / dense", "median ms", "time / dense torch", "time / own dense", "time / MACs",
    "peak MiB", "file MiB",
)  # fmt: skip
NOTES = """
One process a variant, woken in turn; a turn is the median of three calls behind one that is not timed. Ratios are
medians over rounds. MACs are multiply-adds of all that the file computes, planner included; time / MACs is the time
against the same runtime's dense model over them, 1.00 where time falls as the arithmetic does. Peak MiB is what the
process held at most, above what it held before it loaded the model.
"""
RANDOM = "Weights are random: speed needs no trained ones.\n"
TRAINED = """Accuracy is on {items} items of the test split; same is the share of them of which dense torch predicts the
same class. Dense is the same weights with every token. Torch and the frozen model run the method as it is, files as
many tokens of every sample at a layer, each at the budget.
"""
PADDED = """Texts are padded to one length, which dense torch and the files compute: multiply-adds of files are of that,
those of torch and the frozen model of real tokens.
"""


@dataclass(frozen=True, kw_only=True)
class RuntimeRow:
    """One measurement, of a whole batch. budget: asked of the multiply-adds, None for dense; macs_share: reached;
    counts: tokens at every boundary, () where each sample has its own.
    """

    machine: str
    threads: int
    torch: str
    commit: str
    model: str
    rounds: int
    runtime: str
    int8: bool
    budget: float | None
    macs_share: float
    counts: tuple[int, ...]
    file_mebibytes: float
    batch: int
    ms: float
    ms_least: float
    ratio: float  # to dense torch, the library's own forward
    own_ratio: float  # to dense in the same runtime and precision
    peak_mebibytes: float
    padded: bool = False  # texts of a test split, which are of unequal length
    items: int = 0  # of the test split, on which the next two were measured
    accuracy: float | None = None  # None with random weights
    same: float | None = None  # share of the items of which dense torch predicts the same class

    @property
    def name(self) -> str:
        return f"{self.runtime} int8" if self.int8 else self.runtime

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def format_rows(rows: Sequence[RuntimeRow]) -> str:
    """Markdown, batch by batch, runtime by runtime."""
    first = rows[0]
    columns = COLUMNS if first.accuracy is None else (*COLUMNS, "accuracy %", "same %")
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    ordered = sorted(rows, key=lambda row: row.batch)
    for _, group in groupby(ordered, key=lambda row: row.batch):
        kept = list(group)
        for name in dict.fromkeys(row.name for row in kept):
            lines += [_line(row) for row in kept if row.name == name]
    notes = NOTES + (RANDOM if first.accuracy is None else TRAINED.format(items=first.items))
    notes += PADDED if first.padded else ""
    title = f"{first.model}, {first.threads} threads of {first.machine}, torch {first.torch}, commit {first.commit}"
    return "\n".join([title, "", *lines, notes])


def _line(row: RuntimeRow) -> str:
    dense = row.budget is None
    cells = (
        row.batch, row.name, "dense" if dense else f"budget {row.budget:g}", f"{row.macs_share:.3f}", f"{row.ms:.1f}",
        f"{row.ratio:.2f}", f"{row.own_ratio:.2f}", "" if dense else f"{row.own_ratio / row.macs_share:.2f}",
        f"{row.peak_mebibytes:.0f}", f"{row.file_mebibytes:.1f}",
        *(f"{100 * share:.2f}" for share in (row.accuracy, row.same) if share is not None),
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"
