"""The artifact store: weights, each found by what made it, shared by all jobs of a sweep.

`root/stage/<fingerprint>/` holds `model.safetensors` and, written last, `artifact.json`. A folder without
`artifact.json` is unfinished: it may hold a checkpoint to resume from. `root/stage/<fingerprint>.lock` is held by the
job that works on the folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from sttabt.errors import UserError
from sttabt.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, RECORD = "model.safetensors", "artifact.json"
MODEL_STAGES = ("base", "general", "approx", "prune")  # those whose artifacts are weights
AVERAGED = "averaged."  # what the names of averaged weights begin with, beside those they are averages of
SHOWN_DIFFERENCES = 3

log = logging.getLogger(__name__)


def fingerprint(description: Mapping[str, Any]) -> str:
    """16 hex digits that are the same for equal descriptions, whatever their order.

    Raises TypeError or ValueError for what JSON cannot say: objects, NaN, infinities.
    """
    return hashlib.sha256(_canonical(description).encode()).hexdigest()[:16]


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Claim:
    """The right to work on one artifact; `finished` says that it is there already."""

    folder: Path
    stage: str
    description: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        return (self.folder / RECORD).exists()

    def finish(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> None:
        """Write the weights, then the record that makes the artifact count; an interruption leaves it unfinished.

        Raises UserError when a weight is infinite or no number: nothing is written then.
        """
        import torch
        from safetensors.torch import save_file

        if (name := first_not_finite(tensors)) is not None:
            raise UserError(f"stage {self.stage} gave weights that are not finite ({name}): nothing is kept of them")
        # Tied weights share memory, which the format refuses: each name gets its own copy.
        own = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        weights = self.folder / WEIGHTS
        partial = weights.with_suffix(".partial")
        save_file(own, partial)
        record = {
            "stage": self.stage,
            "fingerprint": fingerprint(self.description),
            "description": dict(self.description),
            "version": __version__,
            "bytes": partial.stat().st_size,
            "sha256": checksum(partial),
            "notes": dict(notes or {}),
        }
        _publish(partial, weights)
        partial = self.folder / f"{RECORD}.partial"
        partial.write_text(json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
        _publish(partial, self.folder / RECORD)


class Store:
    """Artifacts below `root`, by stage and description."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @contextmanager
    def claim(self, stage: str, description: Mapping[str, Any]) -> Iterator[Claim]:
        """Hold the artifact's lock, waiting for another job's; make the artifact if it is not `finished`.

        Of several nodes only the first may claim: the others would wait for it.
        """
        claim = Claim(self.folder(stage, description), stage, description)
        claim.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(claim.folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another job, which makes the artifact %s", claim.folder)
            lock.acquire()
        try:
            yield claim
        finally:
            lock.release()

    def folder(self, stage: str, description: Mapping[str, Any]) -> Path:
        """Where the artifact is or will be."""
        return self.root / stage / fingerprint(description)

    def find(self, stage: str, description: Mapping[str, Any]) -> Path | None:
        """The folder of the finished artifact, or None."""
        folder = self.folder(stage, description)
        return folder if (folder / RECORD).exists() else None

    def load(self, stage: str, description: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and record. Raises UserError when there is none, or as `load_folder` does."""
        folder = self.find(stage, description)
        if folder is None:
            raise UserError(self.missing_message(stage, description))
        return load_folder(folder, description)

    def missing_message(self, stage: str, description: Mapping[str, Any]) -> str:
        """One line: there is no such artifact, and how the nearest one of that stage differs."""
        start = f"no finished '{stage}' artifact for these settings in {self.root}"
        candidates = []
        for path in sorted(self.root.glob(f"{stage}/*/{RECORD}")):
            found = read_record(path)["description"]
            candidates.append((_differences(found, description), path.parent))
        if not candidates:
            return f"{start}, and none of that stage for any other"
        differing, folder = min(candidates, key=lambda candidate: len(candidate[0]))
        shown = ", ".join(f"{key} ({there} there, {asked} here)" for key, there, asked in differing[:SHOWN_DIFFERENCES])
        more = len(differing) - SHOWN_DIFFERENCES
        rest = f" and {more} more" if more > 0 else ""
        return f"{start}; the nearest, {folder.name}, differs in {shown}{rest}"


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds an infinity or no number; None where all are finite."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def load_folder(
    folder: str | Path, description: Mapping[str, Any] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and record of a finished artifact, on the CPU.

    Raises UserError when the artifact is unfinished, damaged, or was made with other settings than `description`.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    record = read_record(folder / RECORD)
    if description is not None:
        for key, there, asked in _differences(record["description"], description):
            raise UserError(f"{folder} was made with {key}={there}, not with {asked}: choose another artifact")
    weights = folder / WEIGHTS
    if not weights.exists():
        raise UserError(f"{weights} is missing: delete {folder} and run the stage again")
    size = weights.stat().st_size
    if size != record["bytes"]:
        raise UserError(
            f"{weights} is damaged ({size} of {record['bytes']} bytes): delete {folder} and run the stage again"
        )
    if checksum(weights) != record["sha256"]:
        raise UserError(f"{weights} is damaged (its checksum differs): delete {folder} and run the stage again")
    return load_file(weights), record


def read_record(path: Path) -> dict[str, Any]:
    """An artifact's `artifact.json`. Raises UserError when it is missing or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["fingerprint"] != fingerprint(record["description"]):
            raise ValueError("its fingerprint does not belong to its description")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {path.parent} is no finished artifact") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete {path.parent} and run the stage again") from error
    return record


def parents(description: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints of the artifacts, by stage, that one with this description is made from."""
    return {stage: description[stage] for stage in MODEL_STAGES if isinstance(description.get(stage), str)}


def _differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(key, value found, value asked for) of every setting that differs, by key."""
    left, right = dict(_flat(found)), dict(_flat(json.loads(_canonical(asked))))
    keys = sorted(left.keys() | right.keys())
    values = [(key, left.get(key, "nothing"), right.get(key, "nothing")) for key in keys]
    return [value for value in values if value[1] != value[2]]


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, json.dumps(values, sort_keys=True)


def _canonical(description: Mapping[str, Any]) -> str:
    return json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _publish(partial: Path, final: Path) -> None:
    """Rename so that the final name never shows half a file, not even after a power cut."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
