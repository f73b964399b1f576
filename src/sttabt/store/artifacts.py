"""The artifact store: weights, each found by what made it, shared by all jobs of a sweep.

`root/stage/<fingerprint>/` holds `model.safetensors` and, written last, `artifact.json`. A folder without
`artifact.json` is unfinished: it may hold a checkpoint to resume from. `root/stage/<fingerprint>.lock` is held by the
job that works on the folder. `root/damaged/` holds what was found to be damaged, out of everybody's way.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from sttabt.errors import UserError
from sttabt.system.files import checksum, disk_errors, replacing, sweep, write_atomically
from sttabt.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, RECORD, CARD, DAMAGED = "model.safetensors", "artifact.json", "README.md", "damaged"
MODEL_STAGES = ("base", "general", "approx", "prune", "budget")  # those whose artifacts are models
STAGES = (*MODEL_STAGES, "evaluate", "timing")  # those that have artifacts
AVERAGED = "averaged."  # what the names of averaged weights begin with, beside those they are averages of
ENTRIES = ("stage", "description", "bytes", "sha256", "notes")  # of a record
OWN = "own_sha256"  # that of a record's other entries
SHOWN_DIFFERENCES = 3

log = logging.getLogger(__name__)


class DamagedError(UserError):
    """An artifact in `folder` does not hold what was written; `what` says where that shows."""

    def __init__(self, what: str, folder: Path) -> None:
        super().__init__(f"{what}: delete {folder} and run the stage again, or fetch the model that was shared again")
        self.what, self.folder = what, folder


def fingerprint(description: Mapping[str, Any]) -> str:
    """16 hex digits that are the same for equal descriptions, whatever their order.

    Raises TypeError or ValueError for what JSON cannot say: objects, NaN, infinities.
    """
    return _hash(description)[:16]


@dataclass(frozen=True)
class Claim:
    """The right to work on one artifact.

    made_of: checksums of the weights that it is made from, by stage.
    """

    folder: Path
    stage: str
    description: Mapping[str, Any]
    made_of: Mapping[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """It is there already."""
        return (self.folder / RECORD).exists()

    def record(self) -> dict[str, Any]:
        """Of a finished artifact. Raises DamagedError when it is damaged."""
        return read_record(self.folder / RECORD)

    def outdated(self) -> str:
        """The first stage of those that a finished artifact is made of which has other weights now; '' for none."""
        then = self.record().get("made_of", {})
        return next((stage for stage, sha256 in self.made_of.items() if then.get(stage) != sha256), "")

    def begin_again(self) -> None:
        """It no longer counts as made, and nothing is left of how it was made."""
        (self.folder / RECORD).unlink(missing_ok=True)
        self.clear()

    def finish(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> None:
        """Write the weights, then the record that makes the artifact count; an interruption leaves it unfinished.

        What lies in the folder beside the weights belongs to the artifact, except checkpoints, which are taken away.
        Raises UserError when a weight is infinite or no number: nothing is written then.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if (name := first_not_finite(tensors)) is not None:
            raise UserError(f"stage {self.stage} gave weights that are not finite ({name}): nothing is kept of them")
        weights = self.folder / WEIGHTS
        with replacing(weights) as partial:
            try:
                save_file(_own(tensors), partial)
            except SafetensorError as error:  # of the disk, as the tensors are fit to be written
                raise OSError(str(error)) from error
        record = {
            "stage": self.stage,
            "fingerprint": fingerprint(self.description),
            "description": dict(self.description),
            "made_of": dict(self.made_of),
            "version": __version__,
            "bytes": weights.stat().st_size,
            "sha256": checksum(weights),
            "files": {path.name: checksum(path) for path in _others(self.folder)},
            "notes": dict(notes or {}),
        }
        text = json.dumps(record | {OWN: _hash(record)}, indent=1, sort_keys=True, allow_nan=False) + "\n"
        write_atomically(self.folder / RECORD, text.encode())
        self.clear()

    def clear(self) -> None:
        """Takes away the checkpoints, which a finished artifact has no use for."""
        for path in self.folder.glob("*.ckpt"):
            path.unlink(missing_ok=True)


class Store:
    """Artifacts below `root`, by stage and description."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @contextmanager
    def claim(
        self, stage: str, description: Mapping[str, Any], made_of: Mapping[str, str] | None = None
    ) -> Iterator[Claim]:
        """Hold the artifact's lock, waiting for another job's; make the artifact if it is not `finished`.

        Of several nodes only the first may claim: the others would wait for it.
        """
        claim = Claim(self.folder(stage, description), stage, description, made_of or {})
        with self._locked(claim.folder):
            claim.folder.mkdir(parents=True, exist_ok=True)
            sweep(claim.folder, owned=True)
            yield claim

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

    def records(self, stage: str = "*") -> Iterator[tuple[Path, dict[str, Any]]]:
        """(folder, record) of the finished artifacts; one that is damaged is named, and left out."""
        for path in sorted(self.root.glob(f"{stage}/*/{RECORD}")):
            if path.parts[-3] == DAMAGED:
                continue
            try:
                yield path.parent, read_record(path)
            except DamagedError as error:
                log.warning(str(error))

    def set_aside(self, folder: Path) -> Path | None:
        """Puts a damaged artifact where it is in nobody's way, and says where; None where another job has done so."""
        with self._locked(folder):
            try:
                load_folder(folder)
            except DamagedError:
                return self._put_aside(folder)
            except UserError:
                pass  # it is not there any more
            return None

    def put_aside(self, folder: Path) -> Path:
        """As `set_aside`, of one that holds what was written, which nobody can read any more."""
        with self._locked(folder):
            return self._put_aside(folder)

    def _put_aside(self, folder: Path) -> Path:
        name = f"{folder.parent.name}-{folder.name}"
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        aside = next(path for name in names if not (path := self.root / DAMAGED / name).exists())
        aside.parent.mkdir(exist_ok=True)
        return folder.rename(aside)

    def missing_message(self, stage: str, description: Mapping[str, Any]) -> str:
        """One line: there is no such artifact, and how the nearest one of that stage differs."""
        start = f"no finished '{stage}' artifact for these settings in {self.root}"
        candidates = [
            (_differences(record["description"], description), folder) for folder, record in self.records(stage)
        ]
        if not candidates:
            return f"{start}, and none of that stage for any other"
        differing, folder = min(candidates, key=lambda candidate: len(candidate[0]))
        shown = ", ".join(f"{key} ({there} there, {asked} here)" for key, there, asked in differing[:SHOWN_DIFFERENCES])
        more = len(differing) - SHOWN_DIFFERENCES
        rest = f" and {more} more" if more > 0 else ""
        return f"{start}; the nearest, {folder.name}, differs in {shown}{rest}"

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        lock = FileLock(folder.with_suffix(".lock"))
        with disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info("waiting for another job, which makes the artifact %s", folder)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds an infinity or no number; None where all are finite."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def load_folder(
    folder: str | Path, description: Mapping[str, Any] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and record of a finished artifact, on the CPU.

    Raises UserError when the artifact is unfinished or was made with other settings than `description`, DamagedError
    when it does not hold what was written.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    record = read_record(folder / RECORD)
    if description is not None:
        for key, there, asked in _differences(record["description"], description):
            raise UserError(f"{folder} was made with {key}={there}, not with {asked}: choose another artifact")
    verify(folder, record)
    return load_file(folder / WEIGHTS), record


def verify(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises DamagedError when a file of the artifact is missing, or another than its record says."""
    weights = folder / WEIGHTS
    if weights.is_file() and (size := weights.stat().st_size) != record["bytes"]:
        raise DamagedError(f"{weights} is damaged ({size} of {record['bytes']} bytes)", folder)
    for name, sha256 in {WEIGHTS: record["sha256"], **record.get("files", {})}.items():
        if not (folder / name).is_file():
            raise DamagedError(f"{folder / name} is missing", folder)
        if checksum(folder / name) != sha256:
            raise DamagedError(f"{folder / name} is damaged (its checksum differs)", folder)


def read_record(path: Path) -> dict[str, Any]:
    """An artifact's `artifact.json`. Raises UserError when it is missing, DamagedError when it is damaged."""
    if not path.exists():
        raise UserError(f"{path} is missing: {path.parent} is no finished artifact")
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise ValueError("it is no file")
        record = json.loads(path.read_text(encoding="utf-8"))
        if missing := [name for name in ENTRIES if name not in record]:
            raise ValueError(f"it has no entry {missing[0]}")
        if record["fingerprint"] != fingerprint(record["description"]):
            raise ValueError("its fingerprint does not belong to its description")
        own = record.pop(OWN, None)  # records of earlier versions have none
        if own not in (None, _hash(record)):
            raise ValueError("its checksum differs")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error})", path.parent) from error
    return record


def parents(description: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints of the artifacts, by stage, that one with this description is made from."""
    return {stage: description[stage] for stage in MODEL_STAGES if isinstance(description.get(stage), str)}


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each name's own copy on the CPU: tied weights share memory, which the format refuses."""
    import torch

    return {name: each.detach().cpu().clone(memory_format=torch.contiguous_format) for name, each in tensors.items()}


def _others(folder: Path) -> list[Path]:
    """The files of an artifact beside its weights and what may change: the record, the card, checkpoints."""
    changing = {WEIGHTS, RECORD, CARD}
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [path for path in files if path.name not in changing and path.suffix != ".ckpt"]


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


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(values).encode()).hexdigest()


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
