"""Makes the whole report from folders of rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sttabt.report.choice import best_by_validation
from sttabt.report.gallery import choose as choose_galleries
from sttabt.report.gallery import read_galleries
from sttabt.report.page import write_page
from sttabt.report.pareto import draw_pareto
from sttabt.report.points import ONE_FIGURE, check_comparable, to_points
from sttabt.report.rows import Row, read_rows
from sttabt.report.table import format_points, heading, to_frame
from sttabt.report.tokens import draw_tokens


@dataclass(frozen=True)
class ReportFiles:
    """What a report is made of; the figures have a .pdf beside them, the table a .csv."""

    table: Path
    figure: Path
    tokens: Path | None  # None where no row has a gallery
    page: Path


def make_report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    title: str | None = None,
    choose: Sequence[str] = (),
) -> ReportFiles:
    """Reads all rows below the folders and writes tables, figures and the page into `out`.

    `out` is the first folder's subfolder `report` where it is not given. Of rows that differ in the settings `choose`
    alone, the best by validation loss are reported. The same rows give the same bytes.

    Raises:
        UserError: a folder has no rows, the rows are of several data sets, splits, models or metrics, or no row has a
            setting of `choose`.
    """
    rows = read_rows(folders)
    check_comparable(rows)
    chosen = best_by_validation(rows, choose)
    return _write(chosen, Path(out) if out else Path(folders[0]) / "report", title, choose)


def make_reports(folders: Sequence[str | Path], out: Path, choose: Sequence[str] = ()) -> list[ReportFiles]:
    """As `make_report`, but rows that cannot share a figure get a report each, in a folder of `out` named by why."""
    rows = best_by_validation(read_rows(folders), choose)
    apart: list[str] = []
    for name in ONE_FIGURE:
        if len(_by(rows, [*apart, name])) > len(_by(rows, apart)):
            apart.append(name)
    reports = []
    for values, own in _by(rows, apart).items():
        folder = out / "_".join(re.sub(r"[^\w.-]+", "-", value) for value in values)
        reports.append(_write(own, folder, None, choose))
    return reports


def _by(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: [getattr(row, name) for name in names]):
        groups.setdefault(tuple(getattr(row, name) for name in names), []).append(row)
    return groups


def _write(rows: Sequence[Row], out: Path, title: str | None, chosen: Sequence[str]) -> ReportFiles:
    out.mkdir(parents=True, exist_ok=True)
    points = to_points(rows, chosen)
    rows = [row for point in points for row in point.rows]
    settings = {id(row): point for point in points for row in point.rows}

    def name(row: Row) -> str:
        point = settings[id(row)]
        seed = f"seed {row.seed}" if len(point.rows) > 1 else ""
        return ", ".join(part for part in (point.series, point.setting, seed) if part)

    (out / "table.md").write_text(format_points(points), encoding="utf-8")
    to_frame(rows).to_csv(out / "table.csv", index=False)
    figure = draw_pareto(points, out)
    galleries = read_galleries(rows)
    tokens = None
    if galleries:
        tokens = draw_tokens([(name(row), gallery) for row, gallery in choose_galleries(galleries)], out)
    else:
        # Figures of an earlier report would pass for this one's.
        for suffix in (".png", ".pdf"):
            (out / f"tokens{suffix}").unlink(missing_ok=True)
    shown = [(name(row), gallery) for row, gallery in galleries]
    start = name(choose_galleries(galleries)[0][0]) if galleries else ""
    page = write_page(out / "index.html", title or heading(rows), points, figure, shown, start)
    return ReportFiles(table=out / "table.md", figure=figure, tokens=tokens, page=page)
