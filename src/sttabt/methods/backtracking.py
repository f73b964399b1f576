"""Attention back-tracking, top-k: from the output back to the inputs, the tokens that carry most attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.backtrack import backtrack_fixed, plan_topk
from sttabt.core.counts import fixed_plan
from sttabt.core.plan import Planned
from sttabt.core.trace import AttentionTrace
from sttabt.errors import UserError
from sttabt.methods.base import PlannedMethod


class Backtracking(PlannedMethod):
    @property
    def attention(self) -> str:
        return self.settings.attention

    def plan(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Planned:
        assert trace is not None, "back-tracking needs an attention trace"
        if self.counts:
            plan = fixed_plan(self.order(trace), self.counts, trace.real.shape[1])
            last = trace.real.shape[1] - self.outputs if self.pools else self.outputs
            return Planned(plan, tuple(map(float, [*self.counts[1:-1], last])))
        keep = None if self.settings.dynamic else float(self.settings.keep_ratio)
        return plan_topk(trace, keep, self.settings.propagation, self.outputs)

    @property
    def counts(self) -> list[int] | None:
        """The setting `counts`, and the output tokens behind the last layer."""
        return [*self.settings.counts, self.outputs] if self.settings.counts else None

    def check(self, base: Backbone) -> None:
        """Raises UserError for counts that drop what the head reads."""
        if self.counts and self.counts[-2] < self.least:
            raise UserError(
                f"sparsity.counts={self.settings.counts} must hold at least {self.least} tokens in every layer, those"
                " that the head reads"
            )

    def order(self, trace: AttentionTrace) -> Tensor:
        """Tokens (B, counts[0]) by how long they live, see core.counts.

        Raises UserError for texts of unequal length, and for those that have fewer tokens.
        """
        assert self.counts, "an order is that of fixed counts"
        wanted, tokens = f"sparsity.counts={self.settings.counts}", trace.real.shape[1]
        if trace.is_padded:
            raise UserError(
                f"{wanted} keeps as many tokens of every sample, but these texts are of unequal length: give texts of"
                " one length, or choose keep_ratio instead"
            )
        if self.counts[0] > tokens:
            raise UserError(f"{wanted} begins with {self.counts[0]} tokens, but these texts have {tokens}: give longer")
        return backtrack_fixed(trace, self.counts, self.settings.propagation, self.outputs)

    def planning_macs(self, scored: Sequence[float], tokens: int, width: int, heads: int) -> float:
        return sum(rows * tokens * (width + heads) for rows in scored)
