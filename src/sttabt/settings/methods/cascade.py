"""A cascade: the approximate network answers what it is sure of."""

from __future__ import annotations

from dataclasses import dataclass

from sttabt.settings.fields import SHARE, SHARE_ABOVE_ZERO, setting
from sttabt.settings.methods.base import TunedSettings


@dataclass
class CascadeSettings(TunedSettings):
    """The approximate network answers what it is sure of; the rest goes to the base model under top-k back-tracking."""

    title = "cascade"
    source = "this suite; back-tracking: STTABT section 3.2"
    implementation = "sttabt.methods.cascade:Cascade"
    colour = "#9966FF"
    order = 2
    examples = ({}, {"sure": 0.3}, {"sure": 0.01}, {"keep_ratio": 0.3, "sure": 1.0}, {"keep_ratio": 1.0})
    rising = (0.01, 1.0)
    kept_by = "keep_ratio"
    asks_network = True

    sure: float = setting(
        0.9,
        "the probability of its likeliest class from which on the approximate network's prediction is the answer",
        SHARE_ABOVE_ZERO,
        knob=True,
    )
    keep_ratio: float = setting(
        0.7,
        "share of real tokens found by every layer, of samples that the base model reads; 1: those are not planned",
        SHARE_ABOVE_ZERO,
        scheduled=True,
    )
    propagation: float = setting(0.1, "p: how much a row's own impact weighs against a plain mean", SHARE)

    @property
    def reads_approximation(self) -> bool:
        return True
