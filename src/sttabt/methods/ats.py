"""ATS: layers sample tokens by the class token's attention, as many as a sample needs.

Fayyaz et al., "Adaptive Token Sampling for Efficient Vision Transformers", ECCV 2022. Section 3.1 scores a token by the
class token's attention times the length of its value; section 3.2 picks the tokens at fixed points of the scores'
distribution, so that one that scores much takes several samples and fewer tokens are left. Without weights of its own.
Deviations:

- a sampling point picks the first token up to which the scores reach it (the inverse of a step function); the paper
  takes the token whose sum is nearest;
- the number of samples is a share of a sample's own tokens, so that it means the same for images and texts;
- the last layer does not sample: it computes what the head reads and nothing else;
- where several tokens are classified (distilled DeiT) their attention is averaged.
"""

from __future__ import annotations

from torch import Tensor

from sttabt.core.ats import sample_tokens, significance
from sttabt.core.plan import output_tokens, tokens_to_keep
from sttabt.engine.online import LayerAttention, Rule
from sttabt.methods.base import ClassAttentionMethod


class Ats(ClassAttentionMethod):
    def rule(self, real: Tensor) -> Rule:
        samples = tokens_to_keep(self.settings.samples, real.sum(-1) - self.outputs)

        def select(layer: int, attention: LayerAttention, alive: Tensor) -> Tensor:
            if not self.decides(layer):
                return alive
            score = significance(attention.of_class, attention.value, alive, self.outputs)
            return sample_tokens(score, samples) | (output_tokens(alive, self.outputs) & alive)

        return select
