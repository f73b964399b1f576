"""Samples of unequal length behind each other, (T, D): linear layers run once over all of them and pad nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import varlen

from sttabt.core.counts import counts_on
from sttabt.core.remembered import remembered
from sttabt.engine.attention import attend

MACS_A_CALL = 500_000  # what fits into the time that one more call of attention takes on a CPU
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Packing:
    """Which rows belong to which sample, on the device without asking it: (T, D) rows of B samples.

    each: (B,) int64, rows of each sample; rows: T, at least their sum, what is behind them is padding that nobody
    reads; longest: at least the largest of `each`; lengths: `each` as the host knows it, None where it does not.
    """

    each: Tensor
    rows: int
    longest: int
    lengths: tuple[int, ...] | None = None

    @classmethod
    def of(cls, each: Tensor, lengths: Sequence[int]) -> Packing:
        """Without padding; lengths: the numbers of `each`."""
        return cls(each, sum(lengths), max(lengths), tuple(lengths))

    @classmethod
    def of_lengths(cls, lengths: Sequence[int], device: torch.device) -> Packing:
        """Without padding, of lengths that the host alone knows."""
        return cls.of(counts_on(device, lengths), lengths)

    @classmethod
    def alike(cls, samples: int, length: int, device: torch.device) -> Packing:
        """Of samples of one length."""
        each = torch.full((samples,), length, device=device)
        return cls(each, samples * length, length, (length,) * samples)

    @classmethod
    def of_boundaries(cls, counts: Tensor, rows: Sequence[int], longest: Sequence[int]) -> list[Packing]:
        """Of all boundaries of a bucket, counts (B, L+1), worked out together: a few kernels in place of many."""
        found = [cls(*each) for each in zip(counts.unbind(1), rows, longest, strict=True)]
        starts = F.pad(counts.t().cumsum(1, dtype=torch.int32), (1, 0))
        row = torch.arange(max(rows), dtype=torch.int32, device=counts.device).repeat(len(found), 1)
        sample = torch.searchsorted(starts[:, 1:].contiguous(), row, right=True).clamp_max(len(counts) - 1)
        place = (row - starts.gather(1, sample)).long()
        for packing, own, samples, places in zip(found, starts, sample, place, strict=True):
            here = samples[: packing.rows], places[: packing.rows].clamp_max(packing.longest - 1)
            cls.starts.set(packing, own)
            cls.places.set(packing, here)
        return found

    @property
    def counted(self) -> tuple[int, ...]:
        """`lengths`, of rows that the host has counted."""
        assert self.lengths is not None, "no host counts rows that a bucket holds"
        return self.lengths

    @property
    def uniform(self) -> bool:
        """Whether it is known that all samples have the same length, and no row is padding."""
        return self.lengths is not None and len(set(self.lengths)) == 1

    @remembered
    def starts(self) -> Tensor:
        """Where each sample begins, and the end of the last: (B+1,) int32."""
        return F.pad(self.each.cumsum(0, dtype=torch.int32), (1, 0))

    @remembered
    def places(self) -> tuple[Tensor, Tensor]:
        """The sample of each row and its place there, (T,) each; of padding some that are there."""
        row = torch.arange(self.rows, dtype=torch.int32, device=self.each.device)
        sample = torch.searchsorted(self.starts[1:], row, right=True).clamp_max(len(self.each) - 1)
        return sample, (row - self.starts[sample]).clamp_max(self.longest - 1).long()

    @remembered
    def present(self) -> Tensor:
        """(B, longest) bool: which places hold a row when samples are padded to the longest."""
        return torch.arange(self.longest, device=self.each.device) < self.each[:, None]

    def prefix(self, shorter: Packing) -> Tensor:
        """The rows (T',) of each sample's first, as many as `shorter` has; for its padding some that are there."""
        sample, place = shorter.places
        found = self.starts[sample] + place
        return found if shorter.lengths is not None else found.clamp_max(self.rows - 1)

    def rows_at(self, place: Tensor, picked: Packing) -> Tensor:
        """The rows (T',) that are picked: at `place` (B, n) of their samples, as many as `picked` has."""
        return self.starts[picked.places[0]] + picked.pack(place[..., None])[:, 0]

    def unpack(self, rows: Tensor) -> Tensor:
        """(T, D) rows padded to the longest, (B, longest, D); zeros on padding."""
        if self.uniform:
            return rows.unflatten(0, (len(self.each), self.longest))
        if not rows.is_cuda and self.lengths is not None:
            return unpack(rows, self.present)
        index = self.starts[:-1, None] + torch.arange(self.longest, device=rows.device)
        found = rows.index_select(0, index.clamp_max(self.rows - 1).flatten()).unflatten(0, index.shape)
        return found.masked_fill(~self.present[..., None], 0)

    def pack(self, padded: Tensor) -> Tensor:
        """The rows (T, ...) of samples that are padded to one length, to the longest at the least, (B, n, ...)."""
        if self.uniform and padded.shape[1] == self.longest:
            return padded.flatten(0, 1)
        sample, place = self.places
        return padded.flatten(0, 1).index_select(0, sample * padded.shape[1] + place)

    def each_row(self, values: Tensor) -> Tensor:
        """(T,): the value of a sample, (B,), for each of its rows."""
        return values.repeat_interleave(self.longest) if self.uniform else values[self.places[0]]


def attend_packed(
    query: Tensor, key: Tensor, value: Tensor, heads: int, read: Packing, write: Packing, dropout: float = 0.0
) -> Tensor:
    """Attention within each sample: (T', D) queries, packed as `write`, over (T, D) keys and values, as `read`.

    Flash attention on CUDA in half precision takes ragged rows as they are. Elsewhere once on rows padded to the
    longest, or, on a CPU, a sample at a time: padding is computed too, which pays while that takes less time than the
    calls that it saves.
    """
    if query.is_cuda and query.dtype in HALF and not dropout:
        return _attend_ragged(query, key, value, heads, read, write)
    if _pads(read.lengths, write.lengths, query):
        return _attend_padded(query, key, value, heads, read, write, dropout)
    assert read.lengths and write.lengths, "rows that only the device can tell apart are padded"
    return _attend_segments(query, key, value, heads, read.lengths, write.lengths, dropout)


def padding_macs(counts: list[list[int]], width: int, like: Tensor) -> int:
    """Multiply-adds that `attend_packed` spends on padding, all layers; counts[b][l]: tokens of sample b at boundary l.

    like: a tensor of the precision and on the device of what was computed.
    """
    if like.is_cuda and like.dtype in HALF:
        return 0
    layers = pairwise(zip(*counts, strict=True))
    return sum(_wasted_macs(read, write, width) for read, write in layers if _pads(read, write, like, width))


def unpack(rows: Tensor, present: Tensor) -> Tensor:
    """(T, D) rows at the places (B, N) that are present, zeros elsewhere: (B, N, D)."""
    if len(rows) == present.numel():
        return rows.unflatten(0, present.shape)
    return rows.new_zeros(*present.shape, rows.shape[-1]).masked_scatter(present[..., None], rows)


def _pads(read: Sequence[int] | None, write: Sequence[int] | None, rows: Tensor, width: int = 0) -> bool:
    """Whether attention runs once on padded samples; read, write: their lengths."""
    if rows.is_cuda or read is None or write is None:
        return True
    return _wasted_macs(read, write, width or rows.shape[-1]) <= MACS_A_CALL * (len(read) - 1)


def _wasted_macs(read: Sequence[int], write: Sequence[int], width: int) -> int:
    """What attention would spend on padding if it ran once on samples padded to the longest."""
    padded = len(read) * max(read) * max(write)
    return 2 * width * (padded - sum(r * w for r, w in zip(read, write, strict=True)))


def _attend_ragged(query: Tensor, key: Tensor, value: Tensor, heads: int, read: Packing, write: Packing) -> Tensor:
    q, k, v = (rows.unflatten(-1, (heads, -1)) for rows in (query, key, value))
    attended: Any = varlen.varlen_attn(q, k, v, write.starts, read.starts, write.longest, read.longest)
    return attended.flatten(1)


def _attend_segments(
    query: Tensor, key: Tensor, value: Tensor, heads: int, read: Sequence[int], write: Sequence[int], dropout: float
) -> Tensor:
    segments = zip(query.split(write), key.split(read), value.split(read), strict=True)
    return torch.cat([attend(q[None], k[None], v[None], heads, dropout=dropout)[0] for q, k, v in segments])


def _attend_padded(
    query: Tensor, key: Tensor, value: Tensor, heads: int, read: Packing, write: Packing, dropout: float
) -> Tensor:
    bias = None if read.uniform else read.present[:, None, None, :]
    padded = write.unpack(query), read.unpack(key), read.unpack(value)
    return write.pack(attend(*padded, heads, bias, dropout))
