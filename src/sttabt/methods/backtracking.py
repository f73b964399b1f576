"""Attention back-tracking, top-k: from the output back to the inputs, the tokens that carry most attention.

STTABT (Lee et al., "Sparse Token Transformer with Attention Back Tracking", ICLR 2023, section 3.2; METHOD section 2).
The attention is that of an approximate network (section 3.1), or of a dense run of the base model: an upper bound.
Deviations:

- sets are each sample's own; the official code unites them over the batch, where tokens then count twice;
- tokens that are not in a layer's set are not computed, where the official code multiplies them by zero;
- shares are of a sample's real tokens, and `dynamic` compares with the sample's own largest importance, where the
  official code takes the batch's;
- the base weights can be tuned under the choice, while the approximate network stays as it was distilled;
- `spread` lets layers of images differ by a token, so that a budget has finer steps, and `counts` gives every image
  as many tokens, for static shapes: a layer's count then holds the tokens of the layer above, instead of adding them;
- heads that pool begin at all patches, as there is no class token to begin at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.backbones.inputs import in_graph
from sttabt.core.backtrack import Keep, backtrack_fixed, plan_topk
from sttabt.core.counts import fixed_plan
from sttabt.core.plan import Planned, spread_shares
from sttabt.core.trace import AttentionTrace
from sttabt.errors import UserError
from sttabt.methods.base import PlannedMethod, TunedMethod


class Backtracking(PlannedMethod, TunedMethod):
    takes_counts: ClassVar[bool] = True

    @property
    def attention(self) -> str:
        return self.settings.attention

    def plan(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Planned:
        assert trace is not None, "back-tracking needs an attention trace"
        if self.counts:
            check_lengths(trace, self.counts)
            tokens = trace.real.shape[1]
            plan = fixed_plan(self.order(trace, self.counts), self.counts, tokens)
            return Planned(plan, self.scored_at(self.counts, tokens))
        keep: Keep = None if self.settings.dynamic else float(self.settings.keep_ratio)
        if keep is not None and self.settings.spread and not base.may_pad:
            keep = spread_shares(self.settings.keep_ratio, self.layers, base.tokens)
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

    def order(self, trace: AttentionTrace, counts: Sequence[int]) -> Tensor:
        return backtrack_fixed(trace, counts, self.settings.propagation, self.outputs)

    def planning_macs(self, scored: Sequence[float], tokens: int, width: int, heads: int) -> float:
        return sum(rows * tokens * (width + heads) for rows in scored)


def check_lengths(trace: AttentionTrace, counts: Sequence[int]) -> None:
    """Raises UserError for texts of unequal length, which a graph alone masks, and for those that have fewer tokens."""
    wanted, tokens = f"sparsity.counts={list(counts[:-1])}", trace.real.shape[1]
    if trace.is_padded and not in_graph(trace.real):
        raise UserError(
            f"{wanted} keeps as many tokens of every sample, but these texts are of unequal length: give texts of"
            " one length, or choose keep_ratio instead"
        )
    if counts[0] > tokens:
        raise UserError(f"{wanted} begins with {counts[0]} tokens, but these texts have {tokens}: give longer")
