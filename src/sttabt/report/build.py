"""Makes the whole report, or some figures of it, from folders of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sttabt.errors import UserError, nearest
from sttabt.report.catalogue import Results, catalogue
from sttabt.report.choice import best_by_validation
from sttabt.report.figures import remove
from sttabt.report.gallery import choose as choose_galleries
from sttabt.report.gallery import read_galleries
from sttabt.report.page import write_page
from sttabt.report.points import Point, points_by_dataset
from sttabt.report.reading import read_records
from sttabt.report.table import report_heading, write_tables
from sttabt.report.tokens import Block
from sttabt.system.files import reason


@dataclass(frozen=True)
class ReportFiles:
    """What a report is made of; figures have .pdf, .svg and .csv beside them, tables .tex and .csv."""

    table: Path
    figures: dict[str, Path]  # by its name in the catalogue, the first file of each
    missing: dict[str, str]  # of the others: which runs would fill them
    page: Path
    left_out: list[str]  # records that cannot be read, and why: they stay where they are


def make_report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    title: str | None = None,
    choose: Sequence[str] = (),
    along: Sequence[str] = (),
) -> ReportFiles:
    """Reads all rows below the folders and writes tables, figures and the page into `out`.

    folders: or table.csv of other reports. `out` is the first folder's subfolder `report` where it is not given. The
    same rows give the same bytes. Records that cannot be read are warned of and left out. Data sets stay apart: a
    table, a row of panels and a block of tokens each. Of rows that differ in the settings `choose` alone, the best by
    validation loss are reported; those that differ in the settings `along`, as rows name them, are all points of one
    curve.

    Raises:
        UserError: a folder has no rows, the rows of one data set are of several splits or metrics, no row has a
            setting of `choose`, or a file cannot be written.
    """
    rows, left_out = read_records(folders)
    datasets = points_by_dataset(best_by_validation(rows, choose), choose, along)
    with _written_to(_folder(folders, out)) as folder:
        results, galleries, start, broken = _collect(datasets)
        figures, missing = _draw(list(catalogue()), results, folder)
        table = write_tables(datasets, folder)
        page = write_page(folder / "index.html", title or report_heading(datasets), datasets, figures, galleries, start)
    return ReportFiles(table, figures, missing, page, left_out + broken)


def draw_figures(
    names: Sequence[str],
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    choose: Sequence[str] = (),
) -> tuple[dict[str, Path], dict[str, str], list[str]]:
    """Draws figures of the catalogue alone; returns the first file of each, which runs would fill the others, and the
    records that are left out, as `make_report` does.

    Raises:
        UserError: a name is not in the catalogue, and as `make_report`.
    """
    known = catalogue()
    for name in names:
        if name not in known:
            raise UserError(f"figure={name}: there is no figure {name}, {nearest(name, known)}")
    rows, left_out = read_records(folders)
    datasets = points_by_dataset(best_by_validation(rows, choose), choose)
    with _written_to(_folder(folders, out)) as folder:
        results, _, _, broken = _collect(datasets)
        return *_draw(names, results, folder), left_out + broken


def _folder(folders: Sequence[str | Path], out: str | Path | None) -> Path:
    first = Path(folders[0])
    return Path(out) if out else (first.parent if first.is_file() else first) / "report"


@contextmanager
def _written_to(folder: Path) -> Iterator[Path]:
    """Makes the folder of a report. Raises UserError where it or a file in it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise UserError(
            f"the report cannot be written: {error.filename or folder}: {reason(error)}. The rows are untouched: give"
            " out=FOLDER, one that can be written and has room"
        ) from error


def _draw(names: Sequence[str], results: Results, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    entries = catalogue()
    figures, missing = {}, {}
    for name in names:
        path = entries[name].draw(results, folder)
        if path is None:
            remove(folder, name)
            missing[name] = entries[name].missing
        else:
            figures[name] = path
    return figures, missing


def _collect(datasets: dict[str, list[Point]]) -> tuple[Results, list, str, list[str]]:
    """What figures are drawn from, all galleries by name, the name of the one that the page shows first, and a line
    for each gallery that cannot be read.
    """
    names = _names(datasets)
    blocks, galleries, start = [], [], ""
    left_out: list[str] = []
    for dataset, points in datasets.items():
        own, broken = read_galleries([row for point in points for row in point.rows])
        left_out += broken
        where = f"{dataset}, " if len(datasets) > 1 else ""
        galleries += [(f"{where}{names[id(row)]}", gallery) for row, gallery in own]
        if not own:
            continue
        chosen = choose_galleries(own)
        first = chosen[0][0]
        start = start or f"{where}{names[id(first)]}"
        title = f"{first.model} on {first.dataset}"
        blocks.append(Block(title, [(names[id(row)], gallery) for row, gallery in chosen]))
    return Results(datasets, blocks), galleries, start, left_out


def _names(datasets: dict[str, list[Point]]) -> dict[int, str]:
    """What each row is called among those of its data set, by its identity."""
    names = {}
    for point in (point for points in datasets.values() for point in points):
        for row in point.rows:
            seed = f"seed {row.seed}" if len(point.rows) > 1 else ""
            names[id(row)] = ", ".join(part for part in (point.series, point.setting, seed) if part)
    return names
