"""PoWER-BERT."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from sttabt.settings.fields import SHARE, SHARE_ABOVE_ZERO, SHIFT_OF_SHARE, at_least, setting
from sttabt.settings.methods.base import TrainedSettings


@dataclass
class PowerBertSettings(TrainedSettings):
    """PoWER-BERT: how many of the most attended tokens each layer keeps is learned."""

    title = "PoWER-BERT"
    source = "Goyal et al., ICML 2020, section 3"
    implementation = "sttabt.methods.power_bert:PowerBert"
    colour = "#AABB88"
    order = 8
    kept_by = "keep_target"
    examples = ({}, {"start": 0.4}, {"start": 0.7, "bins": 3})

    mass_weight: float = setting(
        0.01, "λ, weight of the tokens that are kept in the loss, a layer's times its number; higher is sparser",
        at_least(0), knob=True, scheduled=True,
    )  # fmt: skip
    keep_target: float = setting(
        0.0, "mean share of tokens that layers keep at which that loss ends; 0: it never does", SHARE, scheduled=True
    )
    retention_shift: float = setting(
        0.0,
        "added to every learned retention parameter; lower is sparser. A budget finds it after training",
        SHIFT_OF_SHARE,
        dial=True,
    )
    bins: int = setting(
        32, "retention parameters of a layer, each of as large a share of a sample's tokens", at_least(1)
    )
    start: float = setting(1.0, "where every retention parameter starts; 1: keeps all tokens", SHARE_ABOVE_ZERO)
    hard_from: float = setting(
        0.5, "share of the epochs after which training drops tokens and the retention is frozen; 1: never", SHARE
    )
    retention_rate: float = setting(
        300.0, "learning rate of the retention parameters relative to the rest", at_least(0)
    )

    @classmethod
    def found_by_budget(cls) -> tuple[str, ...]:
        return (*super().found_by_budget(), "keep_target")

    def aimed(self, value: Any, kept: float) -> Self:
        """With a loss that ends where layers keep the share `kept`."""
        return replace(self, keep_target=kept)
