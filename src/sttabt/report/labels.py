"""Order and colour of methods in tables and figures: what their settings say, and a palette for all others."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from sttabt.settings.methods import method_names, method_settings

DENSE = "#000000"  # also of the dense score that others published
# For labels that have no colour of their own: all readers, colour-blind ones among them, tell them from each other
# and from those of this package's methods (Okabe and Ito, "Color Universal Design", 2008).
OTHERS = ("#4B0092", "#543005", "#DDCC77", "#004D40", "#1B7837", "#40004B")


@cache
def known_labels() -> dict[str, str]:
    """label -> colour of every method that is installed, in the order of tables; "" where its settings give none."""
    return {label: colour for name in method_names() for label, colour in method_settings(name).labels().items()}


def rank(label: str) -> tuple[int, str]:
    """What labels are sorted by: known ones in the order of their methods, then the others by name."""
    known = list(known_labels())
    return (known.index(label) if label in known else len(known), label)


def colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label of a figure, whatever their order; those without one of their own get one of OTHERS."""
    wanted, known = sorted(set(labels), key=rank), known_labels()
    others = [label for label in wanted if not known.get(label)]
    given = {label: OTHERS[index % len(OTHERS)] for index, label in enumerate(others)}
    return {label: given.get(label) or known[label] for label in wanted}
