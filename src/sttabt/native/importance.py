"""The planner's sums on CUDA, without attention maps: scores, softmax or normal cdf, and weighted sum in one kernel.

B batch, H heads, N tokens, d width of a head. Imports without Triton, which is there wherever torch is for CUDA.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

if HAS_TRITON := find_spec("triton") is not None:
    import triton
    import triton.language as tl

SMALLEST_VARIANCE = 1e-20  # as sttabt.core.concrete's
BLOCK_ROWS, BLOCK_KEYS = 32, 128
ENOUGH_PROGRAMS = 256  # that a card has something to do everywhere; fewer samples and heads are split by rows


@torch.library.custom_op("sttabt::importance", mutates_args=())
def importance(
    queries: Tensor, keys: Tensor, places: Tensor, weight: Tensor, counts: Tensor, real: Tensor, scale: float, cdf: bool
) -> Tensor:
    """What each token receives, (B, N) float32: sum over rows of weight times probability, mean over heads.

    queries, keys: (B, H, N, d); places, weight: (B, n), which rows, and what each weighs; counts: (B,), only so many of
    the n are read; real: (B, N) bool, False on keys that are padding. scale: of the scores.
    cdf: instead of the softmax of a row's scores, the normal cdf of a score standardised over the real keys: 0.5 (1 +
    erf(x / sqrt 2)), the concrete masks' percentile (METHOD section 3).
    """
    batch, heads, tokens, width = queries.shape
    splits = max(1, min(triton.cdiv(places.shape[1], BLOCK_ROWS), ENOUGH_PROGRAMS // (batch * heads)))
    sums = torch.empty(batch, heads * splits, tokens, device=queries.device)
    _kernel[(batch * heads, splits)](
        queries, keys, places, weight, counts, real, sums,
        *queries.stride(), *keys.stride(), places.stride(0), weight.stride(0), real.stride(0),
        heads, tokens, width, scale, SMALLEST_VARIANCE,
        cdf=cdf, rows=BLOCK_ROWS, span=BLOCK_KEYS, padded=max(16, triton.next_power_of_2(width)),
        num_warps=4,
    )  # fmt: skip
    return sums.sum(1)


@importance.register_fake
def _(queries: Tensor, *_: Any) -> Tensor:
    return queries.new_empty(queries.shape[0], queries.shape[2], dtype=torch.float32)


def _sums(
    queries, keys, places, weight, counts, real, sums,
    q_batch, q_head, q_row, q_width, k_batch, k_head, k_row, k_width, place_batch, weight_batch, real_batch,
    heads, tokens, width, scale, smallest,
    cdf: tl.constexpr, rows: tl.constexpr, span: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """A program has a sample, a head and every `splits`-th block of rows, and its own line of `sums`."""
    sample, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    split, splits = tl.program_id(1), tl.num_programs(1)
    queries += sample.to(tl.int64) * q_batch + head * q_head
    keys += sample.to(tl.int64) * k_batch + head * k_head
    real += sample * real_batch
    sums += (tl.program_id(0).to(tl.int64) * splits + split) * tokens
    for begin in range(0, tokens, span):
        key = begin + tl.arange(0, span)
        tl.store(sums + key, tl.zeros((span,), tl.float32), mask=key < tokens)
    tl.debug_barrier()  # other threads may add to what these have set
    count = tl.load(counts + sample).to(tl.int32)
    entry = tl.arange(0, padded)
    for start in range(split * rows, count, splits * rows):
        row = start + tl.arange(0, rows)
        place = tl.load(places + sample * place_batch + row, mask=row < count, other=0)
        weighs = tl.load(weight + sample * weight_batch + row, mask=row < count, other=0).to(tl.float32) / heads
        query = tl.load(
            queries + place[:, None] * q_row + entry[None, :] * q_width, mask=entry[None, :] < width, other=0
        )
        # First what the whole row decides: of a softmax the largest score and the sum, of the cdf mean and variance.
        first = tl.full((rows,), -float("inf"), tl.float32)
        if cdf:
            first = tl.zeros((rows,), tl.float32)
        second = tl.zeros((rows,), tl.float32)
        seen = 0.0
        for begin in range(0, tokens, span):
            key = begin + tl.arange(0, span)
            there = tl.load(real + key, mask=key < tokens, other=0) != 0
            k = tl.load(
                keys + key[:, None] * k_row + entry[None, :] * k_width,
                mask=(key[:, None] < tokens) & (entry[None, :] < width),
                other=0,
            )
            score = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
            if cdf:  # means and variances of blocks join as Chan, Golub and LeVeque do it
                own = tl.sum(there.to(tl.float32), 0)
                mean = tl.sum(tl.where(there[None, :], score, 0.0), 1) / tl.maximum(own, 1.0)
                off = tl.where(there[None, :], score - mean[:, None], 0.0)
                step = mean - first
                together = tl.maximum(seen + own, 1.0)
                second += tl.sum(off * off, 1) + step * step * (seen * own / together)
                first += step * (own / together)
                seen += own
            else:
                score = tl.where(there[None, :], score, -float("inf"))
                largest = tl.maximum(first, tl.max(score, 1))
                safe = tl.where(largest == -float("inf"), 0.0, largest)
                second = second * tl.exp(first - safe) + tl.sum(tl.exp(score - safe[:, None]), 1)
                first = largest
        factor = 1 / tl.sqrt(2 * tl.maximum(second / tl.maximum(seen, 1.0), smallest)) if cdf else weighs / second
        for begin in range(0, tokens, span):
            key = begin + tl.arange(0, span)
            there = tl.load(real + key, mask=key < tokens, other=0) != 0
            k = tl.load(
                keys + key[:, None] * k_row + entry[None, :] * k_width,
                mask=(key[:, None] < tokens) & (entry[None, :] < width),
                other=0,
            )
            score = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
            if cdf:
                share = 0.5 * (1 + tl.erf((score - first[:, None]) * factor[:, None])) * weighs[:, None]
            else:
                share = tl.exp(score - first[:, None]) * factor[:, None]
            found = tl.sum(share, 0)
            before = tl.load(sums + key, mask=there, other=0)
            tl.store(sums + key, before + found, mask=there)
        tl.debug_barrier()  # the next block of rows reads what other threads wrote


_kernel: Any = triton.jit(_sums) if HAS_TRITON else None
