"""Random tokens: the control that every method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from sttabt.core.plan import TokenPlan, largest, output_tokens, tokens_to_keep
from sttabt.core.trace import AttentionTrace
from sttabt.methods.base import Card, PlannedMethod


class Random(PlannedMethod):
    card = Card(title="random", source="control: every layer reads the same random tokens")

    def plan(self, inputs: Tensor, real: Tensor, trace: AttentionTrace | None) -> TokenPlan:
        """The choice depends on the sample and on `sparsity.seed`, not on the batch or its order."""
        outputs = output_tokens(real, self.outputs)
        noise = torch.stack([self._noise(sample, real.shape[1]) for sample in inputs.cpu()]).to(real.device)
        count = tokens_to_keep(self.settings.keep_ratio, real.sum(-1))
        kept = largest(noise.masked_fill(outputs, 2.0), count, among=real) | outputs
        alive = kept[:, None].repeat(1, self.layers + 1, 1)
        alive[:, -1] = outputs
        return TokenPlan(alive)

    def _noise(self, sample: Tensor, tokens: int) -> Tensor:
        bits = sample.contiguous().view(torch.uint8).flatten().long()
        places = torch.arange(1, bits.numel() + 1)
        own = int((bits * places).sum()) % 2**31
        generator = torch.Generator().manual_seed(own + 2**31 * self.settings.seed)
        return torch.rand(tokens, generator=generator)
