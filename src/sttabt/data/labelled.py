"""Labelled images as a source finds them. Imports no torch."""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from PIL import Image

MODES = {1: "L", 3: "RGB"}  # of Pillow, by dataset.channels
# What Pillow raises for a file that is no image, or half of one.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class LabelledImages(ABC):
    """labels: a class each; class_names: in the order of the classes."""

    labels: Sequence[int]
    class_names: tuple[str, ...]

    @abstractmethod
    def read(self, index: int) -> Any:
        """The image, as the transforms take it; raises one of UNREADABLE when it is broken."""

    @abstractmethod
    def where(self, index: int) -> str:
        """What a user finds the image by, mostly its path."""
