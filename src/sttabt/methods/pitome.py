"""PiToMe: of the tokens that have most company, pairs become one. (Tran et al., NeurIPS 2024, section 3)

Deviations. The paper merges texts in their first three layers alone; here every layer but the last merges, on images
and texts alike, as the last one computes the output tokens alone. The mean of the energy is over all rows, the row
itself among them, which adds the same to each. Layers of the margin count from 0, which the paper leaves open. The
released code takes an ELU of the cosine less the margin; equation 4, which is used here, takes the cosine itself where
it reaches the margin.
"""

from __future__ import annotations

from collections.abc import Sequence

from sttabt.backbones.base import Backbone
from sttabt.core.merge import Merging
from sttabt.core.pitome import margin, match_by_energy, pairs_of_share
from sttabt.engine.merging import MergingRows, MergingRule
from sttabt.methods.base import MergingMethod, TunedMethod


class Pitome(MergingMethod, TunedMethod):
    compiles = True

    def rule(self, tokens: Sequence[int]) -> MergingRule:
        def merge(layer: int, rows: MergingRows) -> Merging | None:
            merged = pairs_of_share(self.settings.keep_ratio, rows.counts, self.outputs)
            if not any(merged):
                return None
            return match_by_energy(rows.mean_key, rows.counts, merged, margin(layer, self.layers), self.outputs)

        return merge

    def decision_macs(self, base: Backbone, layer: int, counts: Sequence[int], tokens: Sequence[int]) -> float:
        return (max(counts) - self.outputs) ** 2 * (base.architecture.width // base.heads)
