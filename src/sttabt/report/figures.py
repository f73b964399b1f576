"""What all figures share: fonts, and files that repeat byte for byte."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

WRONG = "#B03A00"
FONT = "DejaVu Sans"
FULL_WIDTH = 6.9  # inches: the text of a page in two columns, so that figures are printed as large as they are drawn

SETTINGS = {
    "font.family": FONT,
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.parse_math": False,  # names of folders and methods may have dollar signs
    "pdf.fonttype": 42,  # text stays text in the file
    "svg.hashsalt": "sttabt",  # identifiers in the file are random without it
}


@contextmanager
def figure_style() -> Iterator[None]:
    """matplotlib's defaults with SETTINGS on top, whatever the user's own settings are."""
    with matplotlib.style.context(["default", SETTINGS]):
        yield


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Writes name.png, name.pdf and name.svg; returns the path of the first."""
    # Subsetting a font logs hundreds of lines at the level of our own.
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    figure.savefig(folder / f"{name}.png", dpi=200, metadata={"Software": None})
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    return folder / f"{name}.png"


def remove(folder: Path, name: str) -> None:
    """Removes what an earlier report left: its figures would pass for this one's."""
    for suffix in (".png", ".pdf", ".svg", ".csv", ".md", ".tex"):
        (folder / f"{name}{suffix}").unlink(missing_ok=True)
