"""Random tokens: the control that every method has to beat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from sttabt.backbones.base import Backbone
from sttabt.core.plan import Planned, TokenPlan, largest, output_tokens, tokens_to_keep
from sttabt.core.trace import AttentionTrace
from sttabt.methods.base import PlannedMethod


class Random(PlannedMethod):
    def plan(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Planned:
        """The choice depends on the sample and on `sparsity.seed`, not on the batch, its order or its padding."""
        real = base.real(inputs)
        outputs = output_tokens(real, self.outputs)
        tokens = real.sum(-1).tolist()
        drawn = [self._noise(sample, own) for sample, own in zip(base.samples(inputs), tokens, strict=True)]
        noise = pad_sequence(drawn, batch_first=True).to(real.device)
        noise = F.pad(noise, (0, real.shape[1] - noise.shape[1]))
        count = tokens_to_keep(self.settings.keep_ratio, real.sum(-1))
        kept = largest(noise.masked_fill(outputs, 2.0), count, among=real) | outputs
        return Planned(TokenPlan(kept * self.layers + outputs.long(), self.layers))

    def _noise(self, sample: Tensor, tokens: int) -> Tensor:
        bits = sample.cpu().contiguous().view(torch.uint8).flatten().long()
        places = torch.arange(1, bits.numel() + 1)
        own = int((bits * places).sum()) % 2**31
        generator = torch.Generator().manual_seed(own + 2**31 * self.settings.seed)
        return torch.rand(tokens, generator=generator)
