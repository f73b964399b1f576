"""The table of rivals: methods under one budget, which is best, and what paired tests say.

Two methods are compared on the same items (McNemar's exact test). Where they share several seeds, the items of all
are pooled. The p-values of one budget are corrected for their number (Holm, Scandinavian Journal of Statistics 1979).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sttabt.report.markup import bold, markdown_table, write_latex
from sttabt.report.points import COSTS, Point, asked_budget, spell
from sttabt.report.predictions import Predictions, exact_p_value, paired_test, read_predictions
from sttabt.report.rows import METRICS, Row
from sttabt.report.table import heading
from sttabt.settings.budget import NEAR
from sttabt.system.files import reason

LEVEL = 0.05
HEADS = {
    "budget": "budget",
    "method": "method",
    "setting": "setting",
    "seeds": "seeds",
    "score": "score",
    "behind": "behind the best",
    "p_value": "p",
    "same_class": "class as dense %",
    "divergence": "KL from dense",
    "macs_share": "share of dense MACs",
    "time_ratio": "share of dense time",
    "time_ratio_frozen": "share of frozen dense time",
    "single_time_ratio_frozen": "the same, single samples",
}
WORDS = ("budget", "method", "setting")  # columns of no numbers
P_NOTE = (
    "p is of McNemar's exact test against the best of the same budget, on the same items, those of the seeds that"
    " both have pooled, and corrected for the number of methods (Holm)."
)
DENSE_NOTE = "Class and divergence are compared with the dense model of the same seed."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Line:
    """One method under one budget.

    behind: score of the best less this one's, 0 for the best. p_value: of the two on the same items, None where a row
    has no predictions beside it, for the best, and for scores that are not classes.
    """

    budget: tuple[object, ...]  # (cost, share), () without one
    point: Point
    behind: float
    p_value: float | None
    same_class: float | None  # share of the items that dense puts into the same class
    divergence: float | None  # KL(dense || pruned), nats an item

    @property
    def over(self) -> bool:
        """Whether it costs more than was asked, so that it is compared with nothing."""
        return _over(self.point)

    @property
    def best(self) -> bool:
        """Whether there is a budget, and no other method that keeps it has a higher mean."""
        return bool(self.budget) and not self.over and self.behind == 0


@dataclass(frozen=True)
class RivalTable:
    """Of one data set, for people; `best` says which of the lines have their score in bold."""

    heading: str
    heads: list[str]
    numbers: list[bool]  # which columns are of numbers
    cells: list[list[str]]
    best: list[bool]
    score: int  # which column the scores are
    verdicts: list[str]

    @property
    def marked(self) -> list[list[str]]:
        """The cells as markdown, and `write_latex`, have what is in bold."""
        return [
            [bold(cell) if best and column == self.score else cell for column, cell in enumerate(line)]
            for best, line in zip(self.best, self.cells, strict=True)
        ]


def write_rivals(datasets: dict[str, list[Point]], folder: Path) -> Path | None:
    """Writes rivals.md, rivals.tex and rivals.csv; returns the first, None where no two methods share a budget."""
    tables = rival_tables(datasets)
    if not tables:
        return None
    texts = []
    for table in tables:
        texts += [f"## {table.heading}", "", *markdown_table(table.heads, table.marked, table.numbers), ""]
        texts += [*(f"- {sentence}" for sentence in table.verdicts), ""]
    (folder / "rivals.md").write_text("\n".join([*texts, *rival_notes(tables), ""]), encoding="utf-8")
    write_latex(folder / "rivals.tex", [(table.heading, table.heads, table.marked) for table in tables])
    _frame([line for points in datasets.values() for line in rival_lines(points)]).to_csv(
        folder / "rivals.csv", index=False
    )
    return folder / "rivals.md"


def rival_tables(datasets: dict[str, list[Point]]) -> list[RivalTable]:
    """A table a data set in which two methods share a budget; columns without any value are left out."""
    tables = []
    for lines in map(rival_lines, datasets.values()):
        if not lines:
            continue
        texts = [_texts(line) for line in lines]
        names = [name for name in HEADS if any(text[name] != "-" for text in texts)]
        points = [line.point for line in lines]
        metric = METRICS[points[0].rows[0].metric]
        heads = [f"{metric.title} {metric.unit}" if name == "score" else HEADS[name] for name in names]
        cells = [[text[name] for name in names] for text in texts]
        numbers = [name not in WORDS for name in names]
        best = [line.best for line in lines]
        tables.append(RivalTable(heading(points), heads, numbers, cells, best, names.index("score"), verdicts(lines)))
    return tables


def rival_notes(tables: Sequence[RivalTable]) -> list[str]:
    """What the columns of the tables mean that do not say it themselves, of those columns that are there."""
    heads = {head for table in tables for head in table.heads}
    compared = heads & {HEADS["same_class"], HEADS["divergence"]}
    return [P_NOTE] * (HEADS["p_value"] in heads) + [DENSE_NOTE] * bool(compared)


def rival_lines(points: Sequence[Point]) -> list[Line]:
    """Points of one data set by budget, what has none first, then the largest; within it the best first.

    [] where no two points share a budget.
    """
    groups: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for point in points:
        groups[asked_budget(point.rows[0])].append(point)
    if not any(budget and len(group) > 1 for budget, group in groups.items()):
        return []
    said = {id(row): found for point in points for row in point.rows if (found := _read(row)) is not None}
    dense = {row.seed: said[id(row)] for point in points if point.dense for row in point.rows if id(row) in said}
    lines = []
    for budget in sorted(groups, key=_order):
        group = sorted(groups[budget], key=lambda point: (_over(point), -_score(point)))
        best = group[0]
        others = [point for point in group[1:] if budget and not _over(point)]
        raw = {id(point): _p_value(best, point, said) for point in others}
        corrected = holm({key: value for key, value in raw.items() if value is not None})
        for point in group:
            pairs = _pairs(dense, point, said)
            lines.append(
                Line(
                    budget,
                    point,
                    _score(best) - _score(point),
                    corrected.get(id(point)),
                    _mean([same_class(*pair) for pair in pairs]),
                    _mean([kl for pair in pairs if (kl := divergence(*pair)) is not None]),
                )
            )
    return lines


def verdicts(lines: Sequence[Line]) -> list[str]:
    """One sentence a budget: the best, those that cannot be told from it, and those that are worse."""
    sentences = []
    for budget in dict.fromkeys(line.budget for line in lines if line.budget):
        own = [line for line in lines if line.budget == budget]
        over = [_name(line.point) for line in own if line.over]
        if len(over) == len(own):
            sentences.append(f"{_budget(budget)}: no method keeps it.")
            continue
        best, *others = (line for line in own if not line.over)
        names = [_name(line.point) for line in others if line.p_value is not None and line.p_value >= LEVEL]
        worse = [line for line in others if line.p_value is not None and line.p_value < LEVEL]
        text = f"{_budget(budget)}: best is {_name(best.point)}."
        if names:
            text += f" The items do not tell it from {', '.join(names)} (p at least {LEVEL})."
        if worse:
            count = "All others are" if len(worse) == len(others) else f"{len(worse)} of {len(others)} are"
            text += f" {count} worse (p below {LEVEL})."
        if untested := len(others) - len(names) - len(worse):
            text += f" {untested} could not be tested."
        if over:
            text += f" Over the budget, and not compared: {', '.join(over)}."
        sentences.append(text)
    return sentences


def same_class(first: Predictions, second: Predictions) -> float:
    """Share of the items that two models put into the same class."""
    return float((first.predictions == second.predictions).mean())


def divergence(dense: Predictions, other: Predictions) -> float | None:
    """KL(dense || other) of their distributions over classes, mean over items; None where logits were not kept."""
    if not dense.logits.size or dense.logits.shape != other.logits.shape:
        return None
    wanted, found = (_log_softmax(each.logits.astype(np.float64)) for each in (dense, other))
    return float((np.exp(wanted) * (wanted - found)).sum(axis=1).mean())


def holm(p_values: dict[int, float]) -> dict[int, float]:
    """p-values of one family corrected for their number, by key: the k-th smallest of n times n - k + 1, rising."""
    corrected, highest = {}, 0.0
    for place, (key, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, value * (len(p_values) - place)))
        corrected[key] = highest
    return corrected


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted: np.ndarray = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return shifted


def _read(row: Row) -> Predictions | None:
    """What the model said of each item; None of a row from a table, of an older version, or of scores."""
    if row.folder is None:
        return None
    try:
        found = read_predictions(row.folder)
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        log.warning("no paired test of %s: %s", row.label, reason(error))
        return None
    return None if found.labels.dtype.kind == "f" else found


def _p_value(best: Point, other: Point, said: dict[int, Predictions]) -> float | None:
    """Of the two on the items of all seeds that both have; None where there are none."""
    ours = {row.seed: said[id(row)] for row in best.rows if id(row) in said}
    tests = [paired_test(*pair) for pair in _pairs(ours, other, said)]
    if not tests:
        return None
    return exact_p_value(sum(test.only_first for test in tests), sum(test.only_second for test in tests))


def _pairs(
    by_seed: dict[int, Predictions], point: Point, said: dict[int, Predictions]
) -> list[tuple[Predictions, Predictions]]:
    """Of each seed that both have: what the one and the point's model said of the same items."""
    pairs = [(by_seed[row.seed], said[id(row)]) for row in point.rows if row.seed in by_seed and id(row) in said]
    return [(one, other) for one, other in pairs if np.array_equal(one.indices, other.indices)]


def _texts(line: Line) -> dict[str, str]:
    point = line.point
    values = {
        name: "-" if (value := point.value(name)) is None else f"{value.mean:.3f}"
        for name in ("macs_share", "time_ratio", "time_ratio_frozen", "single_time_ratio_frozen")
    }
    score = point.value("score")
    assert score is not None  # every row has one
    text = f"{100 * score.mean:.2f}" + ("" if score.std is None else f" ± {100 * score.std:.2f}")
    return values | {
        "budget": _budget(line.budget) if line.budget else "none",
        "method": point.series,
        "setting": "-" if line.budget else point.setting or "-",
        "seeds": str(len(point.rows)),
        "score": text,
        "behind": "over the budget" if line.over else f"{100 * line.behind:.2f}" if line.budget else "-",
        "p_value": "-" if line.p_value is None else _p_text(line.p_value),
        "same_class": "-" if line.same_class is None else f"{100 * line.same_class:.2f}",
        "divergence": "-" if line.divergence is None else f"{line.divergence:.3f}",
    }


def _frame(lines: Sequence[Line]) -> pd.DataFrame:
    frames = []
    for line in lines:
        first, score = line.point.rows[0], line.point.value("score")
        of, asked = line.budget or (None, None)
        frames.append(
            {"dataset": first.dataset, "model": first.model, "budget_of": of, "budget": asked}
            | {"method": line.point.series, "setting": line.point.setting, "seeds": len(line.point.rows)}
            | {"score": score and score.mean, "score_std": score and score.std, "behind": line.behind}
            | {"over": line.over, "p_value": line.p_value, "same_class": line.same_class, "divergence": line.divergence}
        )
    return pd.DataFrame(frames)


def _over(point: Point) -> bool:
    """By what was reached where the budget was found: the cost of the scored items differs a little from it."""
    first, reached = point.rows[0], point.value("budget.reached")
    return reached is not None and reached.mean > (1 + NEAR[str(first.budget_of)]) * (first.budget or {})["asked"]


def _order(budget: tuple[object, ...]) -> tuple:
    return (0, "", 0.0) if not budget else (1, str(budget[0]), -float(str(budget[1])))


def _budget(budget: tuple[object, ...]) -> str:
    of, asked = budget
    return f"{spell(asked)} of {COSTS[str(of)]}"


def _name(point: Point) -> str:
    score = point.value("score")
    return f"{point.series} ({100 * score.mean:.2f})" if score else point.series


def _p_text(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _score(point: Point) -> float:
    score = point.value("score")
    assert score is not None  # every row has one
    return score.mean


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
