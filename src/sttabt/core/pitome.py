"""PiToMe: rows that many others are like merge, what stands alone is kept. B batch, n rows of the longest sample.

(Tran et al., Accelerating Transformers with Spectrum-Preserving Token Merging, NeurIPS 2024, section 3.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sttabt.core.merge import Merging, first_places, merge_into

FIRST_MARGIN = 0.9  # of the first layer; it falls linearly, to 0 behind the last one


def margin(layer: int, layers: int) -> float:
    """The cosine from which on rows are alike in a layer 0..layers-1: 0.9 - 0.9 * layer / layers."""
    return FIRST_MARGIN - FIRST_MARGIN * layer / layers


def pairs_of_share(keep: float, counts: Sequence[int], outputs: int = 1) -> list[int]:
    """The pairs that merge so that the share `keep` of the rows behind the first `outputs` is left; at most half."""
    taking_part = [max(rows - outputs, 0) for rows in counts]
    # 30 rows of which 0.9 are kept merge 3 pairs: 30 * (1 - 0.9) is a little less than that.
    return [min(int(rows * (1 - keep) + 1e-9), rows // 2) for rows in taking_part]


def energies(alike: Tensor, present: Tensor, margin: float) -> Tensor:
    """How much company each row has, (B, n): the mean over all rows that are `present` (B, n) of f(cosine).

    alike: (B, n, n) cosines. f(x) = x from the margin on, exp(x - margin) - 1 below (equation 4, with alpha = 1).
    """
    close = torch.where(alike >= margin, alike, (alike - margin).exp() - 1)
    return (close * present[:, None]).sum(-1) / present.sum(-1, keepdim=True)


def match_by_energy(
    features: Tensor, counts: Sequence[int], merged: Sequence[int], margin: float, outputs: int = 1
) -> Merging:
    """Merge `merged` pairs of a sample among the 2 * `merged` rows of (B, n, d) features with the highest energy.

    counts: rows of each sample, the first of its n; the first `outputs` take no part. The chosen rows are dealt by
    falling energy to two halves; each of the first half merges into its most alike of the second.
    """
    present = first_places(counts, features.shape[1], features.device)
    some = F.normalize(features[:, outputs:], dim=-1)
    alike, there, most = some @ some.transpose(1, 2), present[:, outputs:], max(merged)
    energy = energies(alike, there, margin).masked_fill(~there, -torch.inf)
    order = energy.argsort(dim=-1, descending=True, stable=True)
    offered, taking = order[:, : 2 * most : 2], order[:, 1 : 2 * most : 2]  # (B, most) places behind the outputs
    valid = first_places(merged, most, features.device)
    between = alike.gather(1, offered[..., None].expand(-1, -1, alike.shape[2]))
    between = between.gather(2, taking[:, None].expand(-1, most, -1))
    partner = taking.gather(1, between.masked_fill(~valid[:, None], -torch.inf).argmax(-1))
    target = torch.arange(features.shape[1], device=features.device).repeat(len(features), 1)
    into = torch.where(valid, partner, offered) + outputs  # what is not chosen stays
    left = [rows - pairs for rows, pairs in zip(counts, merged, strict=True)]
    return merge_into(target.scatter(1, offered + outputs, into), present, left)
