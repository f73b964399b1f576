"""The gallery: a few test images and the layer at which each of their tokens was dropped."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sttabt.report.files import write_atomically
from sttabt.report.rows import Row

GALLERY_FILE = "tokens.npz"
SHOWN = ("concrete", "back-tracking (approximate attention)")  # the labels that the figure puts side by side

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Gallery:
    """n test images of a vision transformer with N tokens and L layers.

    Raises:
        ValueError: the shapes disagree, or the sets of tokens alive are not nested.
    """

    images: np.ndarray  # uint8 (n, height, width, 1 or 3)
    depth: np.ndarray  # int (n, N): the number of layers that read each token, 0..L
    alive: np.ndarray  # bool (n, L+1, N): which tokens exist at each layer boundary
    prefix: np.ndarray  # int (): how many leading tokens are not patches
    layers: np.ndarray  # int (): L
    grid: np.ndarray  # int (2,): patch rows and columns
    labels: np.ndarray  # int (n,)
    predictions: np.ndarray  # int (n,)
    class_names: np.ndarray  # str (classes,)

    def __post_init__(self) -> None:
        n, boundaries, tokens = self.alive.shape
        patches = int(self.grid[0]) * int(self.grid[1])
        expected = {
            "images": (n, *self.images.shape[1:3], self.images.shape[-1]),
            "depth": (n, tokens),
            "labels": (n,),
            "predictions": (n,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, not {shape}")
        if boundaries != int(self.layers) + 1 or tokens != int(self.prefix) + patches:
            raise ValueError(f"alive has shape {self.alive.shape}, not {(n, self.layers + 1, self.prefix + patches)}")
        if (self.alive[:, 1:] & ~self.alive[:, :-1]).any():
            raise ValueError("alive brings a dropped token back: the sets must be nested")

    @property
    def patches_alive(self) -> np.ndarray:
        """bool (n, L+1, rows, columns): which patches exist at each layer boundary."""
        rows, columns = (int(side) for side in self.grid)
        return self.alive[:, :, int(self.prefix) :].reshape(*self.alive.shape[:2], rows, columns)

    def name(self, label: int) -> str:
        """A short name of a class: the first of its synonyms."""
        names = self.class_names
        return str(names[label]).split(",")[0] if label < len(names) else str(label)

    def write(self, path: str | Path) -> None:
        """Writes the gallery; a killed process leaves no half-written file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **asdict(self))
        write_atomically(Path(path), buffer.getvalue())

    @classmethod
    def read(cls, path: str | Path) -> Gallery:
        """Reads a gallery. Raises ValueError for a truncated or foreign file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in cls.__dataclass_fields__})
        except (KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"it is no gallery: {error}") from error


def read_galleries(rows: Sequence[Row]) -> list[tuple[Row, Gallery]]:
    """The galleries beside the rows, in the rows' order; one that cannot be read is named in a warning and skipped."""
    found = []
    for row in rows:
        path = row.folder / GALLERY_FILE if row.folder else None
        if path is None or not path.exists():
            continue
        try:
            found.append((row, Gallery.read(path)))
        except ValueError as error:
            log.warning("skipped %s: %s", path, error)
    return found


def choose(galleries: Sequence[tuple[Row, Gallery]]) -> list[tuple[Row, Gallery]]:
    """Those that the figure shows: for each label in SHOWN the one of middle occupancy, else the middle of all."""
    chosen = []
    for label in SHOWN:
        chosen += _middle([each for each in galleries if each[0].label == label])
    pruned = [each for each in galleries if each[0].method != "dense"]
    return chosen or _middle(pruned or galleries)


def _middle(galleries: Sequence[tuple[Row, Gallery]]) -> list[tuple[Row, Gallery]]:
    ordered = sorted(galleries, key=lambda each: (each[0].occupancy, each[0].seed, each[0].config_hash))
    return ordered[(len(ordered) - 1) // 2 :][:1]
