"""TokenPlan: which tokens live at which layer boundary. B batch, L layers, N tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenPlan:
    """An encoder of L layers has L+1 boundaries; layer l reads boundary l and writes boundary l+1.

    alive: (B, L+1, N); bool is a hard plan, float in [0, 1] a soft one. 1 means keep. The sets are nested:
    a token that is gone stays gone. scored: rows of attention a sample, by layer, that were computed to make
    the plan; empty where none were.
    """

    alive: Tensor
    scored: tuple[float, ...] = ()

    @property
    def layers(self) -> int:
        return self.alive.shape[1] - 1

    @property
    def is_hard(self) -> bool:
        return self.alive.dtype == torch.bool

    def reads(self, layer: int) -> Tensor:
        """The tokens (B, N) that a layer computes keys and values for."""
        return self.alive[:, layer]

    def writes(self, layer: int) -> Tensor:
        """The tokens (B, N) that a layer computes queries, attention output and feed-forward for."""
        return self.alive[:, layer + 1]

    def depth(self) -> Tensor:
        """A token's fate in one number, (B, N) int: how many layers read it. Hard plans only."""
        if not self.is_hard:
            raise ValueError("depth is defined for hard plans: call harden() first")
        return self.alive[:, :-1].sum(1)

    def occupancy(self, real: Tensor | None = None) -> Tensor:
        """Share of real tokens alive at each boundary, (B, L+1); `real` (B, N) bool, None for no padding."""
        if real is None:
            return self.alive.float().mean(-1)
        return (self.alive * real[:, None]).float().sum(-1) / real.sum(-1, keepdim=True)

    def with_survivors(self) -> TokenPlan:
        """The plan whose last layer writes all that it reads, for a head that reads every token that is left."""
        alive = torch.cat([self.alive[:, :-1], self.alive[:, -2:-1]], dim=1)
        return TokenPlan(alive, self.scored)

    def harden(self, threshold: float = 0.5) -> TokenPlan:
        """The hard plan of a soft one: alive where the mask is at least `threshold` (METHOD section 3)."""
        return self if self.is_hard else TokenPlan(self.alive >= threshold, self.scored)

    def check(self, outputs: int = 1) -> None:
        """Raise ValueError unless the sets are nested and hold the first `outputs` tokens at every boundary."""
        if (self.alive[:, 1:] > self.alive[:, :-1]).any():
            raise ValueError("a token plan must be nested: a token cannot come back after it was dropped")
        if not (self.alive[:, :, :outputs] == 1).all():
            raise ValueError(
                f"a token plan must keep the first {outputs} tokens at every boundary: the output reads them"
            )


def keep_all(real: Tensor, layers: int, outputs: int = 1) -> TokenPlan:
    """Every real token (B, N) is read by every layer; the last layer writes the `outputs` first tokens alone."""
    alive = real[:, None].repeat(1, layers + 1, 1)
    alive[:, -1, outputs:] = False
    return TokenPlan(alive)


def output_tokens(real: Tensor, outputs: int) -> Tensor:
    """The set that the output reads: (B, N) bool, True on the first `outputs` tokens."""
    return (torch.arange(real.shape[-1], device=real.device) < outputs).expand_as(real)


def tokens_to_keep(keep: float, real_tokens: Tensor) -> Tensor:
    """ceil(keep * N) of each sample's N real tokens, int (B,); at least 1.

    Computed in double precision, as the official implementation does; raises ValueError outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"a keep ratio lies in (0, 1], got {keep}")
    return torch.ceil(keep * real_tokens.double()).long().clamp_min(1)


def largest(importance: Tensor, count: Tensor, among: Tensor) -> Tensor:
    """The `count` (B,) largest of `importance` (B, N) within the set `among` (B, N): (B, N) bool.

    Ties go to the earlier token, so the choice does not depend on the batch.
    """
    ranked = importance.masked_fill(~among, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(ranked).scatter_(
        -1, ranked, torch.arange(ranked.shape[-1], device=ranked.device).expand_as(ranked)
    )
    return (rank < count[:, None]) & among


def weighty_rows(weight: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """The rows whose weight exceeds `threshold`: their places and weights, (B, n) each.

    weight: (B, N); n is the largest count in the batch, samples with fewer are filled up with rows of weight 0.
    """
    heavy = weight > threshold
    values, places = weight.topk(int(heavy.sum(-1).max()), dim=-1, sorted=False)
    return places, values.masked_fill(values <= threshold, 0)
