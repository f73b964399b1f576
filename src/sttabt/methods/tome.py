"""ToMe: tokens that are alike become one.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, section 3; its decreasing schedule is of section 4.
Deviations:

- texts, which the paper has none of, merge as images do: their padding takes no part, and a text loses at most half of
  its own tokens in a layer;
- pairs can be a share of a sample's tokens (`share`), as texts differ in length, or a fraction, spread over layers;
- the last layer merges nothing and computes the output tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sttabt.backbones.base import Backbone
from sttabt.core.merge import pairs_by_layer
from sttabt.core.trace import AttentionTrace
from sttabt.engine.merging import MergingRule, matching_rule, run_matched
from sttabt.engine.run import Run
from sttabt.methods.base import MergingMethod, TunedMethod


class Tome(MergingMethod, TunedMethod):
    compiles = True

    def pairs(self, tokens: Sequence[int]) -> list[list[int]]:
        """How many pairs each layer merges of each sample, of so many real tokens."""
        share = self.settings.share
        wanted = [share * own for own in tokens] if share else [self.settings.merged] * len(tokens)
        samples = [pairs_by_layer(pairs, self.layers - 1, self.settings.decreasing) for pairs in wanted]
        return [list(layer) for layer in zip(*samples, strict=True)]

    def rule(self, tokens: Sequence[int]) -> MergingRule:
        return matching_rule(self.pairs(tokens), self.outputs)

    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        return run_matched(base, inputs, self.pairs(base.lengths(inputs)))

    def decision_macs(self, base: Backbone, layer: int, counts: Sequence[int], tokens: Sequence[int]) -> float:
        compared = max(counts) - self.outputs
        return (compared // 2) * (compared - compared // 2) * (base.architecture.width // base.heads)
