"""EViT: inattentive tokens become one. (Liang et al., ICLR 2022, section 3.2)"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sttabt.core.counts import counts_on, on_host
from sttabt.core.merge import Merging, first_places
from sttabt.core.plan import largest, output_tokens, tokens_to_keep

TINY = 1e-30  # rows that receive nothing at all are averaged alike, instead of NaN


def fuse_inattentive(attention: Tensor, counts: Sequence[int], keep_ratio: float, outputs: int = 1) -> Merging:
    """Keep the rows that receive most attention, (B, n), and fuse the others into one row behind them.

    counts: rows of each sample, the first of its n. ceil(keep_ratio * m) of the m rows behind the `outputs` first are
    kept; the fused row is the mean of the others, weighted by the attention that they receive.
    """
    rows = on_host(counts)
    whole = kept_rows(rows, keep_ratio, outputs)
    kept = counts_on(attention.device, whole.tolist())
    present = first_places(counts, attention.shape[1], attention.device)
    first = output_tokens(present, outputs) & present
    stays = largest(attention, kept - outputs, among=present & ~first) | first
    fused = present & ~stays
    place = torch.where(stays, stays.cumsum(1) - 1, kept[:, None]).masked_fill(~present, -1)
    received = attention.float() * fused + TINY
    weight = torch.where(stays, 1.0, received / received.amax(-1, keepdim=True))
    return Merging(place, stays, (whole + (whole < rows)).tolist(), weight)


def kept_rows(rows: Tensor, keep_ratio: float, outputs: int = 1) -> Tensor:
    """Of samples of `rows` (B,), how many are not fused, (B,): all where one alone would be, as it is its own mean."""
    others = rows - outputs
    kept = torch.minimum(tokens_to_keep(keep_ratio, others), others)
    return torch.where(others - kept > 1, kept, others) + outputs
