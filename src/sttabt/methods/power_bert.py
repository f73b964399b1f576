"""PoWER-BERT: how many of the most attended tokens each layer keeps is learned.

Goyal et al., "PoWER-BERT: Accelerating BERT Inference via Progressive Word-vector Elimination", ICML 2020, section 3.
Training learns the retention on soft masks first, each layer's rows multiplied between its attention and its
feed-forward; from `hard_from` on the retention stands, as counts, and the weights learn to do with them: the paper's
second and third step in one training. Deviations:

- the paper pads texts to one length and has a parameter for each of its places; here tokens share one with those of the
  same share of their text's length, so that texts of any length, and images, read the same; the loss therefore takes
  shares of tokens where the paper sums tokens;
- that loss can end at `keep_target`, a share of tokens, and `retention_shift` moves all parameters after training, so
  that a budget can be met;
- parameters are cut to [0, 1] where they are read instead of after each update;
- significance is the mean over heads and rows, the token's own row among them, which the released code leaves out;
- output tokens come first in every order, and the last layer computes them alone, so that it has nothing to retain;
- where the head pools, one other token is kept at the least.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Backbone
from sttabt.core.plan import output_tokens, ranks
from sttabt.core.power_bert import mass_loss, retained, retention_counts
from sttabt.core.received import MostReceived
from sttabt.core.trace import AttentionTrace
from sttabt.engine.online import LayerAttention, SoftRule, run_online_soft
from sttabt.methods.base import ReceivedMethod, SoftRun, TrainedMethod


class PowerBert(ReceivedMethod, TrainedMethod):
    """`retention` (L-1, bins), of all layers but the last."""

    def __init__(self, settings: Any, layers: int, outputs: int) -> None:
        super().__init__(settings, layers, outputs)
        self.retention = nn.Parameter(torch.full((layers - 1, settings.bins), float(settings.start)))
        self._on_host: Tensor | None = None  # of weights that change no more

    def settle(self) -> None:
        self._on_host = self.retention.detach().cpu()

    def selection(self, tokens: Tensor) -> MostReceived:
        retention = self.retention.detach().cpu() if self._on_host is None else self._on_host
        lengths, place = tokens.unique(return_inverse=True)
        counts = retention_counts(retention + self.settings.retention_shift, lengths)
        return MostReceived(counts[:, place].clamp_min(self.least))

    def soft(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> SoftRun:
        run, real = run_online_soft(base, inputs, self._soft_rule(), before_feed_forward=True), base.real(inputs)
        settings = self.settings
        loss = mass_loss(run.masks[:, :-1], real, settings.mass_weight, settings.keep_target)
        return SoftRun(run.logits, {"mass": loss})

    def rates(self) -> list[tuple[nn.Parameter, float]]:
        return [(self.retention, self.settings.retention_rate)]

    def _soft_rule(self) -> SoftRule:
        def mask(layer: int, attention: LayerAttention, real: Tensor) -> Tensor:
            outputs = output_tokens(real, self.outputs)
            if layer == self.layers - 1:
                return outputs.to(attention.query.dtype)
            with torch.no_grad():
                rank = ranks(attention.received(real).masked_fill(outputs, torch.inf), real)
            return retained(self.retention[layer] + self.settings.retention_shift, rank, real).masked_fill(outputs, 1)

        return mask
