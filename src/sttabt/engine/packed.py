"""Samples of unequal length behind each other, (T, D): linear layers run once over all of them and pad nothing."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen

from sttabt.engine.attention import attend

MACS_A_CALL = 500_000  # what fits into the time that one more call of attention takes on a CPU


def attend_packed(
    query: Tensor, key: Tensor, value: Tensor, heads: int, read: list[int], write: list[int], dropout: float = 0.0
) -> Tensor:
    """Attention within each sample: (sum of `write`, D) queries over (sum of `read`, D) keys and values.

    Flash attention on CUDA in half precision takes ragged rows as they are. Elsewhere a sample at a time, or once on
    rows padded to the longest: padding is computed too, which pays while that takes less time than the calls that it
    saves.
    """
    if not dropout and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _attend_ragged(query, key, value, heads, read, write)
    pays = _wasted_macs(read, write, query.shape[-1]) <= MACS_A_CALL * (len(read) - 1)
    return (_attend_padded if pays else _attend_segments)(query, key, value, heads, read, write, dropout)


def padding_macs(counts: list[list[int]], width: int) -> int:
    """Multiply-adds that `attend_packed` spends on padding in single precision, all layers; counts[b][l]: tokens of
    sample b at boundary l.
    """
    boundaries = list(zip(*counts, strict=True))
    wasted = [_wasted_macs(list(read), list(write), width) for read, write in pairwise(boundaries)]
    return sum(macs for macs in wasted if macs <= MACS_A_CALL * (len(counts) - 1))


def unpack(rows: Tensor, present: Tensor) -> Tensor:
    """(T, D) rows at the places (B, N) that are present, zeros elsewhere: (B, N, D)."""
    if len(rows) == present.numel():
        return rows.unflatten(0, present.shape)
    return rows.new_zeros(*present.shape, rows.shape[-1]).masked_scatter(present[..., None], rows)


def present_places(counts: list[int], device: torch.device) -> Tensor:
    """(B, n): which places hold a row when samples are padded to the longest."""
    return torch.arange(max(counts), device=device) < torch.tensor(counts, device=device)[:, None]


def _wasted_macs(read: list[int], write: list[int], width: int) -> int:
    """What attention would spend on padding if it ran once on samples padded to the longest."""
    padded = len(read) * max(read) * max(write)
    return 2 * width * (padded - sum(r * w for r, w in zip(read, write, strict=True)))


def _attend_ragged(query: Tensor, key: Tensor, value: Tensor, heads: int, read: list[int], write: list[int]) -> Tensor:
    q, k, v = (rows.unflatten(-1, (heads, -1)) for rows in (query, key, value))
    written, seen = (_starts(counts, query.device) for counts in (write, read))
    attended: Any = varlen.varlen_attn(q, k, v, written, seen, max(write), max(read))
    return attended.flatten(1)


def _starts(counts: list[int], device: torch.device) -> Tensor:
    """Where each sample begins, and the end of the last: (B+1,) int32."""
    return torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=device)


def _attend_segments(
    query: Tensor, key: Tensor, value: Tensor, heads: int, read: list[int], write: list[int], dropout: float
) -> Tensor:
    segments = zip(query.split(write), key.split(read), value.split(read), strict=True)
    return torch.cat([attend(q[None], k[None], v[None], heads, dropout=dropout)[0] for q, k, v in segments])


def _attend_padded(
    query: Tensor, key: Tensor, value: Tensor, heads: int, read: list[int], write: list[int], dropout: float
) -> Tensor:
    reads, writes = present_places(read, query.device), present_places(write, query.device)
    bias = reads[:, None, None, :]
    padded = unpack(query, writes), unpack(key, reads), unpack(value, reads)
    return attend(*padded, heads, bias, dropout)[writes]
