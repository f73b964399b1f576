"""Concrete masks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

from sttabt.settings.fields import ABOVE_ZERO, SHARE, at_least, setting
from sttabt.settings.methods.base import TrainedSettings


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

    p_logit: float = setting(0.0, "start of every layer's logit; lower is sparser", knob=True)
    p_logit_shift: float = setting(
        0.0, "added to every learned logit; lower is sparser. A budget finds it after training", dial=True
    )
    propagation: float = setting(0.1, "p: how much a row's own impact weighs against a plain mean", SHARE)
    temperature: float = setting(0.1, "of the soft masks; lower is closer to dropping", ABOVE_ZERO)
    lambda_p: float = setting(1.0e-3, "weight of the logits' distance from their start in the loss", at_least(0))
    lambda_mask: float = setting(100.0, "weight of the tokens that are kept in the loss", at_least(0))
    distillation: float = setting(
        0.5, "weight of the divergence from the frozen base model's prediction; 0: off", at_least(0)
    )
    p_logit_rate: float = setting(1.0, "learning rate of the p_logits relative to the rest", at_least(0))

    def aimed(self, value: Any, kept: float) -> Self:
        """With the start at which the loss holds the share that layers write at `kept` (METHOD section 3)."""
        return replace(self, p_logit=math.log(kept / (1 - kept)))

    @property
    def reads_approximation(self) -> bool:
        return True
