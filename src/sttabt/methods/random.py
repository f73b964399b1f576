"""Random tokens: the control that every method has to beat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from sttabt.core.plan import TokenPlan, largest, output_tokens, tokens_to_keep
from sttabt.core.text import Text
from sttabt.core.trace import AttentionTrace
from sttabt.methods.base import Card, PlannedMethod


class Random(PlannedMethod):
    card = Card(title="random", source="control: every layer reads the same random tokens")

    def plan(self, inputs: Any, real: Tensor, trace: AttentionTrace | None) -> TokenPlan:
        """The choice depends on the sample and on `sparsity.seed`, not on the batch, its order or its padding."""
        outputs = output_tokens(real, self.outputs)
        tokens = real.sum(-1).tolist()
        drawn = [self._noise(sample, own) for sample, own in zip(_samples(inputs), tokens, strict=True)]
        noise = pad_sequence(drawn, batch_first=True).to(real.device)
        noise = F.pad(noise, (0, real.shape[1] - noise.shape[1]))
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


def _samples(inputs: Any) -> list[Tensor]:
    """What each sample consists of, without padding."""
    if not isinstance(inputs, Text):
        return list(inputs.cpu())
    ids, types, real = (field.cpu() for field in inputs)
    return [torch.stack([ids[own][here], types[own][here]]).long() for own, here in enumerate(real)]
