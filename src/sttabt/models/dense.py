"""The forwards of a dense model that a pruned one is compared with in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sttabt.backbones.base import Backbone
from sttabt.core.plan import keep_all
from sttabt.engine.dropped import run_dropped


def library_forwards(base: Backbone, batches: Sequence[Any]) -> dict[str, Callable[[], object]]:
    """By name, what runs all batches of inputs as the base model's library does.

    batch: as they are, texts padded to the longest; unpadded, of texts: the same packed, real tokens alone, and in the
    last layer only what the head reads. Without that baseline leaving padding out would pass for pruning.
    """
    forwards = {"batch": over(batches, base)}
    if base.may_pad:
        plans = [keep_all(base.real(inputs), base.layers, base.outputs) for inputs in batches]
        pairs = list(zip(batches, plans, strict=True))
        forwards["unpadded"] = over(pairs, lambda pair: run_dropped(base, *pair))
    return forwards


def over(items: Sequence[Any], run: Callable[[Any], object]) -> Callable[[], object]:
    """What runs all items, one after the other."""

    def all_of_them() -> None:
        for item in items:
            run(item)

    return all_of_them
