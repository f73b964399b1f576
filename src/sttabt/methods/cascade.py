"""A cascade: what the approximate network is sure of it answers itself, and the base model computes nothing of it.

This project's own, of no paper; METHOD section 10 describes it. That a small model answers what it is sure of is an old
idea (cascades: Viola and Jones, CVPR 2001; early exits: BranchyNet, Teerapittayanon et al., ICPR 2016). Here the small
model is the approximate network of STTABT, and what it is not sure of goes to the base model under back-tracking top-k
(`backtracking.py`), or whole. Sure is who gives its likeliest class a probability of `sure` at least, which a budget
finds on data.

Easy samples cost the planner alone, so that at the same mean cost hard ones keep most of their tokens. The network was
distilled on the base model's prediction, too (METHOD section 1), so that it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.backtrack import plan_topk
from sttabt.core.plan import Planned, plan_all
from sttabt.core.trace import AttentionTrace
from sttabt.errors import UserError
from sttabt.methods.base import PlannedMethod, TunedMethod


class Cascade(PlannedMethod, TunedMethod):
    compiles = False

    @property
    def attention(self) -> str:
        return "approximate"

    def check(self, base: Backbone) -> None:
        if base.embeds or base.architecture.classes < 2:
            raise UserError(
                f"{self.title} asks how sure a classifier is, and this model has none: choose backtracking instead"
            )

    def answered(self, prediction: Tensor) -> Tensor:
        return self.sureness(prediction) >= self.settings.sure

    @property
    def tracks(self) -> bool:
        """Where all tokens are kept there is nothing to plan."""
        return float(self.settings.keep_ratio) < 1

    def plan(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Planned:
        if not self.tracks:
            return plan_all(base.real(inputs), base.lengths(inputs), base.layers, self.outputs)
        assert trace is not None, "back-tracking needs an attention trace"
        return plan_topk(trace, float(self.settings.keep_ratio), self.settings.propagation, self.outputs)

    def planning_macs(self, scored: Sequence[float], tokens: int, width: int, heads: int) -> float:
        return sum(rows * tokens * (width + heads) for rows in scored)
