"""Checkpoints that are whole or not there: the last one of a training, and the one before it."""

from __future__ import annotations

import logging
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from sttabt.system.files import replacing

UNREADABLE = (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, ValueError, KeyError)  # of a damaged file
LAST, BEFORE, DAMAGED = "last.ckpt", "before.ckpt", "damaged.ckpt"

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes and renames; what was there before is kept as BEFORE."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        with replacing(target) as partial:
            try:
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
            except RuntimeError as error:  # in which torch hides what the disk said
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise
            if target.exists():
                target.replace(target.with_name(BEFORE))


def newest(folder: Path) -> Path | None:
    """The checkpoint to go on from: LAST, or BEFORE where the last one is damaged, which is said and set aside."""
    for path in (folder / LAST, folder / BEFORE):
        if not path.exists():
            continue
        if _is_whole(path):
            return path
        path.replace(folder / DAMAGED)
        remedy = "goes on from the one before it" if (folder / BEFORE).exists() else "begins again"
        log.warning("%s is damaged and is set aside as %s: the stage %s", path, DAMAGED, remedy)
    return None


def forget(folder: Path) -> None:
    """Takes the checkpoints away, so that the stage begins again."""
    for path in folder.glob("*.ckpt"):
        path.unlink()


def _is_whole(path: Path) -> bool:
    """The format holds a checksum (CRC-32) of every part, which torch writes and does not look at."""
    try:
        with zipfile.ZipFile(path) as parts:
            if parts.testzip() is not None:
                return False
        torch.load(path, map_location="meta", weights_only=True)
    except (*UNREADABLE, RuntimeError, OSError, EOFError):
        return False
    return True
