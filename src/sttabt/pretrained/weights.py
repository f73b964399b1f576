"""Weights from a local file, loaded strictly."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from sttabt.errors import UserError
from sttabt.pretrained.files import ENTRIES, read_weights
from sttabt.pretrained.names import from_released, official_state
from sttabt.pretrained.positions import fit_positions
from sttabt.pretrained.states import (
    below,
    check_numbers,
    common_prefixes,
    load_views,
    mismatches,
    shown,
    without_unused,
)
from sttabt.store.artifacts import AVERAGED
from sttabt.system.files import checksum

if TYPE_CHECKING:
    from sttabt.backbones.base import Backbone
    from sttabt.models.approximate import ApproximateNetwork

APPROXIMATE = "approx_bert"  # where official files keep the approximate network's
OWN = ("base.model.", "model.")  # before a base model's names in files of this project: pruned models, base models
BESIDE = ("approx.", "method.", AVERAGED)  # what stands beside a base model there
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]")  # PyTorch's convention: NAME-SHA256.pth

log = logging.getLogger(__name__)


def load_weights(base: Backbone, path: Path, setting: str, new_head: bool = False) -> bool:
    """Load `path` (.safetensors, or a torch file) into a base model, every name and shape matching.

    It may be a published checkpoint (under the library's names, transformers' or the official implementation's), or
    one of this project's files. What wrappers put before all names (`module.`, `_orig_mod.`, `net.`) is taken off.
    new_head: where the file has no head of these classes the model keeps its own, and True is given back. Raises
    UserError naming `setting` when the file is missing or broken, belongs to another architecture, or holds anything
    but floating-point numbers.
    """
    return load_released(base, read_weights(path, setting), f"{setting}={path}", new_head)


def load_released(base: Backbone, state: Mapping[str, Tensor], source: str, new_head: bool = False) -> bool:
    """As `load_weights`, of a published model's weights by name; `source` names them in errors."""
    check_numbers(without_unused(state), source)
    prefix, named = _likeliest(base, state)
    if prefix not in ("", *OWN):
        log.info("%s: '%s' before all names is taken off", source, prefix)
    return _load(base, fit_positions(base, named), source, new_head)


def load_approx(network: ApproximateNetwork, path: Path, setting: str) -> None:
    """Load `path` into an approximate network: an official file, a converted one, or an artifact of this project.

    Raises UserError as `load_weights` does.
    """
    state = read_weights(path, setting, (APPROXIMATE, *ENTRIES))
    check_numbers(without_unused(state), f"{setting}={path}")
    own = below("approx.", state) or state
    own = below(max(common_prefixes(own), key=lambda prefix: _fitting(network, below(prefix, own))), own)
    try:
        if any(name.startswith("backbone.") for name in own):
            load_views(own, network.state_dict())
        else:
            network.load_official_state(own)
    except UserError as error:
        raise UserError(f"{setting}={path}: {error}") from error


def verify(path: Path, expected: str, setting: str) -> str:
    """The SHA-256 of a file, checked against `expected` (or its beginning) and against a hash in the file's name."""
    try:
        found, named = checksum(path), HASH_IN_NAME.search(path.name)
    except OSError as error:
        raise UserError(f"{setting}={path} cannot be read: {error.strerror}") from error
    if expected and not found.startswith(expected.lower()):
        raise UserError(f"{setting}={path} has the checksum {found}, not model.sha256={expected}: fetch it again")
    if named and re.search("[a-f]", named[1]) and not found.startswith(named[1]):  # digits alone are a date
        raise UserError(
            f"{setting}={path} has the checksum {found[: len(named[1])]}..., not the {named[1]}... of its name:"
            " it is damaged, fetch it again, or rename it if that is no checksum"
        )
    return found


def _likeliest(base: Backbone, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Which prefix to take off, and what is then there under the names of `base.model`: as many of these as can be."""
    readings = [
        (prefix, own)
        for prefix in OWN
        if (own := below(prefix, state)) and all(name.startswith((prefix, *BESIDE)) for name in state)
    ]
    used = without_unused(state)
    readings += [(prefix, from_released(base, below(prefix, used))) for prefix in common_prefixes(used)]
    expected = base.model.state_dict().keys()
    return max(readings, key=lambda reading: len(expected & reading[1].keys()))


def _fitting(network: ApproximateNetwork, state: Mapping[str, Tensor]) -> int:
    """How many of the names are those of an approximate network, under this project's or the official ones."""
    official = official_state(network.backbone).keys()
    known = {*network.state_dict(), *official, *(f"bert.{name}" for name in official)}
    return len(known & state.keys())


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
        raise UserError(f"{source} belongs to another architecture: {shown(wrong)}")
    base.model.load_state_dict(state, strict=True)
    return kept
