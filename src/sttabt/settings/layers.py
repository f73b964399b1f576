"""At which layers a method decides."""

from __future__ import annotations

from collections.abc import Sequence

from sttabt.errors import UserError

QUARTERS = (1, 2, 3)  # of a model's depth: the layers 3, 6 and 9 of 12


def deciding_layers(given: Sequence[int], layers: int, allowed: range) -> list[int]:
    """The layers, counted from 0, at which a method decides; [] stands for a quarter, half and three quarters of them.

    allowed: where it can. Raises UserError for layers that a model of so many does not have there, or not in order.
    """
    if not given:
        return sorted({layers * quarter // 4 for quarter in QUARTERS} & set(allowed))
    if list(given) != sorted(set(given)):
        raise UserError(f"sparsity.layers={list(given)} must rise, each layer once")
    if outside := [layer for layer in given if layer not in allowed]:
        where = f"{allowed.start} to {allowed.stop - 1}" if allowed else "none"
        raise UserError(
            f"sparsity.layers={list(given)}: of a model of {layers} layers, counted from 0, only some can decide"
            f" ({where}), and {outside[0]} cannot"
        )
    return list(given)
