"""Attention back-tracking, top-k: from the output back to the inputs, the tokens that carry most attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sttabt.core.backtrack import backtrack, backtrack_fixed
from sttabt.core.counts import fixed_plan
from sttabt.core.plan import TokenPlan
from sttabt.core.trace import AttentionTrace
from sttabt.methods.base import Card, PlannedMethod


class Backtracking(PlannedMethod):
    card = Card(title="back-tracking top-k", source="STTABT section 3.2")

    @property
    def attention(self) -> str:
        return self.settings.attention

    def plan(self, inputs: Any, real: Tensor, trace: AttentionTrace | None) -> TokenPlan:
        assert trace is not None, "back-tracking needs an attention trace"
        if self.settings.counts:
            return fixed_plan(self.order(trace), self.counts, real.shape[1])
        keep = None if self.settings.dynamic else float(self.settings.keep_ratio)
        return backtrack(trace, keep, self.settings.propagation, self.outputs).plan

    @property
    def counts(self) -> list[int]:
        """Tokens at every boundary (L+1), the same for all samples; the setting `counts` and the output tokens."""
        return [*self.settings.counts, self.outputs]

    def order(self, trace: AttentionTrace) -> Tensor:
        """Tokens (B, counts[0]) by how long they live, see core.fixed."""
        return backtrack_fixed(trace, self.counts, self.settings.propagation, self.outputs)

    def planning_macs(self, scored: tuple[float, ...], tokens: int, width: int, heads: int) -> float:
        return sum(rows * tokens * (width + heads) for rows in scored)
