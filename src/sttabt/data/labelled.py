"""Labelled images, and how each is decoded, whatever its source. Imports no torch."""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sttabt.system.paths import not_a_file

MODES = {1: "L", 3: "RGB"}  # of Pillow, by dataset.channels
# What Pillow raises for a file that is no image, or half of one.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
NEEDING_OTHERS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # formats that Pillow knows, and other programs read
LARGEST = 2**16 - 1  # of a 16-bit pixel
LONGEST = 1000  # times as long as wide: scaled to the width of a model, a longer image would fill the memory


class LabelledImages(ABC):
    """labels: a class each; class_names: in the order of the classes."""

    labels: Sequence[int]
    class_names: tuple[str, ...]

    @abstractmethod
    def read(self, index: int) -> Any:
        """The image as the transforms take it, of files through `decode`; raises one of UNREADABLE when broken."""

    @abstractmethod
    def where(self, index: int) -> str:
        """What a user finds the image by, mostly its path."""

    def same(self) -> Sequence[int]:
        """A number an image, the same for images that are one; they go into one split where one is cut off."""
        return range(len(self.labels))

    @abstractmethod
    def contents(self) -> str | Mapping[str, Path]:
        """What `Splits.contents` says of all of them: a hash, or files by a name with place and label."""


def read_image(file: Path | BytesIO, channels: int) -> Image.Image:
    """An image of any format that Pillow reads by itself, through `decode`. Raises OSError for what cannot be read."""
    if isinstance(file, Path) and (why := not_a_file(file)):
        raise OSError(f"it {why}")
    try:
        with Image.open(file, formats=image_formats()) as image:
            return decode(image, channels)
    except UnidentifiedImageError as error:
        raise OSError("it is of no format that Pillow reads") from error
    except Exception as error:  # decoders raise what they like: AVIF's a RuntimeError, others an IndexError
        raise OSError(str(error) or type(error).__name__) from error


def decode(image: Image.Image, channels: int) -> Image.Image:
    """Grey or coloured, 8 bits: turned as its EXIF data says, 16 bits scaled to 8, transparent parts blended on white.

    Raises one of UNREADABLE for broken images, for those without pixels or LONGEST times longer than wide, and for
    pixels of floating-point numbers or of 32 bits, since nothing says which of them is white.
    """
    image.load()  # what is broken shows here, not where EXIF data are read
    short, long = sorted(image.size)
    if long > short * LONGEST:
        raise ValueError(f"it is {image.width} pixels wide and {image.height} high")
    image = _upright(image)
    if image.mode in SIXTEEN_BITS or (image.mode, image.format) == ("I", "PPM"):  # which Pillow scales to 16 bits
        return _scaled(image).convert(MODES[channels])
    if image.mode in ("F", "I"):
        kind = "floating-point numbers" if image.mode == "F" else "integers of 32 bits"
        raise ValueError(f"its pixels are {kind}, of which none is known to be white: save it with 8 or 16 bits")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return image.convert(MODES[channels])


def _upright(image: Image.Image) -> Image.Image:
    """Broken EXIF data, of which cameras and editors write some, say nothing."""
    kind = image.format  # which a turned copy does not have
    try:
        image = ImageOps.exif_transpose(image)
    except (*UNREADABLE, KeyError, TypeError):
        return image
    image.format = kind
    return image


def _scaled(image: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8; the one shade that a file may declare transparent is white."""
    pixels = np.asarray(image).astype(np.int64)
    grey = (pixels * 255 + LARGEST // 2) // LARGEST
    if (shade := image.info.get("transparency")) is not None:
        grey[pixels == shade] = 255
    return Image.fromarray(grey.astype(np.uint8))


@cache
def image_formats() -> tuple[str, ...]:
    """The formats that Pillow reads by itself; for others it runs programs, whatever the suffix of the file."""
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in NEEDING_OTHERS)


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of files of these formats, in lower case."""
    known = Image.registered_extensions()
    return frozenset({suffix for suffix, kind in known.items() if kind in image_formats()} | {".mpo"})
