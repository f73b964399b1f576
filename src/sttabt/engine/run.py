"""What a run under a method gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sttabt.core.plan import Kept, Scored


@dataclass(frozen=True)
class Run:
    """What a batch gave, and what it was computed from.

    logits: (B, classes).
    plan: what was kept at each layer boundary.
    real: (B, N) bool, False on padding.
    scored: rows of attention a sample that were computed to make the plan, by layer; () where none were.
    """

    logits: Tensor
    plan: Kept
    real: Tensor
    scored: Scored = ()
