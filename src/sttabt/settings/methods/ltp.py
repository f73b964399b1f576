"""LTP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from sttabt.settings.fields import ABOVE_ZERO, SHARE, at_least, setting
from sttabt.settings.methods.base import TrainedSettings


@dataclass
class LtpSettings(TrainedSettings):
    """LTP: a token goes on while it receives more attention than its layer's learned threshold."""

    title = "LTP"
    source = "Kim et al., KDD 2022; STTABT section 4"
    implementation = "sttabt.methods.ltp:Ltp"
    colour = "#E69F00"
    order = 3
    kept_by = "keep_target"

    mask_weight: float = setting(
        0.1, "λ, weight of the tokens that are kept in the loss; higher is sparser", at_least(0), knob=True,
        scheduled=True,
    )  # fmt: skip
    keep_target: float = setting(
        0.0, "mean share of tokens that layers keep at which that loss ends; 0: it never does", SHARE, scheduled=True
    )
    threshold_scale: float = setting(
        1.0, "times every learned threshold; higher is sparser. A budget finds it after training", ABOVE_ZERO, dial=True
    )
    temperature: float = setting(
        1.0e-3, "of the soft masks, in units of attention received", ABOVE_ZERO, scheduled=True
    )
    hard_from: float = setting(
        0.5, "share of the epochs after which training drops tokens and the thresholds are frozen; 1: never", SHARE
    )
    threshold_rate: float = setting(1.0, "learning rate of the thresholds relative to the rest", at_least(0))

    @classmethod
    def found_by_budget(cls) -> tuple[str, ...]:
        return (*super().found_by_budget(), "keep_target")

    def aimed(self, value: Any, kept: float) -> Self:
        """With a loss that ends where layers keep the share `kept`."""
        return replace(self, keep_target=kept)
