"""Weights by name: which of them fit a model, and which are not used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sttabt.errors import UserError

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
        raise UserError(f"these weights belong to another architecture: {'; '.join(wrong[:3])} ({len(wrong)} in all)")
    with torch.no_grad():
        for name, target in views.items():
            target.copy_(state[name])


def mismatches(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being loaded as `expected`, one phrase a tensor; empty when all names and shapes fit."""
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is unexpected" for name in state if name not in expected]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    return wrong


def below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
