"""Files of weights, from anywhere: read without running code, or refused in one line that says what they are."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sttabt.errors import UserError
from sttabt.system.paths import not_a_file

ENTRIES = (  # where training scripts keep a model's weights, the first that is there
    *("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network", "weights", "params"),
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict"),
)
DEPTH = 4  # how many mappings may stand around the weights
SHOWN = 5  # names in a message
LOOKED_AT = 1024  # bytes that say what a file is
SHORTEST = 10  # bytes of the shortest file of weights
REMEDY = "give a .safetensors file, or what torch.save made of model.state_dict()"

log = logging.getLogger(__name__)


def read_weights(path: Path, setting: str, entries: tuple[str, ...] = ENTRIES) -> dict[str, Tensor]:
    """The tensors of a file by name; of a torch file those under one of `entries`, where it has any.

    Raises UserError naming `setting` as `read_file` does, and where the file holds no tensors by name.
    """
    source = f"{setting}={path}"
    return tensors_of(unwrapped(read_file(path, setting), source, entries), source)


def read_file(path: Path, setting: str) -> Any:
    """What a .safetensors or torch file holds; its beginning says which it is. Code in it is never run.

    Raises UserError naming `setting` when it is missing, no weights file, or damaged as far as its format can tell.
    """
    source = f"{setting}={path}"
    start = _beginning(path, source)
    try:
        if start[8:9] == b"{":  # behind the length of its header, which may begin as anything
            return load_file(path)
        if start.startswith((b"PK", b"\x80")):
            return _read_torch(path)
    except Exception as error:  # of damaged bytes a reader may raise anything
        foreign = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if foreign:
            raise UserError(
                f"{source} holds more than tensors ({foreign[1]}), which could run code: save its weights alone"
                " with torch.save, or as .safetensors"
            ) from error
        raise UserError(f"{source} cannot be read, it may be truncated or damaged: {_reason(error)}") from error
    raise UserError(f"{source} {_what_it_is(start)}")


def tensors_of(state: Any, source: str) -> dict[str, Tensor]:
    """The tensors of a mapping by name. Raises UserError where there are none, or their names are no texts."""
    if not isinstance(state, Mapping):
        raise UserError(f"{source} holds a {type(state).__name__}: give a file of tensors by name")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for name in tensors:
        if not isinstance(name, str):
            raise UserError(f"{source} names its tensors by {type(name).__name__} ({name}), not by text: {REMEDY}")
    if not tensors:
        entries = ", ".join(map(str, list(state)[:SHOWN])) or "nothing"
        raise UserError(f"{source} holds no tensors by name, but {entries}: {REMEDY}")
    return tensors


def _beginning(path: Path, source: str) -> bytes:
    """Raises UserError for what is no file, and for a file of nothing."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            inside = sorted(entry.name for entry in path.iterdir() if entry.suffix in (".safetensors", ".pth", ".bin"))
            hint = f", {path / inside[0]}" if inside else f": {REMEDY}"
            raise UserError(f"{source} is a folder: give a file in it{hint}")
        if not stat.S_ISREG(kind):  # a pipe would be waited for
            raise UserError(f"{source} {not_a_file(path)}: {REMEDY}")
        with path.open("rb") as file:
            start = file.read(LOOKED_AT)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise UserError(f"{source} is not a file: give the path of a .safetensors or torch file") from error
        raise UserError(f"{source} cannot be opened: {_reason(error)}") from error
    if not start:
        raise UserError(f"{source} is empty (0 bytes): fetch it again")
    return start


def _read_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # Torch does not look at the checksums that it wrote; all are 0 where it was told to write none.
            if any(entry.CRC for entry in archive.infolist()) and (broken := archive.testzip()):
                raise ValueError(f"the checksum of {broken} in it differs")
    # The options that training scripts save; torch goes by the file's name unless it is open.
    with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _what_it_is(start: bytes) -> str:
    text = start.lstrip()[:64].lower()
    if text.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the weights: run git lfs pull in its repository, or fetch the file itself"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not weights: fetch the file itself, by its download link"
    if not start.strip(b"\0"):
        return "begins with zeros: its download was not finished, fetch it again"
    if len(start) < SHORTEST:
        return f"is truncated ({len(start)} bytes): fetch it again"
    if not re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", start):
        return f"is text, no weights: {REMEDY}"
    return f"is neither a .safetensors nor a torch file (it begins with {start[:4].hex(' ')}): {REMEDY}"


def unwrapped(content: Any, source: str, entries: tuple[str, ...] = ENTRIES) -> Any:
    """The mapping of the weights, inside what a training script saved around it."""
    taken: list[str] = []
    while len(taken) < DEPTH and isinstance(content, Mapping):
        holders = [name for name, value in content.items() if isinstance(value, Mapping) and value]
        named = [entry for entry in entries if entry in holders]
        if not named and not any(isinstance(value, Tensor) for value in content.values()):
            named = holders if len(holders) == 1 else []
        if not named:
            break
        if len(named) > 1:
            log.info("%s: of its entries %s '%s' is taken", source, ", ".join(named), named[0])
        taken.append(named[0])
        content = content[named[0]]
    if taken and taken[-1] not in entries[:2]:
        log.info("%s: the weights are its entry '%s'", source, ".".join(map(str, taken)))
    return content


def _reason(error: BaseException) -> str:
    """One line, without the advice to run what the file holds."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    if inner := re.search(r"WeightsUnpickler error:\s*(.*)", text):
        text = inner[1]
    first = text.strip().partition("\n")[0]
    if "weights_only" in first:
        first = "it is in a format that cannot be read without running code"
    kind = type(error).__name__
    return first if first and not isinstance(error, KeyError | IndexError | pickle.PickleError) else f"{kind} {first}"
