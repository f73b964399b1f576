"""Makes the whole report from folders of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sttabt.report.gallery import choose, read_galleries
from sttabt.report.page import write_page
from sttabt.report.pareto import draw_pareto
from sttabt.report.points import check_comparable, to_points
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


def make_report(folders: Sequence[str | Path], out: str | Path | None = None, title: str | None = None) -> ReportFiles:
    """Reads all rows below the folders and writes tables, figures and the page into `out`.

    `out` is the first folder's subfolder `report` where it is not given. The same rows give the same bytes.

    Raises:
        UserError: a folder has no rows, or the rows are of several data sets, splits, models or metrics.
    """
    rows = read_rows(folders)
    check_comparable(rows)
    out = Path(out) if out else Path(folders[0]) / "report"
    out.mkdir(parents=True, exist_ok=True)
    points = to_points(rows)
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
        tokens = draw_tokens([(name(row), gallery) for row, gallery in choose(galleries)], out)
    else:
        # Figures of an earlier report would pass for this one's.
        for suffix in (".png", ".pdf"):
            (out / f"tokens{suffix}").unlink(missing_ok=True)
    shown = [(name(row), gallery) for row, gallery in galleries]
    start = name(choose(galleries)[0][0]) if galleries else ""
    page = write_page(out / "index.html", title or heading(rows), points, figure, shown, start)
    return ReportFiles(table=out / "table.md", figure=figure, tokens=tokens, page=page)
