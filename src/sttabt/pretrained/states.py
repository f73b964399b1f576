"""Weights by name: which of them fit a model, and which are not used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from sttabt.errors import UserError

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COUNTERS = ("num_batches_tracked", "token_type_ids")  # what names of integers end with that are no weights
SHOWN = 3  # mismatches in a message
UNUSED = (
    *("concrete_prop_p_logit", "ltp_prune_token_module", ".p_logit"),  # pruning parameters of official files
    "embeddings.position_ids",  # a buffer that transformers before 4.31 saved; it holds 0, 1, 2, ...
)


def without_unused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without what older files hold beside them and no computation here reads."""
    return {name: value for name, value in state.items() if not any(word in name for word in UNUSED)}


def load_views(state: Mapping[str, Tensor], views: Mapping[str, Tensor]) -> None:
    """Copy `state` into a module's tensors, given as views by name; raises UserError naming what does not fit."""
    wrong = mismatches(state, views)
    if wrong:
        raise UserError(f"these weights belong to another architecture: {shown(wrong)}")
    with torch.no_grad():
        for name, target in views.items():
            target.copy_(state[name])


def mismatches(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being loaded as `expected`, one phrase a tensor; empty when all names and shapes fit."""
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    wrong = []
    for place, name in enumerate(missing):
        near = get_close_matches(name, unexpected, n=1) if place < SHOWN else []
        wrong.append(f"{name} is missing" + (f" (the nearest there is {near[0]})" if near else ""))
    wrong += [f"{name} is unexpected" for name in unexpected]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    return wrong


def shown(wrong: Sequence[str]) -> str:
    """The first of them, and how many there are."""
    return f"{'; '.join(wrong[:SHOWN])} ({len(wrong)} in all)"


def check_numbers(state: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError, by name, for weights that are no plain floating-point numbers, or too large for float32.

    Half and double precision are: what they hold is kept, to the rounding of the model's own.
    """
    for name, value in state.items():
        if value.layout != torch.strided or value.is_meta:
            raise UserError(f"{source}: {name} is {_kind(value)}: give dense tensors with their numbers")
        if value.dtype not in FLOATING and not (name.endswith(COUNTERS) and not value.is_floating_point()):
            raise UserError(
                f"{source}: {name} holds {value.dtype}, which is quantised or no weight: give the floating-point"
                " weights (float32, float16, bfloat16 or float64)"
            )
        if value.dtype == torch.float64 and (value.float().isinf() & value.isfinite()).any():
            largest = float(value[value.isfinite()].abs().max())
            raise UserError(f"{source}: {name} holds {largest:.3g}, which float32 cannot: give other weights")


def _kind(value: Tensor) -> str:
    return "without numbers (on meta)" if value.is_meta else f"sparse ({value.layout})"


def below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def common_prefixes(names: Mapping[str, Tensor]) -> list[str]:
    """Nothing, and every beginning up to a dot that all names share, the shortest first."""
    first = next(iter(names), "")
    starts = ["", *(first[: place + 1] for place, sign in enumerate(first) if sign == ".")]
    return [start for start in starts if all(name.startswith(start) for name in names)]
