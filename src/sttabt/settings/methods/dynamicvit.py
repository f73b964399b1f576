"""DynamicViT."""

from __future__ import annotations

from dataclasses import dataclass

from sttabt.settings.fields import SHARE_ABOVE_ZERO, at_least, setting
from sttabt.settings.layers import deciding_layers
from sttabt.settings.methods.base import TrainedSettings


@dataclass
class DynamicVitSettings(TrainedSettings):
    """DynamicViT: prediction modules between the layers say which tokens go on."""

    title = "DynamicViT"
    source = "Rao et al., NeurIPS 2021, sections 3.2 and 3.3"
    implementation = "sttabt.methods.dynamicvit:DynamicVit"
    colour = "#0055FF"
    order = 7
    examples = ({}, {"keep_ratio": 0.4}, {"keep_ratio": 1.0}, {"layers": [1]})
    rising = (0.2, 0.5, 0.9)
    kept_by = "keep_ratio"

    keep_ratio: float = setting(
        0.7,
        "r: stage s keeps r^s of a sample's own tokens beside the class token",
        SHARE_ABOVE_ZERO,
        knob=True,
        scheduled=True,
    )
    layers: list[int] = setting(
        [],
        "layers in front of which a module decides, counted from 0; []: at a quarter, half and three quarters of the"
        " depth",
        at_least(0),
    )
    ratio_weight: float = setting(
        2.0, "weight of the distance of what is kept from r^s in the loss", at_least(0), scheduled=True
    )
    distillation: float = setting(
        0.5, "weight of the divergence from the frozen base model's prediction; 0: off", at_least(0)
    )
    token_distillation: float = setting(
        0.5, "weight of the kept tokens' distance from the frozen base model's in the loss; 0: off", at_least(0)
    )
    predictor_rate: float = setting(100.0, "learning rate of the modules relative to the rest", at_least(0))

    def deciding(self, layers: int) -> list[int]:
        """The layers that decide, of a model of so many. Raises UserError for those that cannot."""
        return deciding_layers(self.layers, layers, range(1, layers))

    def check_model(self, layers: int, tokens: int | None = None) -> None:
        self.deciding(layers)
