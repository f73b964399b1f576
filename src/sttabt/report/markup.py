"""Tables as markdown, for people, and as LaTeX with booktabs, for papers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

SIGNS = {"±": r"$\pm$", "λ": r"$\lambda$"}  # that pdfTeX has no letter for
BOLD = re.compile(r"\*\*([^*\n]+)\*\*")


def bold(text: str) -> str:
    """A cell in bold, in a table of either kind."""
    return f"**{text}**"


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]], numbers: Sequence[bool]) -> list[str]:
    """The lines of a table; columns of `numbers` are aligned right."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (heads, *lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]

    def text(line: Sequence[str]) -> str:
        padded = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numbers, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (w - 1) + ":") if n else "-" * w for w, n in zip(widths, numbers, strict=True)]
    return [text(cells[0]), f"| {' | '.join(rule)} |", *(text(line) for line in cells[1:])]


def write_latex(path: Path, tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]) -> None:
    """Writes tables, each (caption, heads, cells), to be read by \\input; needs the package booktabs.

    What `bold` made of a cell is in bold here, too.
    """
    texts = ["% \\usepackage{booktabs}\n"]
    for number, (caption, heads, lines) in enumerate(tables, 1):
        label = f"tab:{path.stem}" + (f"-{number}" if len(tables) > 1 else "")
        frame = pd.DataFrame(lines, columns=pd.Index(heads))
        numbers = [all(_is_number(line[index]) for line in lines) for index in range(len(heads))]
        shape = "".join("r" if number else "l" for number in numbers)
        texts.append(
            frame.to_latex(
                index=False, escape=True, column_format=shape, caption=_escape(caption), label=label, position="t"
            )
        )
    text = BOLD.sub(r"\\textbf{\1}", "\n".join(texts))
    for sign, command in SIGNS.items():
        text = text.replace(sign, command)
    path.write_text(text, encoding="utf-8")


def _escape(text: str) -> str:
    """The caption, which pandas takes as it is."""
    return "".join(f"\\{sign}" if sign in "%&#_$" else sign for sign in text)


def _is_number(text: str) -> bool:
    text = BOLD.sub(r"\1", text)
    return text == "-" or text[:1].isdigit() or text[:2].strip("-")[:1].isdigit()
