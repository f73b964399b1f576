"""Arrays that lie beside a row (.npz): read without trusting what the file says of itself."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sttabt.system.files import read_regular, reason

MOST_BYTES = 1 << 30  # of a file, and of all its arrays: ImageNet's predictions have 3 MB


def read_arrays(path: Path, wanted: Callable[[Sequence[str]], Sequence[str]]) -> dict[str, np.ndarray]:
    """The arrays of a file that are wanted of those that it has, by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, damaged, foreign, or too large.
    """
    try:
        content = io.BytesIO(read_regular(path, MOST_BYTES))
        with zipfile.ZipFile(content) as packed:
            if sum(each.file_size for each in packed.infolist()) > MOST_BYTES:
                raise ValueError(f"its arrays are larger than {MOST_BYTES:,} bytes")
        with np.load(content, allow_pickle=False) as file:
            return {name: file[name] for name in wanted(file.files)}
    except FileNotFoundError:
        raise
    # Damaged bytes reach zipfile, zlib and numpy, which raise whatever they stumble over.
    except Exception as error:
        raise ValueError(reason(error)) from error


def check_array(name: str, array: np.ndarray, kinds: str, shape: tuple[int | None, ...]) -> None:
    """Raises ValueError for an array of another kind (numpy's dtype.kind) or shape, in which None is any number."""
    if array.dtype.kind not in kinds:
        raise ValueError(f"{name} holds {array.dtype}, which is not what it should")
    fits = len(array.shape) == len(shape)
    if not fits or any(asked not in (None, found) for asked, found in zip(shape, array.shape, strict=True)):
        asked = tuple("any" if size is None else size for size in shape)
        raise ValueError(f"{name} has shape {array.shape}, not {asked}".replace("'", ""))
