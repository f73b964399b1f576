"""A base model as it was built, with what its files said."""

from __future__ import annotations

from typing import NamedTuple

from sttabt.backbones.base import Backbone
from sttabt.pretrained.classes import ClassNames

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of images, a number a channel


class Built(NamedTuple):
    """new_head: the weights are pretrained, but came without a head for these classes, which starts anew;
    normalised_by: of the images that the weights were trained on, None where they are not pretrained or text;
    classes: what the rows of a pretrained head stand for.
    """

    base: Backbone
    new_head: bool = False
    normalised_by: Normalisation | None = None
    classes: ClassNames = ClassNames()
