"""Random tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sttabt.settings.fields import SEED, SHARE_ABOVE_ZERO, setting
from sttabt.settings.methods.base import TunedSettings


@dataclass
class RandomSettings(TunedSettings):
    """Every layer reads the same random tokens: the control that a method has to beat."""

    title = "random"
    source = "control: every layer reads the same random tokens"
    implementation = "sttabt.methods.random:Random"
    colour = "#7F7F7F"
    order = 6
    examples = ({}, {"keep_ratio": 0.3}, {"keep_ratio": 1.0}, {"keep_ratio": 0.41, "spread": True})
    rising = (0.2, 0.5, 0.9)
    kept_by = "keep_ratio"
    at_budget: ClassVar[dict[str, Any]] = {"spread": True}

    keep_ratio: float = setting(
        0.5, "share of real tokens that every layer reads", SHARE_ABOVE_ZERO, knob=True, scheduled=True
    )
    spread: bool = setting(
        False, "of images: layers differ by a token, so that their mean need not be whole; a budget sets it"
    )
    seed: int = setting(0, "of the choice", SEED)
