"""Class-attention top-k: at some layers, the tokens that the class token attends to most go on.

The plain baseline of Haurum et al. ("Which Tokens to Use? Investigating Token Reduction in Vision Transformers", ICCV
2023 workshops), and EViT (Liang et al., ICLR 2022, section 3.2) without its fused token: between attention and
feed-forward, ceil(keep * n) of the n tokens beside the class token are left. Deviations:

- where several tokens are classified (distilled DeiT) their attention is averaged;
- texts take part: n is counted in each sample's own tokens, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sttabt.core.counts import on_host
from sttabt.core.forward import forward_select
from sttabt.core.plan import tokens_to_keep
from sttabt.engine.online import LayerAttention, Rule
from sttabt.methods.base import ClassAttentionMethod


class ClassAttention(ClassAttentionMethod):
    def goes_on(self, layer: int, tokens: Sequence[int]) -> Sequence[int]:
        return self._kept(on_host(tokens)).tolist() if self.decides(layer) else tokens

    def rule(self, real: Tensor) -> Rule:
        def select(layer: int, attention: LayerAttention, alive: Tensor) -> Tensor:
            if not self.decides(layer):
                return alive
            count = self._kept(alive.sum(-1))
            return forward_select(attention.of_class.mean(1), alive, count, self.outputs)

        return select

    def _kept(self, tokens: Tensor) -> Tensor:
        """How many of a sample's `tokens` (B,) a deciding layer keeps."""
        kept = tokens_to_keep(self.settings.keep_ratio, tokens - self.outputs) + self.outputs
        return torch.minimum(kept, tokens)  # a text may have no other token
