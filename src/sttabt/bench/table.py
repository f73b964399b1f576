"""Rows of the speed benchmark and the table of them. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, pairwise

COLUMNS = (
    "batch", "variant", "occupancy", "MACs / dense", "median ms", "least ms", "time / dense (quartiles)",
    "time / MACs", "time / ToMe at equal MACs", "peak MiB", "predicted ms",
)  # fmt: skip
OUTSIDE = "outside ToMe's range"
NOTES = """
Weights are random: speed needs no trained ones. Which tokens live means nothing, how many does. Occupancy is measured,
over all layer boundaries; the approximate network starts as an interpolated copy. MACs are multiply-adds, all parts of
what the variant runs. Ratios, to what a table stands beside, are medians over interleaved rounds, by round; time / MACs
is 1.00 where the time falls as the arithmetic does. ToMe at equal MACs is interpolated between its points. Predicted
ms, on CUDA in half precision, is that of the base model's layers alone, by their operations and bytes on an H100 as
sttabt.bench.predict assumes it.
"""


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """One measurement. macs: of a sample (of forward and backward in a training step); ms: of a whole batch."""

    machine: str
    threads: int
    torch: str
    commit: str
    model: str
    weights: str  # random
    precision: str
    image_size: int
    batch: int
    group: str
    variant: str
    occupancy: float | None  # mean over samples and the L+1 boundaries; None without a plan
    macs: float
    macs_ratio: float  # to the baseline's
    rounds: int
    ms: float  # median over rounds
    ms_least: float
    ratio: float  # to the baseline's time, median over rounds, and its quartiles
    ratio_low: float
    ratio_high: float
    memory: float | None  # peak MiB, on CUDA
    tome_ratio: float | None = None  # to ToMe's time at equal multiply-adds; None outside ToMe's range
    predicted_ms: float | None = None  # of the base model's layers on an H100 in half precision, bench.predict
    kernels: bool = False  # whether sttabt.native was there
    baseline: str = "dense"  # the variant that ratios are to

    @property
    def quotient(self) -> float:
        """Measured ratio over the ratio of multiply-adds: 1 at the arithmetic limit."""
        return self.ratio / self.macs_ratio

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self) | {"quotient": self.quotient})


def compare_with_tome(rows: Sequence[SpeedRow], group: str, tome: str) -> list[SpeedRow]:
    """The rows of one batch, those of `group` with their time relative to that of `tome` at equal multiply-adds."""
    points = sorted((row.macs_ratio, row.ratio) for row in rows if row.group == tome)
    return [replace(row, tome_ratio=_relative(row, points)) if row.group == group else row for row in rows]


def format_table(rows: Iterable[SpeedRow], compared: str) -> str:
    """Markdown, one table an image size and baseline. compared: the group whose rows say where ToMe is out of reach."""
    parts = []
    kinds = groupby(rows, key=lambda row: (row.model, row.image_size, row.precision, row.baseline))
    for (model, size, precision, baseline), group in kinds:
        lines = list(group)
        first = lines[0]
        parts += [
            f"## {model} at {size} pixels, {precision}, beside {baseline}",
            "",
            f"{first.machine}, {first.threads} threads, torch {first.torch}, commit {first.commit or 'unknown'},"
            f" {'with' if first.kernels else 'without'} the kernels of sttabt.native",
            "",
            *_markdown([COLUMNS, *(_cells(row, compared) for row in lines)]),
            "",
        ]
    return "\n".join(parts) + NOTES


def _relative(row: SpeedRow, points: Sequence[tuple[float, float]]) -> float | None:
    for (low, fast), (high, slow) in pairwise(points):
        if low <= row.macs_ratio <= high:
            return row.ratio / (fast + (slow - fast) * (row.macs_ratio - low) / (high - low))
    return None


def _cells(row: SpeedRow, compared: str) -> tuple[str, ...]:
    outside = OUTSIDE if row.group == compared else ""
    return (
        str(row.batch),
        row.variant,
        "" if row.occupancy is None else f"{row.occupancy:.3f}",
        f"{row.macs_ratio:.3f}",
        f"{row.ms:.1f}",
        f"{row.ms_least:.1f}",
        f"{row.ratio:.3f} ({row.ratio_low:.3f} to {row.ratio_high:.3f})",
        f"{row.quotient:.2f}",
        outside if row.tome_ratio is None else f"{row.tome_ratio:.2f}",
        "" if row.memory is None else f"{row.memory:.0f}",
        "" if row.predicted_ms is None else f"{row.predicted_ms:.3f}",
    )


def _markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    """The first line is the head; only the second column is text."""
    used = [column for column in range(len(lines[0])) if any(line[column] for line in lines[1:])]
    widths = {column: max(len(line[column]) for line in lines) for column in used}

    def text(line: Sequence[str]) -> str:
        cells = (line[c].ljust(widths[c]) if c == 1 else line[c].rjust(widths[c]) for c in used)
        return f"| {' | '.join(cells)} |"

    rule = " | ".join("-" * widths[c] if c == 1 else "-" * (widths[c] - 1) + ":" for c in used)
    return [text(lines[0]), f"| {rule} |", *map(text, lines[1:])]
