"""ToMe."""

from __future__ import annotations

from dataclasses import dataclass

from sttabt.settings.fields import at_least, setting
from sttabt.settings.methods.base import MethodSettings


@dataclass
class TomeSettings(MethodSettings):
    """ToMe: tokens that are alike become one."""

    title = "ToMe"
    source = "Bolya et al., ICLR 2023; its last layer computes the output tokens alone"
    implementation = "sttabt.methods.tome:Tome"
    colour = "#56B4E9"
    order = 5
    examples = ({}, {"merged": 3})
    rising = (3, 1, 0)

    merged: float = setting(
        8.0, "pairs that every layer but the last merges; a fraction is spread over layers", at_least(0), knob=True
    )
