"""No pruning: every layer reads every token; only what the head never reads is left out of the last layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sttabt.core.plan import TokenPlan, keep_all
from sttabt.core.trace import AttentionTrace
from sttabt.methods.base import Card, PlannedMethod


class Dense(PlannedMethod):
    card = Card(title="dense", source="the base model; its last layer computes the output tokens alone")

    def plan(self, inputs: Any, real: Tensor, trace: AttentionTrace | None) -> TokenPlan:
        return keep_all(real, self.layers, self.outputs)
