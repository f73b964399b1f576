"""Makes the whole report from folders of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sttabt.report.figures import remove
from sttabt.report.gallery import Gallery, choose, read_galleries
from sttabt.report.page import write_page
from sttabt.report.pareto import draw_pareto
from sttabt.report.points import Point, points_by_dataset
from sttabt.report.rows import METRICS, Row, read_rows
from sttabt.report.table import format_points, heading, report_heading, to_frame
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


def make_report(folders: Sequence[str | Path], out: str | Path | None = None, title: str | None = None) -> ReportFiles:
    """Reads all rows below the folders and writes tables, figures and the page into `out`.

    `out` is the first folder's subfolder `report` where it is not given. The same rows give the same bytes. Data sets
    stay apart: a table, a row of panels and a block of tokens each.

    Raises:
        UserError: a folder has no rows, or the rows of one data set are of several splits, models or metrics.
    """
    datasets = points_by_dataset(read_rows(folders))
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
    galleries = read_galleries(rows)
    tokens = None
    if galleries:
        tokens = draw_tokens(_blocks(datasets, galleries, names), out)
    else:
        remove(out, "tokens")
    figures = [(f"{_scores(datasets)} against cost", figure)]
    figures += [("Text tasks, with published results where there are any", tasks)] if tasks else []
    page = write_page(
        out / "index.html",
        title or report_heading(datasets),
        datasets,
        figures,
        [(names[id(row)], gallery) for row, gallery in galleries],
        names[id(choose(galleries)[0][0])] if galleries else "",
    )
    return ReportFiles(table=out / "table.md", figure=figure, tasks=tasks, tokens=tokens, page=page)


def _names(datasets: dict[str, list[Point]]) -> dict[int, str]:
    """What each row is called among all of them, by its identity."""
    names = {}
    for dataset, points in datasets.items():
        for point in points:
            for row in point.rows:
                seed = f"seed {row.seed}" if len(point.rows) > 1 else ""
                parts = (dataset if len(datasets) > 1 else "", point.series, point.setting, seed)
                names[id(row)] = ", ".join(part for part in parts if part)
    return names


def _blocks(
    datasets: dict[str, list[Point]], galleries: Sequence[tuple[Row, Gallery]], names: dict[int, str]
) -> list[Block]:
    """The galleries that the figure of the tokens shows, by data set."""
    blocks = []
    for dataset, points in datasets.items():
        own = [each for each in galleries if each[0].dataset == dataset]
        if own:
            title = heading([row for point in points for row in point.rows])
            blocks.append(Block(title, [(names[id(row)], gallery) for row, gallery in choose(own)]))
    return blocks


def _scores(datasets: dict[str, list[Point]]) -> str:
    metrics = {points[0].rows[0].metric for points in datasets.values()}
    title = METRICS[metrics.pop()].title if len(metrics) == 1 else "score"
    return title[0].upper() + title[1:]
