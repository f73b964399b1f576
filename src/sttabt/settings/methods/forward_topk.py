"""Forward top-k."""

from __future__ import annotations

from dataclasses import dataclass

from sttabt.settings.fields import SHARE_ABOVE_ZERO, setting
from sttabt.settings.methods.base import TunedSettings


@dataclass
class ForwardTopkSettings(TunedSettings):
    """Layer by layer, the tokens that received most attention go on."""

    title = "forward top-k"
    source = "STTABT section 4, manual top-k"
    implementation = "sttabt.methods.forward_topk:ForwardTopk"
    colour = "#009E73"
    order = 4
    examples = ({}, {"keep_ratio": 0.3}, {"keep_ratio": 1.0})
    rising = (0.2, 0.5, 0.9)
    kept_by = "keep_ratio"

    keep_ratio: float = setting(
        0.5, "share of real tokens, target mean over layers", SHARE_ABOVE_ZERO, knob=True, scheduled=True
    )
