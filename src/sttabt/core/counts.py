"""The same number of tokens for every sample: shapes that are known before any tensor is.

That is what torch.compile, CUDA graphs and runtimes on a device want. B batch, L layers, N tokens; counts: L+1 numbers
of tokens, boundary by boundary, falling to the output tokens; order: tokens (B, counts[0]) by how long they live, so
that the first counts[l] of a row are the set of boundary l.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sttabt.core.plan import TokenPlan


def is_unasked(numbers: Tensor) -> bool:
    """Whether the host does not look at numbers: those on a device would be waited for, a graph has none yet."""
    return numbers.is_cuda or torch.compiler.is_compiling()


def counts_on(device: torch.device, counts: Sequence[int]) -> Tensor:
    """(B,) int64 on the device, which nobody waits for; where all are the same number nothing is copied, either."""
    if len(set(counts)) == 1:
        return torch.full((len(counts),), counts[0], device=device)
    return on_host(counts).to(device, non_blocking=True)


def on_host(counts: Sequence[int]) -> Tensor:
    """(B,) int64 on the CPU, whichever device is the default one."""
    return torch.tensor(counts, dtype=torch.int64, device="cpu")


def extend(order: Tensor, importance: Tensor, count: int, real: Tensor | None = None) -> Tensor:
    """`order` (B, n), and behind it the most important of the other tokens until there are `count`: (B, count).

    importance: (B, N), not negative. real: (B, N) bool, False on padding, which comes last; None where there is none.
    """
    rest = importance if real is None else importance.masked_fill(~real, -1.0)
    if not order.shape[1]:  # OpenVINO's scatter of nothing changes something
        return rest.topk(count).indices
    rest = rest.scatter(1, order, -torch.inf)
    return torch.cat([order, rest.topk(count - order.shape[1]).indices], dim=1)


def fixed_plan(order: Tensor, counts: Sequence[int], tokens: int) -> TokenPlan:
    """The plan that an order stands for."""
    place = torch.arange(counts[0], device=order.device)
    lifetime = torch.stack([place < count for count in counts]).sum(0)  # a device does not wait for numbers of the host
    kept = order.new_zeros(order.shape[0], tokens).scatter(1, order, lifetime.expand_as(order))
    return TokenPlan(kept, len(counts) - 1)


def mean_counts(plan: TokenPlan, outputs: int) -> list[int]:
    """Counts with the mean of a hard plan's, rounded to whole tokens."""
    mean = plan.counts[:, :-1].double().mean(0).round().long().tolist()
    return [*mean, outputs]


def check_counts(counts: Sequence[int], layers: int, tokens: int, outputs: int) -> None:
    """Raise ValueError unless `counts` are L+1 numbers that fall from at most N to the output tokens."""
    if len(counts) != layers + 1:
        raise ValueError(f"counts has {len(counts)} entries, but {layers} layers have {layers + 1} boundaries")
    if counts[-1] != outputs or counts[0] > tokens or any(above > below for below, above in pairwise(counts)):
        raise ValueError(f"counts={list(counts)} must fall from at most {tokens} to the {outputs} output tokens")
