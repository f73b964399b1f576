"""Points of one model and data set that differ in one or two settings alone, for figures of what those decide."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sttabt.report.points import METHOD, ONE_TABLE, VARIANTS, Point, describe, spell

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ablation:
    """Points that share everything but the settings asked for, by the values of those."""

    title: str  # the method, and what tells it from the other ablations of that method
    label: str  # the method's name for readers
    points: dict[tuple[Any, ...], Point]


def ablations(points: Sequence[Point], names: Sequence[str]) -> list[Ablation]:
    """Groups points by everything but `names`: the field `factor`, or names in the rows' `settings`.

    Groups with fewer than two values of any of the names are left out.
    """
    groups: dict[tuple, dict[tuple, Point]] = defaultdict(dict)
    for point in points:
        described = _describe(point)
        values = tuple(described.pop(name, None) for name in names)
        if None in values:
            continue
        group = groups[tuple(sorted(described.items(), key=lambda item: item[0]))]
        if values in group:
            named = ", ".join(f"{name} {spell(value)}" for name, value in zip(names, values, strict=True))
            log.warning("%s: several points at %s, of which the first is drawn", point.series, named)
        group.setdefault(values, point)
    kept = {key: group for key, group in groups.items() if all(len(set(own)) > 1 for own in zip(*group, strict=True))}
    found = []
    for key, group in kept.items():
        label = next(iter(group.values())).label
        rivals = [dict(other) for other, own in kept.items() if next(iter(own.values())).label == label]
        differing = [(name, value) for name, value in key if len({other.get(name) for other in rivals}) > 1]
        telling = [text for name, value in differing if (text := describe(name, value))]
        ordered = dict(sorted(group.items()))
        found.append(Ablation(", ".join([label, *telling]), label, ordered))
    return found


def _describe(point: Point) -> dict[str, Any]:
    """Everything that says what a point is, but for its seeds."""
    first = point.rows[0]
    fields = {name: getattr(first, name) for name in (*METHOD, *ONE_TABLE, *VARIANTS)}
    return fields | {"commit": point.commit} | first.settings
