"""Forward top-k: each layer keeps the tokens that it attends to most.

The baseline "manual top-k" of STTABT (Lee et al., "Sparse Token Transformer with Attention Back Tracking", ICLR 2023,
section 4): after a layer's attention the floor(k_l * N) tokens go on that receive most of it, mean over heads and over
the rows that are left; k_l falls from layer to layer so that its mean is near `keep_ratio`. Deviations:

- the paper's schedule is for 12 layers; other depths have it stretched, and its shares are cut to [0, 1];
- N are a sample's own tokens, without padding;
- output tokens always go on and count among the k_l; where the head pools, one other token is kept at the least;
- the base weights can be tuned under the choice.
"""

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
