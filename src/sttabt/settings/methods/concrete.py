"""Concrete masks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

from sttabt.settings.fields import ABOVE_ZERO, SHARE, at_least, setting
from sttabt.settings.methods.base import TrainedSettings

MOST = 0.99  # share of tokens that a schedule of `keep` can begin at: the logit of 1 is infinite


@dataclass
class ConcreteSettings(TrainedSettings):
    """Concrete masks: how many tokens each layer reads is learned."""

    title = "concrete"
    source = "STTABT section 3.3"
    implementation = "sttabt.methods.concrete:Concrete"
    colour = "#0072B2"
    order = 1
    examples = ({}, {"p_logit": -1.5}, {"p_logit": 1.0}, {"propagation": 0.7})
    rising = (-3.0, -1.0, 1.0)
    kept_by = "p_logit"

    p_logit: float = setting(0.0, "start of every layer's logit; lower is sparser", knob=True, scheduled=True)
    p_logit_shift: float = setting(
        0.0, "added to every learned logit; lower is sparser. A budget finds it after training", dial=True
    )
    propagation: float = setting(0.1, "p: how much a row's own impact weighs against a plain mean", SHARE)
    temperature: float = setting(0.1, "of the soft masks; lower is closer to dropping", ABOVE_ZERO, scheduled=True)
    lambda_p: float = setting(
        1.0e-3, "weight of the logits' distance from their start in the loss", at_least(0), scheduled=True
    )
    lambda_mask: float = setting(100.0, "weight of what `held` says in the loss", at_least(0), scheduled=True)
    held: str = setting(
        "tokens",
        "what the loss holds where p_logit says: the share of tokens that layers write, or the share of the dense"
        " model's multiply-adds that layers spend (macs)",
        choices=("tokens", "macs"),
        late=True,
        when=lambda settings, path: None if settings.sparsity.lambda_mask else "sparsity.lambda_mask=0 holds nothing",
    )
    distillation: float = setting(
        0.5, "weight of the divergence from the frozen base model's prediction; 0: off", at_least(0)
    )
    p_logit_rate: float = setting(1.0, "learning rate of the p_logits relative to the rest", at_least(0))

    def for_kept(self, share: float) -> float:
        share = min(share, MOST)
        return math.log(share / (1 - share))

    def aimed(self, value: Any, kept: float) -> Self:
        """With the start at which the loss holds the share that layers write at `kept` (METHOD section 3)."""
        return replace(self, p_logit=math.log(kept / (1 - kept)))

    @property
    def reads_approximation(self) -> bool:
        return True
