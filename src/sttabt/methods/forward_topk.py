"""Forward top-k: each layer keeps the tokens that it attends to most."""

from __future__ import annotations

import torch
from torch import Tensor

from sttabt.core.forward import forward_keep_ratios
from sttabt.core.received import MostReceived
from sttabt.methods.base import ReceivedMethod, TunedMethod


class ForwardTopk(ReceivedMethod, TunedMethod):
    def selection(self, tokens: Tensor) -> MostReceived:
        ratios = forward_keep_ratios(self.settings.keep_ratio, self.layers)[:-1]
        shares = torch.tensor(ratios, dtype=torch.float64, device=tokens.device)[:, None]
        return MostReceived((shares * tokens.double()).floor().long().clamp_min(self.least))
