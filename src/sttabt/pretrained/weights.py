"""Weights from a local file, loaded strictly."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sttabt.errors import UserError
from sttabt.pretrained.names import from_released
from sttabt.pretrained.positions import fit_positions
from sttabt.pretrained.states import below, load_views, mismatches, without_unused
from sttabt.store.files import checksum

if TYPE_CHECKING:
    from sttabt.backbones.base import Backbone
    from sttabt.models.approximate import ApproximateNetwork

ENTRIES = ("model", "state_dict")  # where torch files keep a model's weights
APPROXIMATE = "approx_bert"  # where official files keep the approximate network's
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]")  # PyTorch's convention: NAME-SHA256.pth

log = logging.getLogger(__name__)


def load_weights(base: Backbone, path: Path, setting: str, new_head: bool = False) -> bool:
    """Load `path` (.safetensors, or a torch file) into a base model, every name and shape matching.

    It may be a published checkpoint (under the library's names, transformers' or the official implementation's), or
    one of this project's files. new_head: where the file has no head of these classes the model keeps its own, and
    True is given back. Raises UserError naming `setting` when the file is missing, broken, or belongs to another
    architecture.
    """
    state = read_weights(path, setting, ENTRIES)
    for prefix in ("base.model.", "model."):  # this project's pruned models, and base models
        own = below(prefix, state)
        if own and all(name.startswith((prefix, "approx.", "method.")) for name in state):
            return _load(base, fit_positions(base, own), f"{setting}={path}", new_head)
    return load_released(base, state, f"{setting}={path}", new_head)


def load_released(base: Backbone, state: Mapping[str, Tensor], source: str, new_head: bool = False) -> bool:
    """As `load_weights`, of a published model's weights by name; `source` names them in errors."""
    return _load(base, fit_positions(base, from_released(base, without_unused(state))), source, new_head)


def load_approx(network: ApproximateNetwork, path: Path, setting: str) -> None:
    """Load `path` into an approximate network: an official file, a converted one, or an artifact of this project.

    Raises UserError as `load_weights` does.
    """
    state = read_weights(path, setting, (APPROXIMATE,))
    own = below("approx.", state) or state
    try:
        if any(name.startswith("backbone.") for name in own):
            load_views(own, network.state_dict())
        else:
            network.load_official_state(own)
    except UserError as error:
        raise UserError(f"{setting}={path}: {error}") from error


def verify(path: Path, expected: str, setting: str) -> str:
    """The SHA-256 of a file, checked against `expected` (or its beginning) and against a hash in the file's name."""
    found, named = checksum(path), HASH_IN_NAME.search(path.name)
    if expected and not found.startswith(expected.lower()):
        raise UserError(f"{setting}={path} has the checksum {found}, not model.sha256={expected}: fetch it again")
    if named and re.search("[a-f]", named[1]) and not found.startswith(named[1]):  # digits alone are a date
        raise UserError(
            f"{setting}={path} has the checksum {found[: len(named[1])]}..., not the {named[1]}... of its name:"
            " it is damaged, fetch it again, or rename it if that is no checksum"
        )
    return found


def read_weights(path: Path, setting: str, entries: tuple[str, ...] = ENTRIES) -> dict[str, Tensor]:
    """The tensors of a file by name; of a torch file those under one of `entries`, where it has any.

    What distributed training puts before the names (`module.`) is taken away.
    """
    state = read_file(path, setting)
    for entry in entries:
        if isinstance(state, dict) and isinstance(state.get(entry), dict):
            state = state[entry]
    if not isinstance(state, dict):
        raise UserError(f"{setting}={path} holds a {type(state).__name__}: give a file of tensors by name")
    return tensors_of(state)


def read_file(path: Path, setting: str) -> Any:
    """What a .safetensors or torch file holds; code in it is never run."""
    if not path.is_file():
        raise UserError(f"{setting}={path} is not a file: give the path of a .safetensors or torch file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options that training scripts save
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        foreign = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if foreign:
            raise UserError(
                f"{setting}={path} holds more than tensors ({foreign[1]}), which could run code: save its weights alone"
                " with torch.save, or as .safetensors"
            ) from error
        raise UserError(f"{setting}={path} cannot be read, it may be truncated: {reason}") from error


def tensors_of(state: Any) -> dict[str, Tensor]:
    """The tensors of a mapping by name, without what distributed training puts before the names (`module.`)."""
    tensors = (
        {name: value for name, value in state.items() if isinstance(value, Tensor)} if isinstance(state, dict) else {}
    )
    return below("module.", tensors) or tensors


def _load(base: Backbone, state: dict[str, Tensor], source: str, new_head: bool) -> bool:
    expected, kept = base.model.state_dict(), False
    heads = {name: value for name, value in expected.items() if name.startswith(base.head_prefixes)}
    if new_head:
        for name, value in heads.items():
            if name not in state or state[name].shape != value.shape:
                log.info("%s has no %s of shape %s: it starts anew", source, name, tuple(value.shape))
                state[name], kept = value, True
    wrong = mismatches(state, expected)
    if wrong:
        other = [name for name in heads if name in state and state[name].shape[1:] == heads[name].shape[1:]]
        if len(wrong) == len([name for name in other if state[name].shape != heads[name].shape]):
            there, here = len(state[other[0]]), len(heads[other[0]])
            raise UserError(
                f"{source} has a head for {there} classes, but dataset.classes={here}: set dataset.classes={there},"
                " or train a new head with model.fine_tune=true"
            )
        raise UserError(f"{source} belongs to another architecture: {'; '.join(wrong[:3])} ({len(wrong)} in all)")
    base.model.load_state_dict(state, strict=True)
    return kept
