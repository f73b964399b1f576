"""A model with a pruning method: plan, then compute what the plan keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Backbone
from sttabt.core.cost import PARTS, encoder_macs, trace_macs
from sttabt.core.plan import TokenPlan
from sttabt.core.trace import AttentionTrace
from sttabt.engine.dense import trace_attention
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.engine.merging import run_merged
from sttabt.engine.online import run_online_dropped, run_online_masked
from sttabt.engine.packed import padding_macs
from sttabt.errors import UserError
from sttabt.methods.base import MergingMethod, Method, OnlineMethod, PlannedMethod, SoftRun, TrainedMethod
from sttabt.models.approximate import ApproximateNetwork


@dataclass(frozen=True)
class PrunedRun:
    """logits (B, classes); the hard plan that led to them; real: (B, N) bool."""

    logits: Tensor
    plan: TokenPlan
    real: Tensor


class PrunedModel(nn.Module):
    """A base model under a method. `approx` is the approximate network, where the method reads one.

    Calling it drops tokens; `masked=True` computes all and masks them, with the same logits (to rounding).
    """

    def __init__(self, base: Backbone, method: Method, approx: ApproximateNetwork | None = None) -> None:
        super().__init__()
        if method.attention == "approximate" and approx is None:
            raise UserError(f"{method.card.title} reads the approximate attention network: run the stage approx first")
        if isinstance(method, MergingMethod) and base.grid == (0, 0):
            raise UserError(f"{method.card.title} merges patches of images: choose another sparsity for text")
        self.base, self.method, self.approx = base, method, approx

    def forward(self, inputs: Any, masked: bool = False) -> PrunedRun:
        real, prepared = self.base.real(inputs), self.base.prepare(inputs)
        if isinstance(self.method, OnlineMethod):
            run = (run_online_masked if masked else run_online_dropped)(self.base, prepared, self.method.rule(real))
            return PrunedRun(run.logits, run.plan, real)
        if isinstance(self.method, MergingMethod):
            if masked:
                raise UserError(f"{self.method.card.title} merges tokens: it has no masked form")
            merged = run_merged(self.base, prepared, self.method.merged)
            return PrunedRun(merged.logits, merged.plan, real)
        plan = self.plan(inputs, prepared)
        logits = (run_masked if masked else run_dropped)(self.base, prepared, plan)
        return PrunedRun(logits, plan, real)

    def soft(self, inputs: Any) -> SoftRun:
        """The run that a trained method learns on, with its gradients."""
        assert isinstance(self.method, TrainedMethod), f"{self.method.card.title} has nothing to train"
        inputs = self.base.prepare(inputs)
        return self.method.soft(self.base, inputs, self.trace(inputs))

    @torch.no_grad()
    def plan(self, inputs: Any, prepared: Any = None) -> TokenPlan:
        """The hard plan of a method that decides beforehand; what trains on it learns under the plan as it stands.

        prepared: the base model's `prepare` of the inputs, where it is at hand.
        """
        assert isinstance(self.method, PlannedMethod), f"{self.method.card.title} decides while the model runs"
        plan = self.method.plan(inputs, self.base.real(inputs), self.trace(inputs if prepared is None else prepared))
        return plan.with_survivors() if self.base.reads_survivors else plan

    def trace(self, inputs: Any) -> AttentionTrace | None:
        """The attention that the method reads, None if it reads none."""
        if self.method.attention == "approximate":
            assert self.approx is not None, "checked when constructed"
            return self.approx(self.base.prepare(inputs) if self.approx.share_stem else inputs)
        if self.method.attention == "actual":
            with torch.no_grad():
                return trace_attention(self.base, inputs)
        return None

    def macs(self, plan: TokenPlan, real: Tensor) -> dict[str, float]:
        """Multiply-adds of a sample, part by part, mean over the batch, as the dropped engine executes them.

        real: (B, N) bool. What planning and attention spend on padding counts, so that a batch of equal lengths is
        the cheapest.
        """
        plan = plan.with_survivors() if self.base.reads_survivors else plan
        counts = plan.alive.sum(-1).tolist()
        tokens = real.sum(-1).tolist()
        longest = [max(boundary) for boundary in zip(*counts, strict=True)]
        samples = [self._sample_macs(sample, own, longest) for sample, own in zip(counts, tokens, strict=True)]
        mean = _mean(samples)
        if isinstance(self.method, PlannedMethod):
            mean["attention"] += padding_macs(counts, self.base.architecture.width, plan.alive.device) / len(samples)
            if self.method.attention is not None:
                part, traced = self._traced()
                boundaries = [[own] * traced.layers for own in tokens]  # its last layer attends to nothing
                mean[part] += padding_macs(boundaries, traced.architecture.width, plan.alive.device) / len(samples)
                sizes = real.shape[1], traced.architecture.width, traced.heads
                mean["planning"] += self.method.planning_macs(plan.scored, *sizes)
        return mean

    def dense_macs(self, real: Tensor) -> dict[str, float]:
        """Multiply-adds of a sample in the base model's own dense forward, mean over samples that are not padded.

        real: (B, N) bool.
        """
        architecture, outputs = self.base.architecture, self.base.outputs
        every = [[tokens] * architecture.layers for tokens in real.sum(-1).tolist()]
        return _mean([encoder_macs(architecture, reads, reads, reads[0] - outputs) for reads in every])

    def _traced(self) -> tuple[str, Backbone]:
        """The network whose attention the method reads, and the part that its cost counts as."""
        if self.method.attention == "actual" or self.approx is None:
            return "planning", self.base
        return "approximate_network", self.approx.backbone

    def _sample_macs(self, counts: list[int], tokens: int, longest: list[int]) -> dict[str, float]:
        parts = dict.fromkeys(PARTS, 0.0)
        reads, writes, outputs = counts[:-1], counts[1:], self.base.outputs
        architecture = self.base.architecture
        if isinstance(self.method, OnlineMethod):
            # A rule sees the attention of all rows that a layer reads; the last layer has nothing to decide.
            parts |= encoder_macs(architecture, reads, writes, tokens - outputs, [*reads[:-1], writes[-1]])
            # Attention, and the rule on it, run on samples padded to the longest.
            reads, writes = longest[:-1], longest[1:]
            padded = encoder_macs(architecture, reads, writes, tokens - outputs, [*reads[:-1], writes[-1]])
            parts["attention"] = padded["attention"]
            parts["planning"] = sum(self.method.decision_macs(read) for read in reads[:-1])
            return parts
        if isinstance(self.method, MergingMethod):
            head_width = architecture.width // architecture.heads
            parts["planning"] = sum(self.method.decision_macs(read, head_width) for read in reads[:-1])
            every = [*reads[:-1], writes[-1]]
            # From the second layer on a key has an entry more, its weight (engine.attention.attend_weighted).
            weighing = sum(2 * query * read for query, read in zip(every[1:], reads[1:], strict=True))
            parts["planning"] += architecture.heads * weighing
            return parts | encoder_macs(architecture, reads, writes, tokens - outputs, every, every)
        parts |= encoder_macs(architecture, reads, writes, reads[0])  # every row picks a patch
        assert isinstance(self.method, PlannedMethod), "a method is planned or online"
        if self.method.attention is not None:
            part, traced = self._traced()
            parts[part] += trace_macs(traced.architecture, tokens, tokens - outputs)
            if traced is self.base:
                parts[part] -= architecture.stem  # computed once for the trace and the run
        return parts


def _mean(samples: list[dict[str, float]]) -> dict[str, float]:
    return {part: sum(sample.get(part, 0.0) for sample in samples) / len(samples) for part in PARTS}
