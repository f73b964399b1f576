"""ToMe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from sttabt.errors import UserError
from sttabt.settings.fields import SHARE, at_least, setting
from sttabt.settings.methods.base import TunedSettings


def _share_is_asked_for(settings: Any, _: str) -> str | None:
    return "sparsity.share says how many" if settings.sparsity.share else None


@dataclass
class TomeSettings(TunedSettings):
    """ToMe: tokens that are alike become one."""

    title = "ToMe"
    source = "Bolya et al., ICLR 2023; its last layer computes the output tokens alone"
    implementation = "sttabt.methods.tome:Tome"
    colour = "#56B4E9"
    order = 5
    examples = ({}, {"merged": 3}, {"share": 0.2}, {"merged": 2.5, "decreasing": True})
    rising = (3, 1, 0)
    kept_by = "merged"
    at_budget: ClassVar[dict[str, Any]] = {"merged": 0.0}  # a share of 0 is no pairs then

    merged: float = setting(
        8.0,
        "pairs that every layer but the last merges, at most half of the tokens that a sample has left; a fraction is"
        " spread over layers",
        at_least(0),
        knob=True,
        scheduled=True,
        when=_share_is_asked_for,
    )
    share: float = setting(
        0.0,
        "pairs as a share of a sample's real tokens, for texts, which differ in length; 0: as many as `merged` says. A"
        " budget finds it",
        SHARE,
        dial=True,
    )
    decreasing: bool = setting(
        False,
        "twice as many pairs in the first layer, falling to none in the last that merges, instead of equally many",
    )

    @property
    def kept_setting(self) -> str:
        return "share" if self.share and not self.merged else "merged"  # a share of 0 is as many as `merged` says

    def for_kept(self, share: float) -> float:
        """No pairs for all tokens: how many pairs another share is depends on how many tokens a sample has."""
        if share != 1:
            raise UserError(
                f"sparsity.schedules.keep.start={share:g} is no number of pairs: set it to 1 (no token merges), or"
                " without a budget and a share schedule sparsity.schedules.merged"
            )
        return 0.0

    def aimed(self, value: Any, kept: float) -> Self:
        return replace(self, **self.at_budget, share=value)

    @property
    def knob(self) -> tuple[str, Any] | None:
        return ("share", self.share) if self.share else ("merged", self.merged)
