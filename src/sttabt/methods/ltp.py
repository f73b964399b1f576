"""LTP: a token goes on while it receives more attention than its layer's learned threshold.

Kim et al., "Learned Token Pruning for Transformers", KDD 2022, section 3. A token's score is the attention that it
receives, mean over heads and rows. Training learns thresholds and weights on soft masks, the logistic function of
(score - threshold) / temperature, which multiply what a layer writes, and from `hard_from` on the weights alone, with
tokens dropped at thresholds that stand. Deviations:

- the loss weighs the sum over layers of the mean mask, as the comparison in STTABT (section 4) does, and can end at
  `keep_target`, a share of tokens;
- thresholds start at 0.01 * l / L, as in that comparison, and have a learning rate of their own;
- `threshold_scale` multiplies them after training, so that a budget can be met;
- the mean over rows is that over tokens which are still there, in soft training over all real ones; no padding;
- output tokens are never dropped, and the last layer's threshold decides nothing, as that layer writes these alone;
- images take part; where the head pools, the token that receives most goes on in any case.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sttabt.backbones.base import Backbone
from sttabt.core.ltp import initial_thresholds, mask_loss, soft_mask
from sttabt.core.plan import output_tokens
from sttabt.core.received import AboveThreshold
from sttabt.core.trace import AttentionTrace
from sttabt.engine.online import LayerAttention, SoftRule, run_online_soft
from sttabt.methods.base import ReceivedMethod, SoftRun, TrainedMethod


class Ltp(ReceivedMethod, TrainedMethod):
    """`threshold` (L,); the last one decides nothing, as the last layer writes the output tokens alone."""

    def __init__(self, settings: Any, layers: int, outputs: int) -> None:
        super().__init__(settings, layers, outputs)
        self.threshold = nn.Parameter(initial_thresholds(layers))

    @property
    def thresholds(self) -> Tensor:
        """(L,): what is learned, scaled."""
        return self.threshold * self.settings.threshold_scale

    def selection(self, tokens: Tensor) -> AboveThreshold:
        return AboveThreshold(self.thresholds[:-1], self.pools)

    def soft(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> SoftRun:
        run = run_online_soft(base, inputs, self._soft_rule())
        settings = self.settings
        loss = mask_loss(run.masks, base.real(inputs), settings.mask_weight, settings.keep_target)
        return SoftRun(run.logits, {"masks": loss})

    def rates(self) -> list[tuple[nn.Parameter, float]]:
        return [(self.threshold, self.settings.threshold_rate)]

    def _soft_rule(self) -> SoftRule:
        def mask(layer: int, attention: LayerAttention, real: Tensor) -> Tensor:
            outputs = output_tokens(real, self.outputs)
            if layer == self.layers - 1:
                return outputs.to(attention.query.dtype)
            score = attention.received(real)
            soft = soft_mask(score, self.thresholds[layer], self.settings.temperature)
            return soft.masked_fill(outputs, 1)

        return mask
