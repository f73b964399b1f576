"""DynamicViT: prediction modules between the layers say which tokens go on.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", NeurIPS 2021. Section 3.2: a
module reads each token, and the mean of those that are kept; section 3.3: it learns by the Gumbel-softmax trick and
attention that is masked, with losses on the prediction, the kept tokens and the ratio; deployed, stage s keeps the r^s
of a sample's tokens that are likeliest to be kept. Deviations:

- token distillation compares last states that are normalised row by row, in place of the model's own last norm, which
  is a part of its head;
- the base weights train from the first epoch on, where the paper holds them for five; modules have no weight decay;
- the tokens that the head reads, of which distilled DeiT has two, are seen by no module and always kept;
- texts take part: ratios are those of a sample's own tokens, and one is kept at the least;
- models of few layers have fewer stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sttabt.backbones.base import Backbone
from sttabt.core.cost import PARTS, encoder_macs
from sttabt.core.counts import on_host
from sttabt.core.dynamicvit import decide, kept_tokens, ratio_loss
from sttabt.core.plan import largest, output_tokens
from sttabt.core.trace import AttentionTrace
from sttabt.engine.entering import EntryRule, run_entering, run_entering_masked, run_entering_soft
from sttabt.engine.online import GoesOn
from sttabt.engine.run import Run
from sttabt.methods.base import ComparedStates, Form, SoftRun, TrainedMethod

START = 0  # seed of the modules' first weights


class DynamicVit(TrainedMethod):
    """`predictors`: one module a deciding layer."""

    def __init__(self, settings: Any, layers: int, outputs: int) -> None:
        super().__init__(settings, layers, outputs)
        self.deciding = settings.deciding(layers)
        self.predictors = nn.ModuleList()

    def fit_to(self, base: Backbone) -> None:
        if len(self.predictors):
            return
        like = next(base.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(START)
            self.predictors.extend(Predictor(base.architecture.width) for _ in self.deciding)
        self.predictors.to(like.device, like.dtype)

    @property
    def is_static(self) -> bool:
        """A stage keeps a share of a sample's tokens."""
        return True

    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        rule, enters = self._rule(base.real(inputs)), self._enters(base.lengths(inputs))
        return run_entering(base, inputs, rule, self.deciding, enters)

    def masked(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        """As `run`, every token computed and masked."""
        return run_entering_masked(base, inputs, self._rule(base.real(inputs)), self.deciding)

    def soft(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> SoftRun:
        settings, real = self.settings, base.real(inputs)
        others = real & ~output_tokens(real, self.outputs)

        def enter(layer: int, x: Tensor, decision: Tensor) -> Tensor:
            found = self._predict(layer, x, decision * others)
            return torch.where(others, decide(found, decision, self.training), decision)

        run = run_entering_soft(base, inputs, enter, self.deciding)
        terms = {}
        if run.decisions:
            terms["ratio"] = settings.ratio_weight * ratio_loss(run.decisions, others, settings.keep_ratio)
        if not self.compares_states:
            return SoftRun(run.logits, terms)
        kept = (run.decisions[-1] if run.decisions else real) * others
        return SoftRun(run.logits, terms, ComparedStates(run.states, kept.detach(), settings.token_distillation))

    @property
    def compares_states(self) -> bool:
        return self.settings.token_distillation > 0

    def rates(self) -> list[tuple[nn.Parameter, float]]:
        return [(parameter, self.settings.predictor_rate) for parameter in self.predictors.parameters()]

    def forms(self) -> dict[str, Form]:
        return super().forms() | {"masked": self.masked}

    def macs(self, base: Backbone, run: Run, traced: Backbone | None) -> dict[str, float]:
        counts, width = run.plan.counts.tolist(), base.architecture.width
        longest = [max(boundary) for boundary in zip(*counts, strict=True)]
        # A module sees what the layer before wrote, samples padded to the longest.
        seen = [longest[layer - 1] - self.outputs for layer in self.deciding]
        planning = sum(predictor_macs(tokens, width) for tokens in seen)
        samples = []
        for own, tokens in zip(counts, run.real.sum(-1).tolist(), strict=True):
            attended = own if base.attends_ragged else longest
            # A layer writes all that it reads: who goes on is known behind it.
            found = encoder_macs(base.architecture, own[:-1], [*own[:-2], own[-1]], tokens - base.outputs)
            pairs = zip(attended[:-1], [*attended[:-2], attended[-1]], strict=True)
            found["attention"] = 2 * width * sum(read * write for read, write in pairs)
            samples.append(found | {"planning": planning})
        return {part: sum(each.get(part, 0.0) for each in samples) / len(samples) for part in PARTS}

    def _enters(self, lengths: Sequence[int]) -> GoesOn:
        """How many tokens the rule lets enter of samples of so many real ones."""
        own = on_host(lengths) - self.outputs

        def enters(layer: int, tokens: Sequence[int]) -> list[int]:
            count = kept_tokens(self.settings.keep_ratio, self.deciding.index(layer) + 1, own) + self.outputs
            return torch.minimum(count, on_host(tokens)).tolist()

        return enters

    def _rule(self, real: Tensor) -> EntryRule:
        own = real.sum(-1) - self.outputs

        def enter(layer: int, x: Tensor, alive: Tensor) -> Tensor:
            outputs = output_tokens(alive, self.outputs) & alive
            others = alive & ~outputs
            likely = self._predict(layer, x, others.to(x.dtype))[..., 0]
            count = kept_tokens(self.settings.keep_ratio, self.deciding.index(layer) + 1, own)
            return largest(likely, count, among=others) | outputs

        return enter

    def _predict(self, layer: int, x: Tensor, kept: Tensor) -> Tensor:
        """What the layer's module says of all tokens (B, n) but the output tokens, which have zeros: (B, n, 2)."""
        module, outputs = self.predictors[self.deciding.index(layer)], self.outputs
        return F.pad(module(x[:, outputs:], kept[:, outputs:]), (0, 0, outputs, 0))


class Predictor(nn.Module):
    """A prediction module (section 3.2): a token's own features beside the mean of those of all that are kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.features = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * half), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(2 * half, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, 2)
        )

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        """Logarithms of the probabilities to keep and to drop, (B, n, 2), of x (B, n, D); kept: (B, n) in [0, 1]."""
        local, whole = self.features(x).chunk(2, -1)
        kept = kept[..., None]
        whole = (whole * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(1)
        return self.score(torch.cat([local, whole.expand_as(local)], -1)).log_softmax(-1)


def predictor_macs(tokens: int, width: int) -> int:
    """Multiply-adds of one module on so many tokens."""
    half, quarter = width // 2, width // 4
    return tokens * (width * 2 * half + 2 * half * half + half * quarter + quarter * 2)
