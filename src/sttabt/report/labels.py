"""Order and colour of methods in tables and figures: what their settings say, and a palette for all others."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

# Okabe and Ito, "Color Universal Design" (2008).
KNOWN = {
    "dense": "#000000",
    "concrete": "#0072B2",
    "back-tracking (approximate attention)": "#D55E00",
    "back-tracking (actual attention)": "#CC79A7",
    "LTP": "#E69F00",
    "forward top-k": "#009E73",
    "ToMe": "#56B4E9",
    "random": "#7F7F7F",
}
DENSE = "#000000"  # also of the dense score that others published
# For labels that no installed method has: dark tones that colour-blind readers tell from each other and from the above;
# the last four are from Tol, "Colour Schemes" (2021), muted.
OTHERS = ("#8C6D00", "#004B73", "#882255", "#332288", "#117733", "#AA4499")


@cache
def known_labels() -> dict[str, str]:
    """label -> colour of every method that is installed, in the order of tables."""
    return dict(KNOWN)


def from_elsewhere(label: str) -> bool:
    """Whether it is of a method that does not come with this package."""
    return label not in KNOWN


def rank(label: str) -> tuple[int, str]:
    """What labels are sorted by: known ones in the order of their methods, then the others by name."""
    known = list(known_labels())
    return (known.index(label) if label in known else len(known), label)


def colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label of a figure, the same whatever their order; more unknown ones than OTHERS repeat."""
    wanted, known = sorted(set(labels), key=rank), known_labels()
    others = [label for label in wanted if label not in known]
    given = {label: OTHERS[index % len(OTHERS)] for index, label in enumerate(others)}
    return {label: known.get(label) or given[label] for label in wanted}
