"""Concrete masks: how many tokens each layer reads is learned, end to end with the weights.

STTABT (Lee et al., "Sparse Token Transformer with Attention Back Tracking", ICLR 2023, section 3.3; METHOD section 3):
one logit a layer, soft masks from it and from the approximate network's scores, and losses that hold the logits near
their start and the share of tokens near what that says. Deviations:

- tokens that a hard mask drops are not computed, where the official code multiplies them by zero;
- `hard_from` is one setting, where the official code trains texts on hard masks at the end and images never;
- the hard plan leaves out rows of hardly any weight (NEGLIGIBLE), and is made in single precision at least;
- `held=macs` holds multiply-adds instead of tokens; `p_logit_shift` is added to all logits after training, so that a
  budget can be met; settings can have a schedule, which moves the learned logits along with their target;
- the same importances give fixed counts for static shapes;
- heads that pool begin at all patches, and the likeliest token lives in all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Backbone
from sttabt.core.concrete import ConcretePlan, concrete_fixed, concrete_loss, concrete_plan, plan_concrete
from sttabt.core.plan import Planned
from sttabt.core.soft_cost import macs_loss
from sttabt.core.trace import AttentionTrace
from sttabt.engine.masked import run_masked
from sttabt.methods.base import PlannedMethod, SoftRun, TrainedMethod

NEGLIGIBLE = 1e-5  # of a row's weight: 200 tokens move an importance by 0.002 at the most, before it is normalised


class Concrete(PlannedMethod, TrainedMethod):
    takes_counts: ClassVar[bool] = True

    def __init__(self, settings: Any, layers: int, outputs: int) -> None:
        super().__init__(settings, layers, outputs)
        self.start = float(settings.p_logit)
        self.p_logit = nn.Parameter(torch.full((layers,), self.start))

    @property
    def attention(self) -> str:
        return "approximate"

    @property
    def logits(self) -> Tensor:
        """(L,): the learned logits that masks are made of."""
        return self._moved + self.settings.p_logit_shift

    @property
    def _moved(self) -> Tensor:
        """What is learned, as far away as a schedule has its target: sharp masks would not let it follow by itself."""
        return self.p_logit + (self.settings.p_logit - self.start)

    def soft_plan(self, trace: AttentionTrace) -> ConcretePlan:
        """The differentiable plan that training runs on."""
        settings = self.settings
        return concrete_plan(trace, self.logits, settings.propagation, settings.temperature, self.outputs)

    def plan(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Planned:
        assert trace is not None, "concrete masks need an attention trace"
        settings = self.settings
        return plan_concrete(trace, self.logits, settings.propagation, settings.temperature, self.outputs, NEGLIGIBLE)

    def order(self, trace: AttentionTrace, counts: Sequence[int]) -> Tensor:
        return concrete_fixed(trace, counts, self.settings.propagation, self.outputs)

    def soft(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> SoftRun:
        assert trace is not None, "concrete masks need an attention trace"
        plan, settings = self.soft_plan(trace).plan, self.settings
        held = concrete_loss(
            self._moved, plan.alive, trace.real, settings.p_logit, settings.lambda_p, settings.lambda_mask
        )
        terms = {"p_logit": held.p_logit, "keep": held.keep}
        if settings.held == "macs":
            terms = {"p_logit": held.p_logit, "macs": self._macs_loss(base, plan.alive, trace.real)}
        return SoftRun(run_masked(base, inputs, plan), terms)

    def _macs_loss(self, base: Backbone, alive: Tensor, real: Tensor) -> Tensor:
        settings, keep = self.settings, torch.sigmoid(torch.as_tensor(self.settings.p_logit, dtype=alive.dtype))
        architecture, survivors = base.architecture, base.reads_survivors
        return macs_loss(architecture, alive, real, keep, settings.lambda_mask, self.outputs, self.least, survivors)

    def rates(self) -> list[tuple[nn.Parameter, float]]:
        return [(self.p_logit, self.settings.p_logit_rate)]

    def planning_macs(self, scored: Sequence[float], tokens: int, width: int, heads: int) -> float:
        covariance = width // heads * width  # a key's part in the covariance of a head, and a query's product with it
        return sum(rows * tokens * (width + heads) + (rows + tokens) * covariance for rows in scored)
