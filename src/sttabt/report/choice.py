"""A choice between settings of a method goes by the validation split, never by the test split."""

from __future__ import annotations

import logging
import statistics
from collections import defaultdict
from collections.abc import Sequence

from sttabt.errors import UserError, nearest
from sttabt.report.points import METHOD, ONE_TABLE, VARIANTS, data_apart, set_settings
from sttabt.report.rows import Row

Values = tuple[object, ...]

log = logging.getLogger(__name__)


def best_by_validation(rows: Sequence[Row], over: Sequence[str]) -> list[Row]:
    """Of rows that share everything but the settings `over` and the seed, those of the lowest validation loss.

    over: names in `Row.settings`, as temperature or training.learning_rate; every method that has none of them keeps
    all its rows. Losses are averaged over seeds, all of which stay. Rows that cannot be compared, as they lack the loss
    or were tried with different seeds, all stay, with a warning.

    Raises:
        UserError: no row has a setting of that name.
    """
    known = sorted({name for row in rows for name in row.settings})
    for name in over:
        if name not in known:
            raise UserError(f"choose={name}: these rows have no setting {name}, {nearest(name, known)}")
    rows = data_apart(rows)
    groups: dict[Values, dict[Values, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[_shared(row, over)][tuple(row.settings.get(name) for name in over)].append(row)
    best = {id(row) for tried in groups.values() for row in _best(tried, over)}
    return [row for row in rows if id(row) in best]


def _shared(row: Row, over: Sequence[str]) -> Values:
    fields = (*METHOD, *ONE_TABLE, *VARIANTS)
    return (*(getattr(row, name) for name in fields), *set_settings(row, but=over))


def _best(tried: dict[Values, list[Row]], over: Sequence[str]) -> list[Row]:
    every = [row for own in tried.values() for row in own]
    if len(tried) == 1:
        return every
    first = every[0]
    knob = [] if first.knob is None or first.knob in over else [f"{first.knob} {first.knob_value}"]
    where = ", ".join([first.dataset, first.label, *knob])
    losses = {values: [row.validation_loss for row in own] for values, own in tried.items()}
    seeds = {tuple(sorted(row.seed for row in own)) for own in tried.values()}
    if any(loss is None for own in losses.values() for loss in own) or len(seeds) > 1:
        why = "were tried with different seeds" if len(seeds) > 1 else "lack the validation loss"
        log.warning("%s: %s is not chosen, as rows %s: all are shown", where, " and ".join(over), why)
        return every
    means = {values: statistics.fmean(loss for loss in own if loss is not None) for values, own in losses.items()}
    best = min(means, key=lambda values: means[values])
    named = ", ".join(f"{name} {value}" for name, value in zip(over, best, strict=True))
    log.info("%s: %s has the lowest of %d validation losses, %.4g", where, named, len(tried), means[best])
    return tried[best]
