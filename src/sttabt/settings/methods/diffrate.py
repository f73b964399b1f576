"""DiffRate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from sttabt.errors import UserError
from sttabt.settings.fields import ABOVE_ZERO, SHARE, SHARE_ABOVE_ZERO, at_least, setting
from sttabt.settings.methods.base import TUNED, TrainedSettings


@dataclass
class DiffRateSettings(TrainedSettings):
    """DiffRate: how many tokens each layer prunes, and how many it merges, is learned; the weights, if asked."""

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
    tuned: bool = setting(False, "the base weights learn, too", late=True)
    hard_from: float = setting(
        1.0,
        "share of the epochs after which training drops tokens and the shares stay as they are; 1: never. From then on"
        " the weights alone learn: below 1 it needs `tuned`",
        SHARE,
    )
    rate: float = setting(1000.0, "learning rate of the shares' logits relative to `learning_rate`", at_least(0))

    @property
    def label(self) -> str:
        return f"{self.title}{TUNED}" if self.tuned else self.title

    @classmethod
    def labels(cls) -> dict[str, str]:
        return {cls.title: cls.colour, f"{cls.title}{TUNED}": cls.colour}

    def check_model(self, layers: int, tokens: int | None = None) -> None:
        if not self.tuned and self.hard_from < 1:
            raise UserError(
                f"sparsity.hard_from={self.hard_from:g} drops tokens while DiffRate's weights stay as they are: nothing"
                " could learn then: set sparsity.tuned=true, or hard_from=1"
            )

    def aimed(self, value: Any, kept: float) -> Self:
        """With the target at what layers keep: all that a layer computes, but for attention, goes with its tokens."""
        return replace(self, macs=kept)
