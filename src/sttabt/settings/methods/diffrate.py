"""DiffRate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from sttabt.settings.fields import ABOVE_ZERO, SHARE_ABOVE_ZERO, Rule, at_least, setting
from sttabt.settings.methods.base import TrainedSettings

NEVER = Rule("1, as the weights stay as they are: nothing could learn on the hard run", lambda value: value == 1)


@dataclass
class DiffRateSettings(TrainedSettings):
    """DiffRate: how many tokens each layer prunes, and how many it merges, is learned; the weights stay."""

    title = "DiffRate"
    source = "Chen et al., ICCV 2023, section 3"
    implementation = "sttabt.methods.diffrate:DiffRate"
    colour = "#4499EE"
    order = 9
    kept_by = "macs"
    examples = ({}, {"pruned_to": 0.8, "merged_to": 0.7}, {"pruned_to": 0.6, "merged_to": 1.0, "candidates": 5})

    macs: float = setting(
        0.5, "target share of the dense model's multiply-adds; lower is sparser", SHARE_ABOVE_ZERO, knob=True,
        scheduled=True,
    )  # fmt: skip
    share_scale: float = setting(
        1.0, "times every learned share of tokens; lower is sparser. A budget finds it after training", ABOVE_ZERO,
        dial=True,
    )  # fmt: skip
    macs_weight: float = setting(
        100.0, "weight of the square of the distance from `macs` in the loss", at_least(0), scheduled=True
    )
    candidates: int = setting(64, "shares of a sample's tokens that a layer chooses from", at_least(1))
    pruned_to: float = setting(
        0.95,
        "share of the tokens that a layer reads, to which it prunes at the start; 1 hardly learns",
        SHARE_ABOVE_ZERO,
    )
    merged_to: float = setting(
        0.95,
        "share of the tokens that pruning has left, to which a layer merges at the start; 1 hardly learns",
        SHARE_ABOVE_ZERO,
    )
    hard_from: float = setting(1.0, "only 1: weights that stay as they are cannot learn on the hard run", NEVER)
    rate: float = setting(1000.0, "learning rate of the shares' logits relative to `learning_rate`", at_least(0))

    def aimed(self, value: Any, kept: float) -> Self:
        """With the target at what layers keep: all that a layer computes, but for attention, goes with its tokens."""
        return replace(self, macs=kept)
