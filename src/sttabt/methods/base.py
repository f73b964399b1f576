"""What a pruning method is: it runs itself on a backbone, and counts what it computed.

Three kinds implement both once: PlannedMethod decides before the base model runs, OnlineMethod layer by layer, and
MergingMethod joins tokens instead of dropping them. One that has weights of its own is a TrainedMethod besides.
No other code asks which kind a method is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Backbone
from sttabt.core.cost import PARTS, encoder_macs, trace_macs
from sttabt.core.plan import Planned, TokenPlan
from sttabt.core.received import Selection
from sttabt.core.trace import AttentionTrace
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.engine.merging import run_merged
from sttabt.engine.online import Rule, rule_of, run_online_dropped, run_online_masked, run_selected
from sttabt.engine.packed import padding_macs
from sttabt.engine.run import Run
from sttabt.errors import UserError


class Predicted(Protocol):
    """Whatever has logits (B, classes): a Run, a SoftRun."""

    @property
    def logits(self) -> Tensor: ...


# form(base, inputs, trace) -> what it predicts
Form = Callable[[Backbone, Any, AttentionTrace | None], Predicted]


@dataclass(frozen=True)
class SoftRun:
    """logits (B, classes), and scalar losses by name that are added to the task's; differentiable in the method's
    weights.
    """

    logits: Tensor
    terms: dict[str, Tensor]


class Method(nn.Module, ABC):
    """Constructed with its settings, the number of layers and of tokens that are never dropped.

    The class of the settings (sttabt.settings.methods) says what readers call it and where it comes from.
    """

    def __init__(self, settings: Any, layers: int, outputs: int) -> None:
        super().__init__()
        self.settings, self.layers, self.outputs = settings, layers, outputs

    @property
    def title(self) -> str:
        """What readers call it."""
        return self.settings.title

    @property
    def attention(self) -> str | None:
        """Whose attention it reads: "approximate", "actual" (the base model's own), or None."""
        return None

    @property
    def counts(self) -> list[int] | None:
        """Tokens at every boundary (L+1) where all samples keep equally many, which static shapes need; else None."""
        return None

    def check(self, base: Backbone) -> None:
        """Raises UserError for a base model that the method cannot prune."""

    @abstractmethod
    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        """The run as it is deployed: what the method leaves out is not computed.

        inputs: what `base.prepare` made of the batch; trace: the attention asked for, None if none was.
        """

    def plan(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Planned:
        """The hard plan of a batch, of a method that decides beforehand; arguments as in `run`."""
        raise UserError(f"{self.title} decides while the model runs: it has no plan beforehand")

    def order(self, trace: AttentionTrace) -> Tensor:
        """Tokens (B, counts[0]) by how long they live (core.counts), of a method that has `counts`."""
        raise UserError(f"{self.title} keeps as many tokens as a sample needs: it has no fixed counts")

    def soft(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> SoftRun:
        """The differentiable run that a trained method learns on; arguments as in `run`."""
        raise UserError(f"{self.title} has nothing to train")

    def forms(self) -> dict[str, Form]:
        """Other ways to run it, by name: `masked` computes every token and masks, with the logits of `run`."""
        return {}

    def steps(self) -> dict[str, Callable[[Backbone, Any, AttentionTrace | None], object]]:
        """Parts of `run` that can be timed by themselves, by names of core.cost.PARTS."""
        return {}

    @abstractmethod
    def macs(self, base: Backbone, run: Run, traced: Backbone | None) -> dict[str, float]:
        """Multiply-adds of a sample, by PARTS, mean over the batch of `run`, as `run` executes them.

        traced: the network whose attention was read, None if none was. What planning and attention spend on padding
        counts, so that a batch of equal lengths is the cheapest.
        """


class PlannedMethod(Method):
    """Decides before the base model runs."""

    @abstractmethod
    def plan(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Planned:
        """The hard plan of a batch; arguments as in `run`."""

    def planning_macs(self, scored: Sequence[float], tokens: int, width: int, heads: int) -> float:
        """Multiply-adds of planning one sample, apart from the trace.

        scored: the run's; tokens: of the longest sample; width, heads: of the traced network.
        """
        return 0.0

    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        return self._run(run_dropped, base, inputs, trace)

    def masked(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        """As `run`, every token computed and masked."""
        return self._run(run_masked, base, inputs, trace)

    def forms(self) -> dict[str, Form]:
        return super().forms() | {"masked": self.masked}

    def steps(self) -> dict[str, Callable[[Backbone, Any, AttentionTrace | None], object]]:
        return super().steps() | ({} if self.attention is None else {"planning": self.plan})

    def macs(self, base: Backbone, run: Run, traced: Backbone | None) -> dict[str, float]:
        counts, tokens = run.plan.counts.tolist(), run.real.sum(-1).tolist()
        architecture = base.architecture
        found = _mean(
            # Every row picks a patch, unless all are embedded before rows are picked.
            encoder_macs(architecture, own[:-1], own[1:], whole - base.outputs if base.embeds_whole else own[0])
            for own, whole in zip(counts, tokens, strict=True)
        )
        if not base.attends_ragged:
            found["attention"] += padding_macs(counts, architecture.width) / len(counts)
        if base.projects_whole:  # queries of rows that are not written, too
            dropped = sum(read - write for own in counts for read, write in pairwise(own))
            found["projections"] += dropped * architecture.width**2 / len(counts)
        if traced is not None:
            part = "planning" if traced is base else "approximate_network"
            network = traced.architecture
            found[part] += sum(trace_macs(network, own, own - base.outputs) for own in tokens) / len(tokens)
            if traced is base:
                found[part] -= architecture.stem  # computed once for the trace and the run
            if not traced.attends_ragged:
                boundaries = [[own] * network.layers for own in tokens]  # its last layer attends to nothing
                found[part] += padding_macs(boundaries, network.width) / len(tokens)
            if traced.projects_whole:  # values of the last layer, too
                found[part] += sum(tokens) * network.width**2 / len(tokens)
            found["planning"] += self.planning_macs(run.scored, run.real.shape[1], network.width, network.heads)
        return found

    def _run(
        self,
        execute: Callable[[Backbone, Any, TokenPlan], Tensor],
        base: Backbone,
        inputs: Any,
        trace: AttentionTrace | None,
    ) -> Run:
        with torch.no_grad():
            planned = self.plan(base, inputs, trace)
        plan = planned.plan.with_survivors() if base.reads_survivors else planned.plan
        return Run(execute(base, inputs, plan), plan, base.real(inputs), planned.scored)


class OnlineMethod(Method):
    """Decides layer by layer."""

    @abstractmethod
    def rule(self, real: Tensor) -> Rule:
        """The rule for a batch whose real tokens are `real` (B, N)."""

    @abstractmethod
    def decision_macs(self, tokens: float) -> float:
        """Multiply-adds of one decision among `tokens` tokens of a sample."""

    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        return run_online_dropped(base, inputs, self.rule(base.real(inputs)))

    def masked(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        """As `run`, every token computed and masked."""
        return run_online_masked(base, inputs, self.rule(base.real(inputs)))

    def forms(self) -> dict[str, Form]:
        return super().forms() | {"masked": self.masked}

    def macs(self, base: Backbone, run: Run, traced: Backbone | None) -> dict[str, float]:
        counts = run.plan.counts.tolist()
        longest = [max(boundary) for boundary in zip(*counts, strict=True)]
        samples = []
        for own, tokens in zip(counts, run.real.sum(-1).tolist(), strict=True):
            # A rule sees the attention of all rows that a layer reads; the last layer has nothing to decide.
            found = self._encoder_macs(base, own, tokens)
            if base.attends_ragged:  # all rows attend, those too that are not written
                pairs = sum(read * (read - write) for read, write in pairwise(own[:-1]))
                found["attention"] += pairs * base.architecture.width
                attended = own
            else:  # attention, and the rule on it, run on samples padded to the longest
                found["attention"] = self._encoder_macs(base, longest, tokens)["attention"]
                attended = longest
            samples.append(found | {"planning": sum(self.decision_macs(read) for read in attended[:-2])})
        return _mean(samples)

    def _encoder_macs(self, base: Backbone, counts: list[int], tokens: int) -> dict[str, float]:
        reads, writes = counts[:-1], counts[1:]
        return encoder_macs(base.architecture, reads, writes, tokens - base.outputs, [*reads[:-1], writes[-1]])


class ReceivedMethod(OnlineMethod):
    """Decides layer by layer, by the attention that the tokens receive and nothing else: where the base model is frozen
    all layers are one call.
    """

    @abstractmethod
    def selection(self, real: Tensor) -> Selection:
        """Who goes on, in a batch whose real tokens are `real` (B, N)."""

    def rule(self, real: Tensor) -> Rule:
        return rule_of(self.selection(real), self.outputs)

    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        return run_selected(base, inputs, self.selection(base.real(inputs)))

    def decision_macs(self, tokens: float) -> float:
        return tokens**2


class MergingMethod(Method):
    """Merges tokens of images layer by layer instead of dropping them; it has no masked form."""

    @property
    @abstractmethod
    def merged(self) -> float:
        """Pairs that every layer but the last merges, on the average."""

    @abstractmethod
    def decision_macs(self, tokens: float, head_width: int) -> float:
        """Multiply-adds of comparing `tokens` tokens of a sample."""

    def check(self, base: Backbone) -> None:
        if base.may_pad:
            raise UserError(f"{self.title} merges patches of images: choose another sparsity for text")

    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        return run_merged(base, inputs, self.merged)

    def macs(self, base: Backbone, run: Run, traced: Backbone | None) -> dict[str, float]:
        architecture = base.architecture
        samples = []
        for own, tokens in zip(run.plan.counts.tolist(), run.real.sum(-1).tolist(), strict=True):
            reads, writes = own[:-1], own[1:]
            every = [*reads[:-1], writes[-1]]
            planning = sum(self.decision_macs(read, architecture.width // architecture.heads) for read in reads[:-1])
            # From the second layer on a key has an entry more, its weight (engine.attention.attend_weighted).
            pairs = sum(query * read for query, read in zip(every[1:], reads[1:], strict=True))
            weighing = 0 if base.attends_ragged else 2 * pairs
            found = encoder_macs(architecture, reads, writes, tokens - base.outputs, every, every)
            samples.append(found | {"planning": planning + architecture.heads * weighing})
        return _mean(samples)


class TrainedMethod(Method):
    """Has parameters that train with the base weights: on its soft run, and from `hard_from` on on the hard run.

    The hard run carries no gradient to them, so that they then stay as they are. The settings are TrainedSettings.
    """

    @abstractmethod
    def soft(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> SoftRun:
        """The differentiable run of a batch; arguments as in `run`."""

    @abstractmethod
    def rates(self) -> list[tuple[nn.Parameter, float]]:
        """Parameters that have a learning rate of their own and no weight decay: with the rate relative to the rest."""

    def forms(self) -> dict[str, Form]:
        return super().forms() | {"soft": self.soft}


def dense_macs(base: Backbone, real: Tensor) -> dict[str, float]:
    """Multiply-adds of a sample in the base model's own forward, by PARTS, mean over samples that are not padded.

    real: (B, N) bool.
    """
    every = ([tokens] * base.layers for tokens in real.sum(-1).tolist())
    return _mean(encoder_macs(base.architecture, reads, reads, reads[0] - base.outputs) for reads in every)


def _mean(samples: Any) -> dict[str, float]:
    listed = list(samples)
    return {part: sum(sample.get(part, 0.0) for sample in listed) / max(len(listed), 1) for part in PARTS}
