"""Forward top-k: each layer keeps the tokens that it attends to most."""

from __future__ import annotations

from torch import Tensor

from sttabt.core.forward import forward_keep_ratios, forward_select
from sttabt.engine.online import LayerAttention, Rule
from sttabt.methods.base import OnlineMethod


class ForwardTopk(OnlineMethod):
    def rule(self, real: Tensor) -> Rule:
        ratios = forward_keep_ratios(self.settings.keep_ratio, self.layers)
        real_tokens = real.sum(-1)

        def select(layer: int, attention: LayerAttention, alive: Tensor) -> Tensor:
            count = (ratios[layer] * real_tokens.double()).floor().long().clamp_min(1)
            return forward_select(attention.received(alive), alive, count, self.outputs)

        return select

    def decision_macs(self, tokens: float) -> float:
        return tokens**2
