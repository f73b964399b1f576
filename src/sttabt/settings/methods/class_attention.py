"""Class-attention top-k."""

from __future__ import annotations

from dataclasses import dataclass

from sttabt.settings.fields import SHARE_ABOVE_ZERO, at_least, setting
from sttabt.settings.layers import deciding_layers
from sttabt.settings.methods.base import TunedSettings


@dataclass
class ClassAttentionSettings(TunedSettings):
    """At some layers, the tokens that the class token attends to most go on."""

    title = "class-attention top-k"
    source = (
        "Haurum et al., ICCV 2023 workshops, section 3; Liang et al., ICLR 2022, section 3.2, without the fused token"
    )
    implementation = "sttabt.methods.class_attention:ClassAttention"
    colour = "#0000FF"
    order = 10
    examples = ({}, {"keep_ratio": 0.3}, {"keep_ratio": 1.0}, {"layers": [0]})
    rising = (0.2, 0.5, 0.9)
    kept_by = "keep_ratio"

    keep_ratio: float = setting(
        0.7,
        "share of the tokens beside the class token that each deciding layer keeps",
        SHARE_ABOVE_ZERO,
        knob=True,
        scheduled=True,
    )
    layers: list[int] = setting(
        [], "layers that decide, counted from 0; []: at a quarter, half and three quarters of the depth", at_least(0)
    )

    def deciding(self, layers: int) -> list[int]:
        """The layers that decide, of a model of so many. Raises UserError for those that cannot."""
        return deciding_layers(self.layers, layers, range(layers - 1))

    def check_model(self, layers: int, tokens: int | None = None) -> None:
        self.deciding(layers)
