"""`python -m sttabt.report FOLDER... [figure=NAME,...] [out=FOLDER] ...`: figures, tables and a page from rows."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from sttabt.cli.pairs import read_names_and_pairs
from sttabt.errors import UserError
from sttabt.system.faults import tell
from sttabt.system.signals import run_command

USAGE = """usage: python -m sttabt.report FOLDER... [figure=NAME,...] [out=FOLDER] [title=TEXT] [choose=SETTING,...]

Reads every row.json below the folders, and the table.csv of other reports that are named themselves, and writes
table.md, table.tex, table.csv, index.html and every figure that the rows fill: as .png, .pdf, .svg and .csv.
Data sets stay apart. out is FOLDER/report where it is not given.
figure=NAME,... draws these alone; one whose rows are missing says which runs make them.
choose=temperature reports, of rows that differ in that setting alone, those of the lowest validation loss.
A record that cannot be read is named, left out and left where it is; the exit code is then 1. Links to folders are not
followed: name such folders.

Figures:
"""
OPTIONS = ("figure", "out", "title", "choose")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0; 1 where records were left out; 2 for a user's mistake and for a figure that was asked
    for and has no rows.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(usage())
        return 0
    try:
        folders, options = _parse(arguments)
        choose, names = _split(options.pop("choose", "")), _split(options.pop("figure", ""))
        # matplotlib and pandas load after the arguments are known to be good.
        from sttabt.report.build import draw_figures, make_report
        from sttabt.report.reading import count_left_out

        if names:
            figures, missing, left_out = draw_figures(names, folders, options.get("out"), choose)
            shown = []
        else:
            report = make_report(folders, **options, choose=choose)
            figures, missing, left_out = report.figures, report.missing, report.left_out
            shown = [report.table.read_text(encoding="utf-8"), str(report.table), str(report.page)]
    except Exception as error:
        return tell(error)
    sys.stdout.write("".join(f"{line}\n" for line in [*shown, *map(str, figures.values())]))
    sys.stderr.write("".join(f"{name} is not drawn: {why}\n" for name, why in missing.items()))
    if left_out:
        sys.stderr.write(f"{count_left_out(left_out)}\n")
    return 2 if names and missing else 1 if left_out else 0


def usage() -> str:
    """The help, with every figure of the catalogue."""
    from sttabt.report.catalogue import catalogue

    entries = catalogue()
    width = max(map(len, entries))
    return USAGE + "".join(f"  {name:{width}}  {entry.title}\n" for name, entry in entries.items())


def _parse(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    # The folders of a sweep's jobs have = in their names, too.
    folders, options = read_names_and_pairs(arguments, OPTIONS, _is_folder)
    if "title" in options and options.get("figure"):
        raise UserError("title= has no effect with figure=: figures alone have no page")
    if not folders:
        raise UserError("give a folder with result rows: python -m sttabt.report FOLDER... [out=FOLDER] [title=TEXT]")
    return folders, options


def _is_folder(argument: str) -> bool:
    key = argument.partition("=")[0]
    return key not in OPTIONS and (Path(argument).exists() or not re.fullmatch(r"[a-z_]+", key))


def _split(names: str) -> list[str]:
    return [name for name in names.split(",") if name]


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]), "sttabt.report")
