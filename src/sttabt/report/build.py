"""Makes the whole report, or some figures of it, from folders of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sttabt.errors import UserError, nearest
from sttabt.report.catalogue import CATALOGUE, Results
from sttabt.report.choice import best_by_validation
from sttabt.report.figures import remove
from sttabt.report.gallery import choose as choose_galleries
from sttabt.report.gallery import read_galleries
from sttabt.report.page import write_page
from sttabt.report.points import Point, points_by_dataset
from sttabt.report.reading import read_rows
from sttabt.report.table import report_heading, write_tables
from sttabt.report.tokens import Block


@dataclass(frozen=True)
class ReportFiles:
    """What a report is made of; figures have .pdf, .svg and .csv beside them, tables .tex and .csv."""

    table: Path
    figures: dict[str, Path]  # by its name in the catalogue, the first file of each
    missing: dict[str, str]  # of the others: which runs would fill them
    page: Path


def make_report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    title: str | None = None,
    choose: Sequence[str] = (),
    along: Sequence[str] = (),
) -> ReportFiles:
    """Reads all rows below the folders and writes tables, figures and the page into `out`.

    folders: or table.csv of other reports. `out` is the first folder's subfolder `report` where it is not given. The
    same rows give the same bytes. Data sets stay apart: a table, a row of panels and a block of tokens each. Of rows
    that differ in the settings `choose` alone, the best by validation loss are reported; those that differ in the
    settings `along`, as rows name them, are all points of one curve.

    Raises:
        UserError: a folder has no rows, the rows of one data set are of several splits or metrics, or no row has a
            setting of `choose`.
    """
    datasets = _read(folders, choose, along)
    folder = _folder(folders, out)
    results, galleries, start = _collect(datasets)
    figures, missing = _draw(list(CATALOGUE), results, folder)
    table = write_tables(datasets, folder)
    page = write_page(folder / "index.html", title or report_heading(datasets), datasets, figures, galleries, start)
    return ReportFiles(table, figures, missing, page)


def draw_figures(
    names: Sequence[str],
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    choose: Sequence[str] = (),
) -> tuple[dict[str, Path], dict[str, str]]:
    """Draws figures of the catalogue alone; returns the first file of each, and which runs would fill the others.

    Raises:
        UserError: a name is not in the catalogue, and as `make_report`.
    """
    for name in names:
        if name not in CATALOGUE:
            raise UserError(f"figure={name}: there is no figure {name}, {nearest(name, CATALOGUE)}")
    datasets = _read(folders, choose)
    return _draw(names, _collect(datasets)[0], _folder(folders, out))


def _read(folders: Sequence[str | Path], choose: Sequence[str], along: Sequence[str] = ()) -> dict[str, list[Point]]:
    return points_by_dataset(best_by_validation(read_rows(folders), choose), choose, along)


def _folder(folders: Sequence[str | Path], out: str | Path | None) -> Path:
    first = Path(folders[0])
    folder = Path(out) if out else (first.parent if first.is_file() else first) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _draw(names: Sequence[str], results: Results, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    figures, missing = {}, {}
    for name in names:
        path = CATALOGUE[name].draw(results, folder)
        if path is None:
            remove(folder, name)
            missing[name] = CATALOGUE[name].missing
        else:
            figures[name] = path
    return figures, missing


def _collect(datasets: dict[str, list[Point]]) -> tuple[Results, list, str]:
    """What figures are drawn from, all galleries by name, and the name of the one that the page shows first."""
    names = _names(datasets)
    blocks, galleries, start = [], [], ""
    for dataset, points in datasets.items():
        own = read_galleries([row for point in points for row in point.rows])
        where = f"{dataset}, " if len(datasets) > 1 else ""
        galleries += [(f"{where}{names[id(row)]}", gallery) for row, gallery in own]
        if not own:
            continue
        chosen = choose_galleries(own)
        first = chosen[0][0]
        start = start or f"{where}{names[id(first)]}"
        title = f"{first.model} on {first.dataset}"
        blocks.append(Block(title, [(names[id(row)], gallery) for row, gallery in chosen]))
    return Results(datasets, blocks), galleries, start


def _names(datasets: dict[str, list[Point]]) -> dict[int, str]:
    """What each row is called among those of its data set, by its identity."""
    names = {}
    for point in (point for points in datasets.values() for point in points):
        for row in point.rows:
            seed = f"seed {row.seed}" if len(point.rows) > 1 else ""
            names[id(row)] = ", ".join(part for part in (point.series, point.setting, seed) if part)
    return names
