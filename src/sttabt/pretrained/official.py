"""Checkpoints of the official STTABT implementation and files of this project, by the names of their tensors.

An official file holds the base model under `model` (`vit.`, `deit.` or `bert.` before the encoder's names) and the
approximate network under `approx_bert` (`bert.` before them, whatever it is). A file of this project holds a base model
under `base.model.` and an approximate network under `approx.`, as its pruned models do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sttabt.errors import UserError
from sttabt.pretrained.files import read_file, tensors_of, unwrapped
from sttabt.pretrained.states import below, check_numbers, without_unused
from sttabt.pretrained.vit_names import from_official, is_official, to_official
from sttabt.pretrained.weights import APPROXIMATE
from sttabt.system.files import replacing

BASE, APPROX = "base.model.", "approx."
ARTIFACTS = {"model.": BASE, "backbone.": f"{APPROX}backbone.", "transfer_": f"{APPROX}transfer_"}  # of single stages
ENCODER = "approx.backbone.model."
TRANSFER = "transfer_"

_KNOWN = {
    "vit": r"cls_token|dist_token|pos_embed|patch_embed\..+|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\..+"
    r"|norm\..+|head(_dist)?\..+",
    "bert": r"bert\.(embeddings|pooler|encoder\.layer\.\d+)\..+|classifier\..+",
}


def convert(source: Path, target: Path) -> str:
    """Write `target` from `source`, in the direction that the names of `source` ask for; returns what was done.

    Raises UserError when the input cannot be read, is neither kind of file, or when the output's name does not fit.
    """
    content, where = read_file(source, "in"), f"in={source}"
    entries = content if isinstance(content, dict) else {}
    parts = {
        entry: _whole_names(tensors_of(entries[entry], f"{where}: {entry}"))
        for entry in ("model", APPROXIMATE)
        if isinstance(entries.get(entry), dict) and entries[entry]
    }
    if not parts:
        flat = _whole_names(tensors_of(unwrapped(content, where), where))
        own = {start for start in (BASE, APPROX, *ARTIFACTS) if any(name.startswith(start) for name in flat)}
        if own - {TRANSFER}:
            check_numbers(flat, where)
            return _to_official(flat, source, target)
        parts = {APPROXIMATE if any(name.startswith(TRANSFER) for name in flat) else "model": flat}
    for entry, state in parts.items():
        check_numbers(without_unused(state), f"{where}: {entry}")
    return _from_official(parts, source, target)


def _whole_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what distributed training puts before all names."""
    return below("module.", state) if all(name.startswith("module.") for name in state) else state


def _from_official(parts: Mapping[str, dict[str, Tensor]], source: Path, target: Path) -> str:
    if target.suffix != ".safetensors":
        raise UserError(f"out={target} is to hold tensors by name: give it the ending .safetensors")
    ours: dict[str, Tensor] = {}
    lines = []
    for entry, state in parts.items():
        used = without_unused(state)
        transfer = {name: value for name, value in used.items() if name.startswith(TRANSFER)}
        encoder = {name: value for name, value in used.items() if name not in transfer}
        bert = any(".attention.self." in name for name in encoder)
        if not bert and encoder and not is_official(encoder):
            raise UserError(
                f"in={source}: {entry} has no official names ({next(iter(encoder))}): if these are timm's or LV-ViT's,"
                " model.checkpoint reads the file as it is"
            )
        named = encoder if bert else from_official(encoder)
        _check(named, "bert" if bert else "vit", f"in={source}: {entry}")
        start = ENCODER if entry == APPROXIMATE else BASE
        ours |= {f"{start}{name}": value for name, value in named.items()}
        ours |= {f"{APPROX}{name}": value for name, value in transfer.items()}
        lines.append(f"{entry}: {len(state)} tensors, {len(state) - len(used)} of them unused and left out")
    _write(target, ours)
    return "\n".join([*lines, f"wrote {target}"])


def _to_official(flat: dict[str, Tensor], source: Path, target: Path) -> str:
    for start, ours in ARTIFACTS.items():
        flat = {ours + name.removeprefix(start) if name.startswith(start) else name: v for name, v in flat.items()}
    left = [name for name in flat if not name.startswith((BASE, ENCODER, APPROX + TRANSFER))]
    foreign = [name for name in left if not name.startswith("method.")]
    if foreign:
        raise UserError(f"in={source} holds {foreign[0]}, which no model of this project has ({len(foreign)} such)")
    parts: dict[str, dict[str, Tensor]] = {}
    base, network = below(BASE, flat), below(ENCODER, flat)
    if base:
        parts["model"] = _official(base, f"in={source}: base", "deit." if "dist_token" in base else "vit.")
    if network:
        transfer = {f"{TRANSFER}{name}": value for name, value in below(APPROX + TRANSFER, flat).items()}
        parts[APPROXIMATE] = _official(network, f"in={source}: approx", "bert.") | transfer
    # Parts of fused projections share memory, which would be saved whole for each.
    parts = {entry: {name: v.clone() for name, v in state.items()} for entry, state in parts.items()}
    if target.suffix != ".safetensors":
        _write(target, parts)
    elif len(parts) == 1:
        _write(target, next(iter(parts.values())))
    else:
        raise UserError(f"out={target} is to hold two networks: give it the ending .pth")
    lines = [f"{entry}: {len(state)} tensors" for entry, state in parts.items()]
    lines += [f"left out, as official files have no place for it: {', '.join(left)}"] if left else []
    return "\n".join([*lines, f"wrote {target}"])


def _write(target: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all, in the format of the target's ending. Raises UserError when the disk does not take it."""
    with replacing(target) as partial:
        try:
            if target.suffix != ".safetensors":
                torch.save(content, partial)
                return
            # Each its own memory: the format refuses tied weights.
            save_file({n: v.detach().clone(memory_format=torch.contiguous_format) for n, v in content.items()}, partial)
        except (RuntimeError, SafetensorError) as error:  # in which both hide what the disk says
            raise OSError(str(error).strip().partition("\n")[0]) from error


def _official(state: Mapping[str, Tensor], where: str, prefix: str) -> dict[str, Tensor]:
    bert = any(name.startswith("bert.") for name in state)
    _check(state, "bert" if bert else "vit", where)
    if bert:
        return dict(state)
    try:
        named = to_official(state)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{where} is no vision transformer's: a fused projection is not three of one shape") from error
    return {name if "classifier." in name else f"{prefix}{name}": value for name, value in named.items()}


def _check(state: Mapping[str, Tensor], kind: str, where: str) -> None:
    """Raise UserError for names of no vision transformer or BERT, or for a layer that is not there."""
    unknown = [name for name in state if not re.fullmatch(_KNOWN[kind], name)]
    if unknown or not state:
        reason = f"{unknown[0]} is a name of neither ({len(unknown)} such)" if unknown else "it is empty"
        raise UserError(f"{where} is no vision transformer's or BERT's: {reason}; give an official STTABT checkpoint")
    layers = {int(place[1]) for name in state if (place := re.search(r"(?:blocks|layer)\.(\d+)\.", name))}
    gaps = sorted(set(range(max(layers, default=0) + 1)) - layers)
    if gaps:
        raise UserError(f"{where} has no layer {gaps[0]}, of {max(layers, default=0) + 1}: the file is not whole")
