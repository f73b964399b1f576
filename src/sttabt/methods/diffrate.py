"""DiffRate: how many tokens each layer prunes, and how many it merges, is learned.

Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV 2023, section 3.
Between attention and feed-forward the tokens are sorted by the class token's attention; the last ones go, and the last
of the others merge into those of the first that they are most like. The rates learn from the task's loss, through a
mask with the gradient of a probability, and from the square of how far the multiply-adds are from their target. The
base model's weights stay as they are; with `tuned`, this project's own, they learn beside the rates, at first under
masks and from `hard_from` on with tokens gone. Deviations:

- candidates are shares of a sample's tokens instead of counts, so that texts of any length read the same ones;
- they start at probabilities under which each layer prunes and merges the same share of what it reads, instead of at
  equal ones;
- all layers but the last compress, the first among them, which the released code leaves whole; the last one computes
  the output tokens alone;
- multiply-adds are those that this project counts of the base model, as a share of the dense ones;
- a merged token weighs as many as it stands for in attention, which the released code reduces by how alike they were;
  its row is the plain mean, as there;
- `share_scale` multiplies all learned shares after training, so that a budget can be met; one token beside the output
  tokens is kept at the least;
- where several tokens are classified (distilled DeiT) their attention is averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Backbone
from sttabt.core.cost import encoder_macs
from sttabt.core.diffrate import compress, discrete, expected_shares, kept_counts, kept_probability, start_logits
from sttabt.core.merge import Merging, merge_into
from sttabt.core.trace import AttentionTrace
from sttabt.engine.merging import MergingRows, MergingRule
from sttabt.engine.merging_soft import SoftMerging, SoftMergingRule, SoftRows, run_merging_soft
from sttabt.methods.base import MergingMethod, SoftRun, TrainedMethod, check_class_token

PRUNE, MERGE = 0, 1


class DiffRate(MergingMethod, TrainedMethod):
    """`logits` (L-1, 2, candidates): of pruning and of merging in all layers but the last."""

    def __init__(self, settings: Any, layers: int, outputs: int) -> None:
        super().__init__(settings, layers, outputs)
        starts, kept = [], 1.0
        for _ in range(layers - 1):
            pruned = kept * settings.pruned_to
            kept = pruned * settings.merged_to
            starts.append(torch.stack([start_logits(share, settings.candidates) for share in (pruned, kept)]))
        self.logits = nn.Parameter(torch.stack(starts) if starts else torch.zeros(0, 2, settings.candidates))
        self._on_host: Tensor | None = None  # of weights that change no more

    @property
    def trains_base(self) -> bool:
        return self.settings.tuned

    def check(self, base: Backbone) -> None:
        """Raises UserError for a model without a class token, whose attention says what is important."""
        check_class_token(self.title, base)

    def settle(self) -> None:
        self._on_host = self.logits.detach().cpu()

    def rule(self, tokens: Sequence[int]) -> MergingRule:
        shares = self._shares()

        def merge(layer: int, rows: MergingRows) -> Merging | None:
            pruned_to, merged_to = self._kept(shares[layer], tokens, rows.counts)
            if merged_to == rows.counts:
                return None
            importance = rows.of_class
            found = compress(rows.x, importance, rows.present, pruned_to, merged_to, self.outputs)
            return merge_into(found.target, rows.present, merged_to, torch.ones_like(importance))

        return merge

    def soft(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> SoftRun:
        real = base.real(inputs)
        logits = run_merging_soft(base, inputs, self._soft_rule(real))
        share = share_of_macs(base, expected_shares(self.logits) * self.settings.share_scale, real)
        return SoftRun(logits, {"macs": self.settings.macs_weight * (share - self.settings.macs) ** 2})

    def rates(self) -> list[tuple[nn.Parameter, float]]:
        return [(self.logits, self.settings.rate)]

    def decision_macs(self, base: Backbone, layer: int, counts: Sequence[int], tokens: Sequence[int]) -> float:
        pruned_to, merged_to = self._kept(self._shares()[layer], tokens, counts)
        offered = max(before - after for before, after in zip(pruned_to, merged_to, strict=True))
        compared = offered * (max(merged_to) - self.outputs)
        return (compared + max(counts) * base.architecture.classifiers) * base.architecture.width

    def _shares(self) -> list[list[float]]:
        """Of a sample's tokens, what each layer prunes to and merges to."""
        logits = self.logits.detach().cpu() if self._on_host is None else self._on_host
        shares = expected_shares(logits.double()) * self.settings.share_scale
        return shares.clamp_max(1).tolist()

    def _kept(
        self, shares: Sequence[float], tokens: Sequence[int], counts: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Rows of samples of `counts` rows after a layer has pruned, and after it has merged."""
        pruned_to = kept_counts(shares[PRUNE], tokens, counts, self.outputs)
        return pruned_to, kept_counts(shares[MERGE], tokens, pruned_to, self.outputs)

    def _soft_rule(self, real: Tensor) -> SoftMergingRule:
        tokens, shares = real.sum(-1).tolist(), self._shares()
        behind = real.sum(-1) - self.outputs

        def merge(layer: int, rows: SoftRows) -> SoftMerging:
            counts = rows.alive.sum(-1).tolist()
            pruned_to, merged_to = self._kept(shares[layer], tokens, counts)
            x = rows.x.detach()
            target, rank = compress(x, rows.of_class, rows.alive, pruned_to, merged_to, self.outputs)
            factor = torch.ones_like(rows.of_class)
            for kind, before, after in ((PRUNE, counts, pruned_to), (MERGE, pruned_to, merged_to)):
                start, end = (torch.tensor(each, device=real.device)[:, None] for each in (before, after))
                probability = kept_probability(self.logits[layer, kind], rank - self.outputs, behind)
                decides = (end < start) & (rank >= self.outputs)
                factor = factor * discrete((rank < end) | (rank >= start), probability, decides)
            return SoftMerging(target, factor)

        return merge


def share_of_macs(base: Backbone, shares: Tensor, real: Tensor) -> Tensor:
    """Multiply-adds of the base model as a share of the dense ones, a scalar with the gradient of `shares` (L-1, 2).

    Of a sample of the mean length, of real tokens (B, N), whose counts are not rounded; without what decides them. A
    layer keeps the least of its shares and of what the one before it kept, but the gradient reaches both its shares, as
    in the released code: one that is not the least would never learn to be.
    """
    patches = real.sum(-1).double().mean() - base.outputs
    kept, counts = torch.ones_like(patches), [patches + base.outputs]
    for prune, merge in shares.double():
        least = torch.stack([kept, prune, merge]).detach().min()
        kept = least + (prune - prune.detach()) + (merge - merge.detach())
        counts.append(patches * kept + base.outputs)
    last = counts[-1] if base.reads_survivors else torch.full_like(patches, base.outputs)
    every: list[Any] = [*counts[:-1], last]
    reads, writes, whole = list[Any](counts), list[Any]([*counts[1:], last]), [float(counts[0])] * base.layers
    pruned = encoder_macs(base.architecture, reads, writes, float(patches), every, every)
    dense = encoder_macs(base.architecture, whole, whole, float(patches))
    return torch.as_tensor(sum(pruned.values()) / sum(dense.values())).float()
