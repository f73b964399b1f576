"""ATS."""

from __future__ import annotations

from dataclasses import dataclass

from sttabt.settings.fields import SHARE_ABOVE_ZERO, at_least, setting
from sttabt.settings.layers import deciding_layers
from sttabt.settings.methods.base import TunedSettings


@dataclass
class AtsSettings(TunedSettings):
    """ATS: layers sample tokens by the class token's attention, as many as a sample needs."""

    title = "ATS"
    source = "Fayyaz et al., ECCV 2022, section 3"
    implementation = "sttabt.methods.ats:Ats"
    colour = "#006688"
    order = 9
    examples = ({}, {"samples": 0.4}, {"layers": [0]})
    rising = (0.3, 0.6, 1.0)
    kept_by = "samples"

    samples: float = setting(
        1.0,
        "draws of each deciding layer, a share of the sample's own tokens beside the class token; fewer are kept, as a"
        " token may be drawn more than once",
        SHARE_ABOVE_ZERO,
        knob=True,
        scheduled=True,
    )
    layers: list[int] = setting(
        [], "layers that sample, counted from 0; []: all from a quarter of the depth on", at_least(0)
    )

    def deciding(self, layers: int) -> list[int]:
        """The layers that decide, of a model of so many. Raises UserError for those that cannot."""
        return deciding_layers(self.layers or range(layers // 4, layers - 1), layers, range(layers - 1))

    def check_model(self, layers: int, tokens: int | None = None) -> None:
        self.deciding(layers)
