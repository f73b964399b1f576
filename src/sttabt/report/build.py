"""Makes the whole report from folders of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sttabt.report.choice import best_by_validation
from sttabt.report.figures import remove
from sttabt.report.gallery import choose as choose_galleries
from sttabt.report.gallery import read_galleries
from sttabt.report.page import write_page
from sttabt.report.pareto import draw_pareto
from sttabt.report.points import Point, points_by_dataset
from sttabt.report.rows import METRICS, Row, read_rows
from sttabt.report.table import format_points, report_heading, to_frame
from sttabt.report.tasks import draw_tasks
from sttabt.report.tokens import Block, draw_tokens


@dataclass(frozen=True)
class ReportFiles:
    """What a report is made of; figures have .pdf, .svg and .csv beside them, the table a .csv."""

    table: Path
    figure: Path
    tasks: Path | None  # None where no data set is of texts
    tokens: Path | None  # None where no row has a gallery
    page: Path


def make_report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    title: str | None = None,
    choose: Sequence[str] = (),
) -> ReportFiles:
    """Reads all rows below the folders and writes tables, figures and the page into `out`.

    `out` is the first folder's subfolder `report` where it is not given. The same rows give the same bytes. Data sets
    stay apart: a table, a row of panels and a block of tokens each. Of rows that differ in the settings `choose` alone,
    the best by validation loss are reported.

    Raises:
        UserError: a folder has no rows, the rows of one data set are of several splits, models or metrics, or no row
            has a setting of `choose`.
    """
    datasets = points_by_dataset(best_by_validation(read_rows(folders), choose), choose)
    out = Path(out) if out else Path(folders[0]) / "report"
    out.mkdir(parents=True, exist_ok=True)
    rows = [row for points in datasets.values() for point in points for row in point.rows]
    (out / "table.md").write_text("\n".join(map(format_points, datasets.values())), encoding="utf-8")
    to_frame(rows).to_csv(out / "table.csv", index=False)
    figure = draw_pareto(datasets, out)
    tasks = draw_tasks(datasets, out)
    if tasks is None:
        remove(out, "tasks")
    names = _names(datasets)

    def name(row: Row) -> str:
        return f"{row.dataset}, {names[id(row)]}" if len(datasets) > 1 else names[id(row)]

    galleries = read_galleries(rows)
    own = {dataset: [each for each in galleries if each[0].dataset == dataset] for dataset in datasets}
    chosen = {dataset: choose_galleries(each) for dataset, each in own.items() if each}
    tokens = None
    if chosen:
        blocks = [
            Block(f"{each[0][0].model} on {dataset}", [(names[id(row)], gallery) for row, gallery in each])
            for dataset, each in chosen.items()
        ]
        tokens = draw_tokens(blocks, out)
    else:
        remove(out, "tokens")
    figures = [(f"{_scores(datasets)} against cost", figure)]
    figures += [("Text tasks, with published results where there are any", tasks)] if tasks else []
    page = write_page(
        out / "index.html",
        title or report_heading(datasets),
        datasets,
        figures,
        [(name(row), gallery) for row, gallery in galleries],
        next((name(row) for each in chosen.values() for row, _ in each), ""),
    )
    return ReportFiles(table=out / "table.md", figure=figure, tasks=tasks, tokens=tokens, page=page)


def _names(datasets: dict[str, list[Point]]) -> dict[int, str]:
    """What each row is called among those of its data set, by its identity."""
    names = {}
    for point in (point for points in datasets.values() for point in points):
        for row in point.rows:
            seed = f"seed {row.seed}" if len(point.rows) > 1 else ""
            names[id(row)] = ", ".join(part for part in (point.series, point.setting, seed) if part)
    return names


def _scores(datasets: dict[str, list[Point]]) -> str:
    metrics = {points[0].rows[0].metric for points in datasets.values()}
    title = METRICS[metrics.pop()].title if len(metrics) == 1 else "score"
    return title[0].upper() + title[1:]
