"""Which tokens live at which layer boundary. B batch, L layers, N tokens.

An encoder of L layers has L+1 boundaries; layer l reads boundary l (keys, values) and writes boundary l+1 (queries,
output projection, feed-forward). Three records say what lives there, and all are read alike (`alive`, `occupancy`): a
hard plan (TokenPlan), a soft one that training differentiates (SoftPlan), and what a method that merges left
(MergeRecord). 1 means keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Scored = tuple[float, ...] | Tensor  # numbers by layer; on a device they stay there (L,) until somebody reads them


@dataclass(frozen=True)
class TokenPlan:
    """A hard plan, one number a token: at how many boundaries it lives.

    lifetime: (B, N) int64 in 0..L+1; a token lives at the boundaries 0..lifetime-1, so that the sets are nested: what
    is gone stays gone. 0 is padding, or a token that no layer reads; L+1 is a token that the head reads.
    """

    lifetime: Tensor
    layers: int

    @classmethod
    def of_sets(cls, alive: Tensor) -> TokenPlan:
        """The plan whose sets are `alive` (B, L+1, N) bool. Raises ValueError unless they are nested."""
        if (alive[:, 1:] > alive[:, :-1]).any():
            raise ValueError("a token plan must be nested: a token cannot come back after it was dropped")
        return cls(alive.sum(1), alive.shape[1] - 1)

    @property
    def alive(self) -> Tensor:
        """(B, L+1, N) bool: the tokens of each boundary."""
        return self.lifetime[:, None] > self._boundaries()

    @property
    def counts(self) -> Tensor:
        """(B, L+1) int64: how many tokens live at each boundary."""
        return self.alive.sum(-1)

    def reads(self, layer: int) -> Tensor:
        """The tokens (B, N) that a layer computes keys and values for."""
        return self.lifetime > layer

    def writes(self, layer: int) -> Tensor:
        """The tokens (B, N) that a layer computes queries, attention output and feed-forward for."""
        return self.lifetime > layer + 1

    def depth(self) -> Tensor:
        """(B, N) int64: how many layers read each token."""
        return self.lifetime.clamp_max(self.layers)

    def order(self) -> Tensor:
        """Tokens (B, N) by how long they live, the longest first: the set of a boundary is the first counts[b, l]."""
        return self.lifetime.argsort(dim=-1, descending=True, stable=True)

    def occupancy(self, real: Tensor | None = None) -> Tensor:
        """Share of real tokens alive at each boundary, (B, L+1); `real` (B, N) bool, None for no padding."""
        return _share(self.alive, real)

    def with_survivors(self) -> TokenPlan:
        """The plan whose last layer writes all that it reads, for a head that reads every token that is left."""
        return TokenPlan(torch.where(self.lifetime < self.layers, self.lifetime, self.layers + 1), self.layers)

    def clone(self) -> TokenPlan:
        """A copy in memory of its own."""
        return TokenPlan(self.lifetime.clone(), self.layers)

    def lacking(self, outputs: int = 1, pools: bool = False) -> Tensor:
        """Which samples (B,) bool lack tokens that the head reads: the first `outputs` at every boundary.

        pools: and one behind them in the last layer, of which the head reads what it writes.
        """
        lacking = (self.lifetime[:, :outputs] <= self.layers).any(1)
        return lacking | (self.lifetime[:, outputs:] < self.layers).all(1) if pools else lacking

    def check(self, outputs: int = 1, pools: bool = False) -> None:
        """Raise ValueError where a sample lacks what the head reads, see `lacking`."""
        if self.lacking(outputs, pools).any():
            one = f"the first {outputs} tokens" + (" and one behind them" if pools else "")
            raise ValueError(f"a token plan must keep {one} at every boundary: the output reads them")

    def _boundaries(self) -> Tensor:
        return torch.arange(self.layers + 1, device=self.lifetime.device)[:, None]


@dataclass(frozen=True)
class SoftPlan:
    """alive: (B, L+1, N) float in [0, 1], falling from boundary to boundary; differentiable."""

    alive: Tensor

    @property
    def layers(self) -> int:
        return self.alive.shape[1] - 1

    def reads(self, layer: int) -> Tensor:
        """As TokenPlan's, (B, N) in [0, 1]."""
        return self.alive[:, layer]

    def writes(self, layer: int) -> Tensor:
        """As TokenPlan's, (B, N) in [0, 1]."""
        return self.alive[:, layer + 1]

    def occupancy(self, real: Tensor | None = None) -> Tensor:
        """Mean mask of the real tokens at each boundary, (B, L+1)."""
        return _share(self.alive, real)

    def with_survivors(self) -> SoftPlan:
        """As TokenPlan's."""
        return SoftPlan(torch.cat([self.alive[:, :-1], self.alive[:, -2:-1]], dim=1))

    def harden(self, threshold: float = 0.5) -> TokenPlan:
        """The hard plan: a token lives where its mask is at least `threshold` (METHOD section 3).

        Masks fall from boundary to boundary, so that the sets are nested: nobody has to look.
        """
        return TokenPlan((self.alive >= threshold).sum(1), self.layers)


@dataclass(frozen=True)
class MergeRecord:
    """What merging or fusing left, after the fact.

    alive: (B, L+1, N) bool, the tokens that still stand for themselves or for others; fused: (B, L+1) int64, rows at
    each boundary that stand for none of the N tokens alone, None where there are none.
    """

    alive: Tensor
    fused: Tensor | None = None

    @property
    def layers(self) -> int:
        return self.alive.shape[1] - 1

    @property
    def counts(self) -> Tensor:
        """(B, L+1) int64: how many rows are computed at each boundary."""
        single = self.alive.sum(-1)
        return single if self.fused is None else single + self.fused

    def clone(self) -> MergeRecord:
        """As TokenPlan's."""
        return MergeRecord(self.alive.clone(), None if self.fused is None else self.fused.clone())

    def depth(self) -> Tensor:
        """(B, N) int64: how many layers read each token, itself or as the one that others merged into."""
        return self.alive[:, :-1].sum(1)

    def occupancy(self, real: Tensor | None = None) -> Tensor:
        """Rows at each boundary as a share of the real tokens, (B, L+1)."""
        tokens = self.alive.shape[-1] if real is None else real.sum(-1, keepdim=True)
        return self.counts.float() / tokens


@dataclass(frozen=True)
class Planned:
    """A hard plan, and the rows of attention a sample that were computed to make it, by layer.

    counts: how many tokens of each sample live at each of the L+1 boundaries, where the host knew before; else None.
    """

    plan: TokenPlan
    scored: Scored = ()
    counts: Sequence[Sequence[int]] | None = None

    def with_survivors(self) -> Planned:
        """As TokenPlan's."""
        counts = None if self.counts is None else [*self.counts[:-1], self.counts[-2]]
        return Planned(self.plan.with_survivors(), self.scored, counts)


Kept = TokenPlan | MergeRecord  # what cost, gallery and report read


def keep_all(real: Tensor, layers: int, outputs: int = 1) -> TokenPlan:
    """Every real token (B, N) is read by every layer; the last layer writes the `outputs` first tokens alone."""
    return TokenPlan(real * layers + output_tokens(real, outputs).long(), layers)


def plan_all(real: Tensor, lengths: Sequence[int], layers: int, outputs: int) -> Planned:
    """As `keep_all`, with the counts that the host knows. lengths: real tokens of each sample."""
    return Planned(keep_all(real, layers, outputs), counts=[*[lengths] * layers, [outputs] * len(lengths)])


def output_tokens(real: Tensor, outputs: int) -> Tensor:
    """The set that the output reads: (B, N) bool, True on the first `outputs` tokens."""
    return (torch.arange(real.shape[-1], device=real.device) < outputs).expand_as(real)


def least_kept(outputs: int, pools: bool) -> int:
    """How many tokens a layer always keeps: the output tokens, and one that a pooling head can read."""
    return outputs + pools


def tokens_to_keep(keep: float, real_tokens: Tensor) -> Tensor:
    """ceil(keep * N) of each sample's N real tokens, int (B,); at least 1.

    Computed in double precision, as the official implementation does; raises ValueError outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"a keep ratio lies in (0, 1], got {keep}")
    return torch.ceil(keep * real_tokens.double()).long().clamp_min(1)


def spread_shares(keep: float, layers: int, tokens: int) -> list[float]:
    """A share for each layer, around `keep`, so that of `tokens` tokens their counts step one layer at a time.

    They fall from layer to layer by less than one token, and lie in (0, 1].
    """
    offsets = [0.5 - (layer + 0.5) / layers for layer in range(layers)]
    return [min(max(keep + offset / tokens, 1e-6), 1.0) for offset in offsets]


def ranks(importance: Tensor, among: Tensor) -> Tensor:
    """(B, N) int64: the place of each token in the order of falling importance (B, N); those not `among` come last.

    Ties go to the earlier token, so the order does not depend on the batch.
    """
    ranked = importance.masked_fill(~among, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(ranked.shape[-1], device=ranked.device).expand_as(ranked)
    return torch.empty_like(ranked).scatter_(-1, ranked, places)


def largest(importance: Tensor, count: Tensor, among: Tensor) -> Tensor:
    """The `count` (B,) largest of `importance` (B, N) within the set `among` (B, N): (B, N) bool; ties as `ranks`."""
    return (ranks(importance, among) < count[:, None]) & among


def rows_with_weight(weight: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """The rows whose weight exceeds `threshold`: their places and weights, (B, n) each.

    weight: (B, N); n is the largest count in the batch, samples with fewer are filled up with rows of weight 0.
    """
    above = weight > threshold
    values, places = weight.topk(int(above.sum(-1).max()), dim=-1, sorted=False)
    return places, values.masked_fill(values <= threshold, 0)


def _share(alive: Tensor, real: Tensor | None) -> Tensor:
    if real is None:
        return alive.float().mean(-1)
    return (alive * real[:, None]).float().sum(-1) / real.sum(-1, keepdim=True)
