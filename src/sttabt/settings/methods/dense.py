"""No pruning."""

from __future__ import annotations

from dataclasses import dataclass

from sttabt.settings.methods.base import MethodSettings


@dataclass
class DenseSettings(MethodSettings):
    """The base model as it is."""

    title = "dense"
    source = "the base model; its last layer computes the output tokens alone"
    implementation = "sttabt.methods.dense:Dense"
    colour = "#000000"
    order = 0
