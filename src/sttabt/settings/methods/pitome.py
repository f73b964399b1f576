"""PiToMe."""

from __future__ import annotations

from dataclasses import dataclass

from sttabt.settings.fields import SHARE_ABOVE_ZERO, setting
from sttabt.settings.methods.base import TunedSettings


@dataclass
class PitomeSettings(TunedSettings):
    """PiToMe: of the tokens that have most company, pairs become one."""

    title = "PiToMe"
    source = "Tran et al., NeurIPS 2024, section 3; its last layer computes the output tokens alone"
    implementation = "sttabt.methods.pitome:Pitome"
    colour = "#1111CC"
    order = 7
    examples = ({}, {"keep_ratio": 0.6}, {"keep_ratio": 1.0})
    rising = (0.5, 0.75, 1.0)
    kept_by = "keep_ratio"

    keep_ratio: float = setting(
        0.9,
        "share of its tokens that every layer but the last leaves, of those that can merge; at least half are left",
        SHARE_ABOVE_ZERO,
        knob=True,
        scheduled=True,
    )
