"""Reading from the Hugging Face hub, its cache or a local folder: what goes wrong, in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor
from transformers.utils import logging as library_logging

from sttabt.errors import UserError
from sttabt.pretrained.classes import CONFIG
from sttabt.pretrained.files import read_weights
from sttabt.pretrained.jsons import read_json
from sttabt.pretrained.states import check_numbers, without_unused

Made = TypeVar("Made")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def read_hub(huggingface: str, read: Callable[[], Made]) -> Made:
    """What `read` makes of `model.huggingface`; raises UserError when it can read nothing there."""
    if Path(huggingface).is_dir():
        read_json(Path(huggingface) / CONFIG, f"model.huggingface={huggingface}")
    try:
        return read()
    except UserError:
        raise
    except Exception as error:  # of a broken configuration the library raises anything
        lines = [line.strip() for line in str(error).strip().splitlines()] or [""]
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        if isinstance(error, KeyError | ArithmeticError | AttributeError | TypeError) or not reason:
            reason = f"{type(error).__name__} {reason}"
        if Path(huggingface).is_dir():
            raise UserError(f"model.huggingface={huggingface} cannot be loaded from that folder: {reason}") from error
        raise UserError(
            f"model.huggingface={huggingface} is no folder here and was not found on the hub or in its cache: give a"
            f" local folder with config.json and model.safetensors, or load it once with a network ({reason})"
        ) from error


def hub_file(huggingface: str, name: str) -> Path | None:
    """That file of a hub id or local folder, None where it has none of that name."""
    folder = Path(huggingface)
    if folder.is_dir():
        return folder / name if (folder / name).exists() else None
    try:
        return Path(hf_hub_download(huggingface, name))
    except EntryNotFoundError:
        return None


def hub_weights(huggingface: str) -> dict[str, Tensor]:
    """The weights of a hub id or local folder by name, of one file or of several with an index.

    Raises UserError when there are none, as `read_weights` does, and for what is no floating-point number.
    """
    source = f"model.huggingface={huggingface}"
    for name in WEIGHT_FILES:
        files = []
        if found := read_hub(huggingface, lambda: hub_file(huggingface, name)):  # noqa: B023, called at once
            files = [found]
        elif index := read_hub(huggingface, lambda: hub_file(huggingface, f"{name}.index.json")):  # noqa: B023
            parts = read_json(index, source).get("weight_map")
            names = sorted(set(parts.values())) if isinstance(parts, dict) else []
            files = [index.parent / part for part in names if Path(str(part)).name == part]
        if files:
            state: dict[str, Tensor] = {}
            for file in files:
                state |= read_weights(file, "model.huggingface")
            check_numbers(without_unused(state), source)
            return state
    raise UserError(
        f"{source} cannot be loaded from that folder: it has none of {', '.join(WEIGHT_FILES)}"
        if Path(huggingface).is_dir()
        else f"{source} has none of {', '.join(WEIGHT_FILES)}: choose one that has weights for PyTorch"
    )


@contextmanager
def quiet_library() -> Iterator[None]:
    """The library's own report of what it loaded would repeat, at length, what is checked here."""
    verbosity, bars = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(verbosity)
        if bars:
            library_logging.enable_progress_bar()
