"""The gallery: a few images or texts and the layer at which each of their tokens was dropped."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sttabt.report.arrays import check_array, read_arrays
from sttabt.report.labels import rank
from sttabt.report.rows import DENSE, Row
from sttabt.system.files import reason, write_atomically

GALLERY_FILE = "tokens.npz"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caption:
    """What a sample is, "" where nobody says it, and what the model says, for readers; right is None for a score."""

    label: str
    prediction: str
    right: bool | None


@dataclass(frozen=True, eq=False)
class Gallery:
    """n samples of a transformer with N tokens and L layers.

    Raises:
        ValueError: the shapes disagree, or the sets of tokens alive are not nested.
    """

    alive: np.ndarray  # bool (n, L+1, N): which tokens exist at each layer boundary
    layers: np.ndarray  # int (): L
    labels: np.ndarray  # int (n,), float for scores
    predictions: np.ndarray  # the same
    class_names: np.ndarray  # str (classes,), empty for scores

    def __post_init__(self) -> None:
        self._check("layers", "iu", ())
        self._check("alive", "b", (None, int(self.layers) + 1, None))
        samples = len(self.alive)
        if not samples or self.layers < 1:
            raise ValueError(f"it has {samples} samples and {self.layers} layers: both must be at least 1")
        self._check("labels", "iuf", (samples,))
        self._check("predictions", "iuf", (samples,))
        self._check("class_names", "U", (None,))
        if (self.alive[:, 1:] & ~self.alive[:, :-1]).any():
            raise ValueError("alive brings a dropped token back: the sets must be nested")

    def caption(self, index: int) -> Caption:
        """Of a sample; class names by the first of their synonyms."""
        label, prediction = self.labels[index], self.predictions[index]
        if self.labels.dtype.kind == "f":
            return Caption(f"{label:.2f}", f"{prediction:.2f}", None)
        return Caption(self._name(int(label)), self._name(int(prediction)), bool(label == prediction))

    def write(self, path: str | Path) -> None:
        """Writes the gallery; a killed process leaves no half-written file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **asdict(self))
        write_atomically(Path(path), buffer.getvalue())

    def _name(self, label: int) -> str:
        names = self.class_names
        return str(names[label]).split(",")[0] if 0 <= label < len(names) else str(label)

    def _check(self, name: str, kinds: str, shape: tuple[int | None, ...]) -> None:
        check_array(name, getattr(self, name), kinds, shape)


@dataclass(frozen=True, eq=False)
class TextGallery(Gallery):
    """Texts, padded to the longest."""

    words: np.ndarray  # str (n, N): the tokens as text, "" on padding

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("words", "U", (len(self.alive), self.alive.shape[-1]))

    @property
    def depth(self) -> np.ndarray:
        """int (n, N): the number of layers that read each token, 0..L."""
        return self.alive[:, :-1].sum(axis=1)

    def length(self, index: int) -> int:
        """How many tokens of a text are no padding."""
        return int((self.words[index] != "").sum())

    def share(self, index: int) -> float:
        """Occupancy of a text: the share of its tokens alive, averaged over all boundaries."""
        return float(self.alive[index, :, : self.length(index)].mean())

    def pieces(self, index: int) -> list[tuple[str, bool]]:
        """The tokens of a text as written, and whether each goes on with the word before it (WordPiece's ##)."""
        words = [str(word) for word in self.words[index, : self.length(index)]]
        return [(word[2:], True) if word.startswith("##") and len(word) > 2 else (word, False) for word in words]


@dataclass(frozen=True, eq=False)
class ImageGallery(Gallery):
    """Images of a vision transformer."""

    images: np.ndarray  # uint8 (n, height, width, 1 or 3)
    depth: np.ndarray  # int (n, N): the number of layers that read each token, 0..L
    prefix: np.ndarray  # int (): how many leading tokens are not patches
    grid: np.ndarray  # int (2,): patch rows and columns

    def __post_init__(self) -> None:
        super().__post_init__()
        samples, boundaries, tokens = self.alive.shape
        self._check("prefix", "iu", ())
        self._check("grid", "iu", (2,))
        patches = int(self.grid[0]) * int(self.grid[1])
        self._check("alive", "b", (samples, boundaries, int(self.prefix) + patches))
        self._check("depth", "iu", (samples, tokens))
        self._check("images", "u", (samples, None, None, None))
        if self.images.dtype != np.uint8 or self.images.shape[-1] not in (1, 3) or not self.images.size:
            raise ValueError(
                f"images are {self.images.dtype} of shape {self.images.shape}: not uint8 with 1 or 3 channels"
            )

    @property
    def patches_alive(self) -> np.ndarray:
        """bool (n, L+1, rows, columns): which patches exist at each layer boundary."""
        rows, columns = (int(side) for side in self.grid)
        return self.alive[:, :, int(self.prefix) :].reshape(*self.alive.shape[:2], rows, columns)


def read_gallery(path: str | Path) -> Gallery:
    """Reads a gallery. Raises ValueError for a truncated, damaged or foreign file."""
    try:
        arrays = read_arrays(Path(path), lambda names: list(_kind(names).__dataclass_fields__))
        return _kind(list(arrays))(**arrays)
    except ValueError as error:
        raise ValueError(f"it is no gallery: {error}") from error


def read_galleries(rows: Sequence[Row]) -> tuple[list[tuple[Row, Gallery]], list[str]]:
    """The galleries beside the rows, in the rows' order, and a line for each that cannot be read, as is warned."""
    found, left_out = [], []
    for row in rows:
        path = row.folder / GALLERY_FILE if row.folder else None
        if path is None or not os.path.lexists(path):
            continue
        try:
            found.append((row, read_gallery(path)))
        except (ValueError, OSError) as error:
            left_out.append(f"{path}: {reason(error)}")
            log.warning("left out %s", left_out[-1])
    return found, left_out


def choose(galleries: Sequence[tuple[Row, Gallery]]) -> list[tuple[Row, Gallery]]:
    """Those of one data set that the figure compares: one a method, in the order of tables.

    Of the first method it is the one of middle occupancy, of the others the one that comes nearest to that.
    """
    pruned = [each for each in galleries if each[0].method != DENSE]
    chosen: list[tuple[Row, Gallery]] = []
    for label in sorted({row.label for row, _ in pruned}, key=rank):
        own = [each for each in pruned if each[0].label == label and _same_samples(each, chosen)]
        if not chosen:
            chosen += _middle(own)
        elif own:
            goal = chosen[0][0].occupancy
            chosen.append(min(_ordered(own), key=lambda each: abs(each[0].occupancy - goal)))
    return chosen or _middle(galleries)


def _kind(arrays: Sequence[str]) -> type[TextGallery] | type[ImageGallery]:
    return TextGallery if "words" in arrays else ImageGallery


def _same_samples(one: tuple[Row, Gallery], chosen: Sequence[tuple[Row, Gallery]]) -> bool:
    """Whether it can be shown beside the chosen: texts are compared word by word, images one below the other."""
    words = [gallery.words for _, gallery in (one, *chosen[:1]) if isinstance(gallery, TextGallery)]
    return len(words) < 2 or np.array_equal(words[0], words[1])


def _middle(galleries: Sequence[tuple[Row, Gallery]]) -> list[tuple[Row, Gallery]]:
    return _ordered(galleries)[(len(galleries) - 1) // 2 :][:1]


def _ordered(galleries: Sequence[tuple[Row, Gallery]]) -> list[tuple[Row, Gallery]]:
    return sorted(galleries, key=lambda each: (each[0].occupancy, each[0].seed, each[0].config_hash))
