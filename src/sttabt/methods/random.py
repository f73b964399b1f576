"""Random tokens: the control that every method has to beat, of no paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sttabt.backbones.base import Backbone
from sttabt.core.counts import counts_on, on_host
from sttabt.core.plan import Planned, TokenPlan, largest, output_tokens, spread_shares, tokens_to_keep
from sttabt.core.trace import AttentionTrace
from sttabt.methods.base import PlannedMethod, TunedMethod


class Random(PlannedMethod, TunedMethod):
    def plan(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Planned:
        """The choice depends on the sample and on `sparsity.seed`, not on the batch, its order or its padding.

        A device is asked once, for a number of each image.
        """
        real, lengths = base.real(inputs), base.lengths(inputs)
        outputs = output_tokens(real, self.outputs)
        keep = self.settings.keep_ratio
        shares = [keep] * self.layers
        if self.settings.spread and not base.may_pad:
            shares = spread_shares(keep, self.layers, real.shape[1])
        counts = [self._kept(share, lengths) for share in shares]
        ranked = self._noise(self._keys(base, inputs), lengths, real).masked_fill(outputs, 2.0)
        alive = [largest(ranked, counts_on(real.device, own), among=real) | outputs for own in counts]
        lifetime = torch.stack(alive).sum(0) + outputs.long()
        return Planned(TokenPlan(lifetime, self.layers), counts=[*counts, [self.outputs] * len(lengths)])

    def _kept(self, share: float, lengths: Sequence[int]) -> list[int]:
        """How many tokens of each sample a layer reads."""
        tokens = on_host(lengths)
        return torch.minimum(tokens_to_keep(share, tokens).clamp_min(self.least), tokens).tolist()

    def _noise(self, keys: Sequence[int], lengths: Sequence[int], real: Tensor) -> Tensor:
        """(B, N), drawn by the numbers of each sample; 0 on padding."""
        noise, generator = torch.zeros(real.shape, device="cpu"), torch.Generator()
        for row, own, key in zip(noise.unbind(), lengths, keys, strict=True):
            row[:own].uniform_(generator=generator.manual_seed(key + 2**31 * self.settings.seed))
        return noise.to(real.device, non_blocking=True)

    def _keys(self, base: Backbone, inputs: Any) -> list[int]:
        """A number of 31 bits for each sample; raises UserError for images on a device that the model cannot read."""
        keys, unreadable = keys_of(base.samples(inputs)), base.unreadable(inputs)
        if unreadable is None:
            return keys.tolist()
        *found, refused = torch.cat([keys, unreadable.any()[None]]).tolist()
        if refused:
            base.check_numbers(inputs)
        return found


def keys_of(samples: Sequence[Tensor]) -> Tensor:
    """A number of 31 bits for each sample, (B,) int32: the sum of its bytes, each times its place."""
    alike = len({sample.shape for sample in samples}) == 1
    together = torch.stack(list(samples)).flatten(1) if alike else pad_sequence([*map(torch.flatten, samples)], True)
    bits = together.contiguous().view(torch.uint8).to(torch.int32)
    places = torch.arange(1, bits.shape[1] + 1, dtype=torch.int32, device=bits.device)
    # 32 bits overflow, and leave the lower 31 right.
    return bits.mul_(places).sum(1, dtype=torch.int32) & (2**31 - 1)
