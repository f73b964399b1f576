"""Reading from the Hugging Face hub, its cache or a local folder: what goes wrong, in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from transformers.utils import logging as library_logging

from sttabt.errors import UserError

Made = TypeVar("Made")


def read_hub(huggingface: str, read: Callable[[], Made]) -> Made:
    """What `read` makes of `model.huggingface`; raises UserError when it can read nothing there."""
    try:
        return read()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if Path(huggingface).is_dir():
            raise UserError(f"model.huggingface={huggingface} cannot be loaded from that folder: {reason}") from error
        raise UserError(
            f"model.huggingface={huggingface} is no folder here and was not found on the hub or in its cache: give a"
            f" local folder with config.json and model.safetensors, or load it once with a network ({reason})"
        ) from error


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
