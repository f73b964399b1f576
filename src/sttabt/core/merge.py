"""Bipartite soft matching: which tokens are alike enough to become one. (ToMe, Bolya et al., ICLR 2023, section 3)"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Matching:
    """stay: (B, s) places that stay as they are or take others in; source, target: (B, r) who merges into whom.

    Places count within the rows given; targets are places within `stay`.
    """

    stay: Tensor
    source: Tensor
    target: Tensor

    def _take(self, rows: Tensor) -> Tensor:
        """The rows (B, n, D) that stay, (B, s, D), without what merges into them."""
        return rows.gather(1, self.stay[..., None].expand(-1, -1, rows.shape[-1]))

    def merge(self, rows: Tensor) -> Tensor:
        """The rows that stay, each with the sum of those that merge into it: (B, s, D)."""
        width = rows.shape[-1]
        merging = rows.gather(1, self.source[..., None].expand(-1, -1, width))
        return self._take(rows).scatter_add(1, self.target[..., None].expand(-1, -1, width), merging)


def pairs_by_layer(merged: float, layers: int) -> list[int]:
    """Pairs that each of so many layers merges, `merged` on the average: of 2.5 they are 2, 3, 2, 3, ..."""
    total = [math.floor(merged * layer) for layer in range(layers + 1)]
    return [after - before for before, after in pairwise(total)]


def match_tokens(features: Tensor, merged: int, outputs: int = 1) -> Matching:
    """Merge the `merged` most alike pairs of (B, n, d) features, by cosine; the first `outputs` rows take no part.

    Rows alternate between two halves; each of the first half is offered its most alike of the second. At most half of
    the rows that take part merge.
    """
    n = features.shape[1]
    places = torch.arange(n, device=features.device)
    offered, taking = places[outputs::2], places[outputs + 1 :: 2]
    merged = min(merged, len(taking), len(offered))
    batch = features.shape[0]
    if not merged:
        none = places[:0].expand(batch, -1)
        return Matching(places.expand(batch, -1), none, none)
    features = F.normalize(features, dim=-1)
    best, partner = (features[:, offered] @ features[:, taking].transpose(1, 2)).max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    going, keeping = order[:, :merged], order[:, merged:].sort(-1).values
    stay = torch.cat([places[:outputs].expand(batch, -1), taking.expand(batch, -1), offered[keeping]], dim=1)
    return Matching(stay, offered[going], partner.gather(1, going) + outputs)
