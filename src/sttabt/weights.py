"""Weights from a local file, loaded strictly."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sttabt.errors import UserError

log = logging.getLogger(__name__)


def load_weights(module: nn.Module, path: Path, setting: str, new_head: tuple[str, ...] = ()) -> None:
    """Load `path` (.safetensors, or a torch file of tensors) into `module`, every name and shape matching.

    new_head: prefixes of names that the module keeps as they are where the file has nothing of their shape.
    Raises UserError naming `setting` when the file is missing, broken, or belongs to another architecture.
    """
    state, expected = read_weights(path, setting), module.state_dict()
    for name, value in expected.items():
        if new_head and name.startswith(new_head) and (name not in state or state[name].shape != value.shape):
            log.info("%s=%s has no %s of shape %s: it starts anew", setting, path, name, tuple(value.shape))
            state[name] = value
    wrong = mismatches(state, expected)
    if wrong:
        raise UserError(
            f"{setting}={path} belongs to another architecture: {'; '.join(wrong[:3])} ({len(wrong)} in all)"
        )
    module.load_state_dict(state, strict=True)


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


def read_weights(path: Path, setting: str) -> dict[str, Tensor]:
    """The tensors of a file by name; a torch file may hold them under `model` or `state_dict`."""
    if not path.is_file():
        raise UserError(f"{setting}={path} is not a file: give the path of a .safetensors or torch file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{setting}={path} cannot be read, it may be truncated: {reason}") from error
    for entry in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(entry), dict):
            state = state[entry]
    if not isinstance(state, dict):
        raise UserError(f"{setting}={path} holds a {type(state).__name__}: give a file of tensors by name")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
