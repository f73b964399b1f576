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
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Backbone
from sttabt.core.cost import PARTS, encoder_macs, trace_macs
from sttabt.core.counts import on_host
from sttabt.core.plan import Planned, Scored, least_kept
from sttabt.core.received import Selection
from sttabt.core.trace import AttentionTrace
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.engine.merging import MergingRule, run_merging
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
class ComparedStates:
    """What the last layer wrote, (B, N, D), and which rows a loss compares with the teacher's, (B, N); its weight."""

    states: Tensor
    rows: Tensor
    weight: float


@dataclass(frozen=True)
class SoftRun:
    """logits (B, classes), and scalar losses by name that are added to the task's; differentiable in the method's
    weights. compared: for a loss that needs the teacher besides, of a method that `compares_states`.
    """

    logits: Tensor
    terms: dict[str, Tensor]
    compared: ComparedStates | None = None


class Method(nn.Module, ABC):
    """Constructed with its settings, the number of layers and of tokens that are never dropped.

    pools: the head of the base model pools (`Backbone.pools`); the pruned model says so.

    The class of the settings (sttabt.settings.methods) says what readers call it and where it comes from.
    """

    takes_counts: ClassVar[bool] = False  # whether `order` says which tokens stay where their number is given
    compiles: ClassVar[bool] = False  # whether torch.compile takes whole what is captured of it as a graph

    def __init__(self, settings: Any, layers: int, outputs: int) -> None:
        super().__init__()
        self.settings, self.layers, self.outputs = settings, layers, outputs

    pools = False

    @property
    def least(self) -> int:
        """How many tokens of a sample every layer keeps at the least."""
        return least_kept(self.outputs, self.pools)

    @property
    def title(self) -> str:
        """What readers call it."""
        return self.settings.title

    @property
    def attention(self) -> str | None:
        """Whose attention it reads: "approximate", "actual" (the base model's own), or None."""
        return None

    @property
    def tracks(self) -> bool:
        """Whether it reads that attention at its present settings."""
        return True

    @property
    def counts(self) -> list[int] | None:
        """Tokens at every boundary (L+1) where all samples keep equally many, which static shapes need; else None."""
        return None

    @property
    def is_static(self) -> bool:
        """Whether no shape of a run depends on what images hold, so that it can be captured as one graph."""
        return self.counts is not None

    def check(self, base: Backbone) -> None:
        """Raises UserError for a base model that the method cannot prune."""

    def settle(self) -> None:
        """Called once the weights change no more: those that runs decide by on the host may be copied to it."""

    def fit_to(self, base: Backbone) -> None:
        """Make the weights whose sizes are the base model's, where there are none yet; they always start alike."""

    @abstractmethod
    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        """The run as it is deployed: what the method leaves out is not computed.

        inputs: what `base.prepare` made of the batch; trace: the attention asked for, None if none was.
        """

    def plan(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Planned:
        """The hard plan of a batch, of a method that decides beforehand; arguments as in `run`."""
        raise UserError(f"{self.title} decides while the model runs: it has no plan beforehand")

    def order(self, trace: AttentionTrace, counts: Sequence[int]) -> Tensor:
        """Tokens (B, counts[0]) by how long they live (core.counts), of a method that `takes_counts`."""
        raise UserError(f"{self.title} keeps as many tokens as a sample needs: it has no fixed counts")

    def scored_at(self, counts: Sequence[int], tokens: int) -> Scored:
        """Rows of attention by layer that `order` computes of a sample with so many tokens: those that a layer writes,
        or where the head pools all that a dense model's reads.
        """
        return (*map(float, counts[1:-1]), float(tokens - self.outputs if self.pools else self.outputs))

    def answered(self, prediction: Tensor) -> Tensor:
        """The samples (B,) bool that the approximate network's logits (B, classes) are the answer to, of a method whose
        settings say `asks_network`: no other part of the method sees them.
        """
        raise UserError(f"{self.title} does not ask the approximate network what it predicts")

    def sureness(self, prediction: Tensor) -> Tensor:
        """(B,), higher for samples that are `answered` sooner, in whose order samples are chosen that are timed: the
        probability of the class that is predicted. A method that answers by something else overrides it.
        """
        return prediction.softmax(-1).amax(-1)

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

    compiles = True

    @abstractmethod
    def plan(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Planned:
        """The hard plan of a batch; arguments as in `run`."""

    def planning_macs(self, scored: Sequence[float], tokens: int, width: int, heads: int) -> float:
        """Multiply-adds of planning one sample, apart from the trace.

        scored: the run's; tokens: of the longest sample; width, heads: of the traced network.
        """
        return 0.0

    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        planned = self._planned(base, inputs, trace)
        logits = run_dropped(base, inputs, planned.plan, planned.counts)
        return Run(logits, planned.plan, base.real(inputs), planned.scored)

    def masked(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        """As `run`, every token computed and masked."""
        planned = self._planned(base, inputs, trace)
        return Run(run_masked(base, inputs, planned.plan), planned.plan, base.real(inputs), planned.scored)

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
            found["attention"] += padding_macs(counts, architecture.width, run.logits) / len(counts)
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
                found[part] += padding_macs(boundaries, network.width, run.logits) / len(tokens)
            if traced.projects_whole:  # values of the last layer, too
                found[part] += sum(tokens) * network.width**2 / len(tokens)
            scored = run.scored.tolist() if isinstance(run.scored, Tensor) else run.scored
            found["planning"] += self.planning_macs(scored, run.real.shape[1], network.width, network.heads)
        return found

    def _planned(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Planned:
        with torch.no_grad():
            planned = self.plan(base, inputs, trace)
        return planned.with_survivors() if base.reads_survivors else planned


class OnlineMethod(Method):
    """Decides layer by layer."""

    @abstractmethod
    def rule(self, real: Tensor) -> Rule:
        """The rule for a batch whose real tokens are `real` (B, N)."""

    @abstractmethod
    def decision_macs(self, tokens: float) -> float:
        """Multiply-adds of one decision among `tokens` tokens of a sample."""

    def goes_on(self, layer: int, tokens: Sequence[int]) -> Sequence[int] | None:
        """How many tokens go on of samples of which the layer reads so many; None where that depends on what they hold,
        for which a device is asked.
        """
        return None if self.decides(layer) else tokens

    @property
    def is_static(self) -> bool:
        return all(self.goes_on(layer, [self.least]) is not None for layer in range(self.layers - 1))

    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        return run_online_dropped(base, inputs, self.rule(base.real(inputs)), self.goes_on)

    def masked(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        """As `run`, every token computed and masked."""
        return run_online_masked(base, inputs, self.rule(base.real(inputs)))

    def forms(self) -> dict[str, Form]:
        return super().forms() | {"masked": self.masked}

    @property
    def reads_every_row(self) -> bool:
        """Whether the rule reads the attention that all rows give, so that those are computed that it drops."""
        return True

    @property
    def reads_class_row(self) -> bool:
        """Whether it reads the class token's attention alone, which is then computed before it decides."""
        return not self.reads_every_row

    def decides(self, layer: int) -> bool:
        """Whether the rule drops anything there; the last layer is never asked."""
        return True

    def macs(self, base: Backbone, run: Run, traced: Backbone | None) -> dict[str, float]:
        counts, deciding = run.plan.counts.tolist(), [self.decides(layer) for layer in range(self.layers - 1)]
        longest = [max(boundary) for boundary in zip(*counts, strict=True)]
        samples = []
        for own, tokens in zip(counts, run.real.sum(-1).tolist(), strict=True):
            reads, writes = own[:-1], own[1:]
            # All rows have a query, as nothing is known before; the last layer has nothing to decide.
            queries = [*reads[:-1], writes[-1]]
            found = encoder_macs(base.architecture, reads, writes, tokens - base.outputs, queries)
            # Attention, and the rule on it, may run on samples padded to the longest.
            attended = own if base.attends_ragged else longest
            found["attention"] = self._attention_macs(base, attended)
            asked = [read for decides, read in zip(deciding, attended[:-2], strict=True) if decides]
            row = base.architecture.classifiers * base.architecture.width if self.reads_class_row else 0
            samples.append(found | {"planning": sum(self.decision_macs(read) + row * read for read in asked)})
        return _mean(samples)

    def _attention_macs(self, base: Backbone, counts: list[int]) -> float:
        found, layers = 0.0, list(pairwise(counts))
        for layer, (read, write) in enumerate(layers):
            every = self.reads_every_row and layer < len(layers) - 1
            scored, summed = (read, read if base.attends_ragged else write) if every else (write, write)
            found += (scored + summed) * read
        return found * base.architecture.width


class ReceivedMethod(OnlineMethod):
    """Decides layer by layer, by the attention that the tokens receive and nothing else: where the base model is frozen
    all layers are one call.
    """

    @abstractmethod
    def selection(self, tokens: Tensor) -> Selection:
        """Who goes on, of samples of so many real tokens: (B,) int64, on the host wherever the model is."""

    @property
    def is_static(self) -> bool:
        return self.selection(on_host([self.least])).counts is not None

    def rule(self, real: Tensor) -> Rule:
        return rule_of(self.selection(real.sum(-1).cpu()), self.outputs)

    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        return run_selected(base, inputs, self.selection(on_host(base.lengths(inputs))))

    def decision_macs(self, tokens: float) -> float:
        return tokens**2


class MergingMethod(Method):
    """Merges tokens layer by layer instead of dropping them; it has no masked form.

    weighted: attention counts a merged token as often as it stands for one.
    """

    weighted = True

    @property
    def is_static(self) -> bool:
        """How many rows are left follows from how many there are."""
        return True

    @abstractmethod
    def rule(self, tokens: Sequence[int]) -> MergingRule:
        """The rule for a batch of samples of so many real tokens."""

    @abstractmethod
    def decision_macs(self, base: Backbone, layer: int, counts: Sequence[int], tokens: Sequence[int]) -> float:
        """Multiply-adds a sample of what the rule decides in a layer where it merges or drops some rows.

        counts: rows of each sample, of which it sees as many as the longest has; tokens: real ones of each.
        """

    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        return run_merging(base, inputs, self.rule(base.lengths(inputs)), self.weighted)

    def macs(self, base: Backbone, run: Run, traced: Backbone | None) -> dict[str, float]:
        architecture = base.architecture
        counts: list[list[int]] = run.plan.counts.tolist()
        # A rule sees samples padded to the longest, and attention too where it cannot leave padding out.
        longest = [max(boundary) for boundary in zip(*counts, strict=True)]
        boundaries = [*zip(*counts, strict=True)]
        # Where no sample merges anything nothing is compared, and keys have no weight before something is.
        merging = [layer for layer in range(base.layers - 1) if boundaries[layer] != boundaries[layer + 1]]
        real = run.real.sum(-1).tolist()
        planning = sum(self.decision_macs(base, layer, boundaries[layer], real) for layer in merging)
        samples = []
        for own, tokens in zip(counts, real, strict=True):
            reads, writes = own[:-1], own[1:]
            every = [*reads[:-1], writes[-1]]
            found = encoder_macs(architecture, reads, writes, tokens - base.outputs, every, every)
            pairs = [query * read for query, read in _attended(own if base.attends_ragged else longest)]
            # A key with a weight has an entry more on a CPU (engine.attention.attend_weighted).
            appended = self.weighted and not (base.attends_ragged or run.logits.is_cuda)
            weighed = sum(pairs[merging[0] + 1 :]) if merging and appended else 0
            found["attention"] = 2 * (sum(pairs) * architecture.width)
            samples.append(found | {"planning": planning + 2 * weighed * architecture.heads})
        return _mean(samples)


class TrainedMethod(Method):
    """Has parameters that train with the base weights: on its soft run, and from `hard_from` on on the hard run.

    The hard run carries no gradient to them, so that they then stay as they are. The settings are TrainedSettings.
    """

    @property
    def trains_base(self) -> bool:
        """False for a method whose parameters alone learn, while the base model stays as it is."""
        return True

    @property
    def compares_states(self) -> bool:
        """Whether its soft run gives states that are compared with the teacher's."""
        return False

    @abstractmethod
    def soft(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> SoftRun:
        """The differentiable run of a batch; arguments as in `run`."""

    @abstractmethod
    def rates(self) -> list[tuple[nn.Parameter, float]]:
        """Parameters that have a learning rate of their own and no weight decay: with the rate relative to the rest."""

    def forms(self) -> dict[str, Form]:
        return super().forms() | {"soft": self.soft}


class TunedMethod(TrainedMethod):
    """Has no weights of its own: the base weights learn under its choices, which drop tokens from the first epoch on.

    The settings are TunedSettings.
    """

    def soft(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> SoftRun:
        return SoftRun(self.run(base, inputs, trace).logits, {})

    def rates(self) -> list[tuple[nn.Parameter, float]]:
        return []

    def forms(self) -> dict[str, Form]:
        """Without a soft run beside the hard one: they are the same."""
        return Method.forms(self)


class ClassAttentionMethod(OnlineMethod, TunedMethod):
    """Decides by the class token's attention, at the layers that its settings name: no other row is computed for it."""

    def __init__(self, settings: Any, layers: int, outputs: int) -> None:
        super().__init__(settings, layers, outputs)
        self.deciding = settings.deciding(layers)

    @property
    def reads_every_row(self) -> bool:
        return False

    def decides(self, layer: int) -> bool:
        return layer in self.deciding

    def check(self, base: Backbone) -> None:
        check_class_token(self.title, base)

    def decision_macs(self, tokens: float) -> float:
        return 0.0


def check_class_token(title: str, base: Backbone) -> None:
    """Raises UserError for a model without a class token, whose attention the method reads."""
    if base.pools or base.outputs < 1:
        raise UserError(
            f"{title} scores tokens by the attention of a class token, and this model's head reads none, but pools"
            " tokens: choose another method, such as backtracking, ltp or tome"
        )


def dense_macs(base: Backbone, real: Tensor) -> dict[str, float]:
    """Multiply-adds of a sample in the base model's own forward, by PARTS, mean over samples that are not padded.

    real: (B, N) bool.
    """
    every = ([tokens] * base.layers for tokens in real.sum(-1).tolist())
    return _mean(encoder_macs(base.architecture, reads, reads, reads[0] - base.outputs) for reads in every)


def _attended(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Queries and keys of each layer where all rows attend before some of them merge."""
    reads = counts[:-1]
    return [*zip(reads[:-1], reads[:-1], strict=True), (counts[-1], reads[-1])]


def _mean(samples: Any) -> dict[str, float]:
    listed = list(samples)
    return {part: sum(sample.get(part, 0.0) for sample in listed) / max(len(listed), 1) for part in PARTS}
