"""Random tokens: the control that every method has to beat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sttabt.backbones.base import Backbone
from sttabt.core.plan import Planned, TokenPlan, largest, output_tokens, spread_shares, tokens_to_keep
from sttabt.core.trace import AttentionTrace
from sttabt.methods.base import PlannedMethod, TunedMethod


class Random(PlannedMethod, TunedMethod):
    def plan(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Planned:
        """The choice depends on the sample and on `sparsity.seed`, not on the batch, its order or its padding."""
        real = base.real(inputs)
        outputs = output_tokens(real, self.outputs)
        lengths = real.sum(-1).tolist() if base.may_pad else [real.shape[1]] * len(real)
        noise = self._noise(base.samples(inputs), lengths, real)
        count = tokens_to_keep(self.settings.keep_ratio, real.sum(-1)).clamp_min(self.least)
        kept = largest(noise.masked_fill(outputs, 2.0), count, among=real) | outputs
        lifetime = kept * self.layers
        if self.settings.spread and not base.may_pad:
            shares = spread_shares(self.settings.keep_ratio, self.layers, real.shape[1])
            counts = (tokens_to_keep(keep, real.sum(-1)).clamp_min(self.least) for keep in shares)
            ranked = noise.masked_fill(outputs, 2.0)
            lifetime = torch.stack([largest(ranked, own, among=real) | outputs for own in counts]).sum(0)
        return Planned(TokenPlan(lifetime + outputs.long(), self.layers))

    def _noise(self, samples: list[Tensor], lengths: list[int], real: Tensor) -> Tensor:
        """(B, N), drawn by the numbers of each sample; 0 on padding."""
        noise, generator = torch.zeros(real.shape), torch.Generator()
        for row, own, key in zip(noise.unbind(), lengths, _keys(samples), strict=True):
            row[:own].uniform_(generator=generator.manual_seed(key + 2**31 * self.settings.seed))
        return noise.to(real.device, non_blocking=True)


def _keys(samples: list[Tensor]) -> list[int]:
    """A number of 31 bits for each sample: the sum of its bytes, each times its place."""
    alike = len({sample.shape for sample in samples}) == 1
    together = torch.stack(samples).flatten(1) if alike else pad_sequence([*map(torch.flatten, samples)], True)
    bits = together.contiguous().view(torch.uint8).to(torch.int32)
    places = torch.arange(1, bits.shape[1] + 1, dtype=torch.int32, device=bits.device)
    # 32 bits overflow, and leave the lower 31 right.
    return (bits.mul_(places).sum(1, dtype=torch.int32) & (2**31 - 1)).tolist()
