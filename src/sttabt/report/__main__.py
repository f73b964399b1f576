"""`python -m sttabt.report FOLDER... [out=FOLDER] [title=TEXT] [choose=SETTING,...]`: figures and a page from rows."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from sttabt.errors import UserError, nearest

USAGE = """usage: python -m sttabt.report FOLDER... [out=FOLDER] [title=TEXT] [choose=SETTING,...]

Reads every row.json below the folders and writes table.md, table.csv, index.html, the figure pareto and, where rows are
of texts, the figure tasks, where they have galleries, the figure tokens; each figure as .png, .pdf, .svg and .csv.
Data sets stay apart. out is FOLDER/report where it is not given.
choose=temperature reports, of rows that differ in that setting alone, those of the lowest validation loss.
"""
OPTIONS = ("out", "title", "choose")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, or 2 for a user's mistake."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0
    try:
        folders, options = _parse(arguments)
        # matplotlib and pandas load after the arguments are known to be good.
        from sttabt.report.build import make_report

        choose = [name for name in options.pop("choose", "").split(",") if name]
        report = make_report(folders, **options, choose=choose)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    table = report.table.read_text(encoding="utf-8")
    paths = [str(path) for path in (report.table, report.figure, report.tasks, report.tokens, report.page) if path]
    sys.stdout.write("\n".join([table, *paths, ""]))
    return 0


def _parse(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    folders: list[str] = []
    options: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in OPTIONS:
            options[name] = value
        # The folders of a sweep's jobs have = in their names too.
        elif equals and re.fullmatch(r"[a-z_]+", name) and not Path(argument).exists():
            raise UserError(f"{argument}: there is no option {name}, {nearest(name, OPTIONS)}")
        else:
            folders.append(argument)
    if not folders:
        raise UserError("give a folder with result rows: python -m sttabt.report FOLDER... [out=FOLDER] [title=TEXT]")
    return folders, options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
