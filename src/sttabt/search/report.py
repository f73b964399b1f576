"""What a search says at its end."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sttabt.cli.sweep import log, report_sweep
from sttabt.search.plan import Plan
from sttabt.search.space import Space
from sttabt.search.study import Trial


def report_search(done: Sequence[Trial], plan: Plan, folder: Path) -> None:
    """The report of all trials' rows, if the stage report is asked for, and the front: printed, and in front.csv."""
    from sttabt.report.front import front
    from sttabt.report.markup import markdown_table
    from sttabt.report.rows import METRICS, ROW_FILE

    if "report" in plan.settings.stages:
        places = [trial.folder for trial in done if trial.folder and (trial.folder / ROW_FILE).exists()]
        if len(places) < len(done):
            log.warning("the report lacks %d earlier trials, whose folders are gone", len(done) - len(places))
        if places:
            report_sweep(places, folder, along=_row_names(plan.space))
    best = [done[index] for index in front([(trial.macs_share, trial.score) for trial in done])]
    metric = METRICS[plan.settings.dataset.metric]
    heads = ["trial", f"{metric.title} {metric.unit}", "share of dense MACs", *plan.space]
    lines = [
        [str(trial.number), f"{100 * trial.score:.2f}", f"{trial.macs_share:.3f}", *map(_text, trial.values.values())]
        for trial in best
    ]
    table = "\n".join(markdown_table(heads, lines, [True] * len(heads)))
    title = f"Front of {len(done)} trials: {metric.title} and multiply-adds on the validation split"
    sys.stdout.write(f"\n## {title}\n\n{table}\n\n")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "front.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "validation.score", "validation.macs_share", *plan.space, "folder"])
        for trial in best:
            writer.writerow([trial.number, trial.score, trial.macs_share, *trial.values.values(), trial.folder])
    log.info("front: %s", folder / "front.csv")


def _row_names(space: Space) -> list[str]:
    """What a row calls the settings; it has those of the method and the factor."""
    named = [key.removeprefix("sparsity.") for key in space if key.startswith("sparsity.")]
    return named + ["factor"] * ("approx.factor" in space)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
