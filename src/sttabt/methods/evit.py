"""EViT: the tokens that the class token attends to most go on, and the others become one.

Liang et al., "Not All Patches Are What You Need: Expediting Vision Transformers via Token Reorganizations" (EViT), ICLR
2022. Section 3.2: between the attention and the feed-forward of some layers ceil(keep * m) of the m rows beside the
class token are kept, by the attention that they receive from it, mean over heads; the others become one row. That row
is one like the others from then on: a later layer keeps it or fuses it again. Without weights of its own; run on
weights as they are, or fine-tuned. Deviations:

- the fused row is the mean weighted by attention, as the paper's words say; its equation sums without dividing by the
  weights' sum, which in front of a layer norm is the same but for the residual;
- one row alone is not fused, as it is its own mean;
- fine-tuning keeps as much from the first epoch on, where the paper lowers the ratio step by step;
- where several tokens are classified (distilled DeiT) their attention is averaged;
- texts take part: m is counted in each sample's own rows, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sttabt.backbones.base import Backbone
from sttabt.core.counts import on_host
from sttabt.core.evit import fuse_inattentive, kept_rows
from sttabt.core.merge import Merging
from sttabt.engine.merging import MergingRows, MergingRule
from sttabt.methods.base import MergingMethod, TunedMethod, check_class_token


class Evit(MergingMethod, TunedMethod):
    weighted = False

    def __init__(self, settings: Any, layers: int, outputs: int) -> None:
        super().__init__(settings, layers, outputs)
        self.deciding = settings.deciding(layers)

    def check(self, base: Backbone) -> None:
        check_class_token(self.title, base)

    def rule(self, tokens: Sequence[int]) -> MergingRule:
        keep_ratio = self.settings.keep_ratio

        def fuse(layer: int, rows: MergingRows) -> Merging | None:
            if layer not in self.deciding:
                return None
            if kept_rows(on_host(rows.counts), keep_ratio, self.outputs).tolist() == rows.counts:
                return None
            return fuse_inattentive(rows.of_class, rows.counts, keep_ratio, self.outputs)

        return fuse

    def decision_macs(self, base: Backbone, layer: int, counts: Sequence[int], tokens: Sequence[int]) -> float:
        return max(counts) * base.architecture.classifiers * base.architecture.width
