"""Top-k back-tracking."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from sttabt.errors import UserError
from sttabt.settings.fields import SHARE, SHARE_ABOVE_ZERO, setting
from sttabt.settings.methods.base import TunedSettings


def _count_is_asked_for(settings: Any, _: str) -> str | None:
    return "sparsity.dynamic=true chooses the count" if settings.sparsity.dynamic else _counts_are_free(settings, _)


def _counts_are_free(settings: Any, _: str) -> str | None:
    return "sparsity.counts gives the tokens of each layer" if settings.sparsity.counts else None


@dataclass
class BacktrackingSettings(TunedSettings):
    """Attention back-tracking, top-k: from the output back to the inputs, the tokens that carry most attention."""

    title = "back-tracking top-k"
    source = "STTABT section 3.2"
    implementation = "sttabt.methods.backtracking:Backtracking"
    colour = "#D55E00"
    order = 2
    examples = (
        {},
        {"keep_ratio": 0.3},
        {"keep_ratio": 1.0},
        {"attention": "actual"},
        {"dynamic": True},
        {"propagation": 0.7},
        {"keep_ratio": 0.41, "spread": True},
    )
    rising = (0.2, 0.5, 0.9)
    kept_by = "keep_ratio"
    at_budget: ClassVar[dict[str, Any]] = {"spread": True}

    attention: str = setting(
        "approximate",
        "whose attention: the approximate network's, or of a dense run of the base model (actual: an upper bound)",
        choices=("approximate", "actual"),
    )
    keep_ratio: float = setting(
        0.5,
        "share of real tokens found by every layer",
        SHARE_ABOVE_ZERO,
        knob=True,
        scheduled=True,
        when=_count_is_asked_for,
    )
    spread: bool = setting(
        False,
        "of images: layers differ by a token, so that their mean need not be whole; a budget sets it",
        when=_count_is_asked_for,
    )
    dynamic: bool = setting(False, "choose the count from the importances instead of keep_ratio", when=_counts_are_free)
    counts: list[int] = setting(
        [], "tokens that each layer reads, of every image alike, for static shapes; []: by keep_ratio or dynamic"
    )
    propagation: float = setting(0.1, "p: how much a row's own impact weighs against a plain mean", SHARE)

    @property
    def untuned_label(self) -> str:
        return _label(self.attention)

    @classmethod
    def untuned_labels(cls) -> dict[str, str]:
        return {_label("approximate"): cls.colour, _label("actual"): "#CC79A7"}

    def check_model(self, layers: int, tokens: int | None = None) -> None:
        counts = self.counts
        if not counts:
            return
        if len(counts) != layers:
            raise UserError(f"sparsity.counts={counts} has {len(counts)} entries: give one for each of {layers} layers")
        if counts[-1] < 1 or any(above > below for below, above in pairwise(counts)):
            raise UserError(
                f"sparsity.counts={counts} must not rise from layer to layer, and hold 1 token at the least"
            )
        if tokens is not None and counts[0] > tokens:
            raise UserError(f"sparsity.counts={counts} begins with {counts[0]} tokens, but the model has {tokens}")

    @property
    def reads_approximation(self) -> bool:
        return self.attention == "approximate"

    @property
    def knob(self) -> tuple[str, Any] | None:
        return None if self.dynamic or self.counts else ("keep_ratio", self.keep_ratio)


def _label(attention: str) -> str:
    return f"back-tracking ({attention} attention)"
