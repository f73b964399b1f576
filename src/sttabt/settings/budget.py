"""Settings of a budget: what the pruned model may cost, as a share of the dense one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from sttabt.errors import UserError
from sttabt.settings.effects import no_effect
from sttabt.settings.fields import SHARE_OR_NONE, at_least, initial, setting

# By cost as rows name it, the share of what is asked within which a budget is reached.
NEAR = {"macs_share": 0.02, "time_ratio": 0.05, "time_ratio_frozen": 0.05}
ASKED = ("macs", "time")  # the settings that ask for a share; 0: do not


def _is_counted(settings: Any, _: str) -> str | None:
    return None if settings.budget.macs else "budget.macs=0 asks for no share of multiply-adds"


def _is_timed(settings: Any, _: str) -> str | None:
    return None if settings.budget.time else "budget.time=0 asks for no share of time"


@dataclass
class BudgetSettings:
    """What a pruned model may cost. Instead of the method's knob, which is then found."""

    macs: float = setting(0.0, "share of the dense model's multiply-adds, planning and all else counted", SHARE_OR_NONE)
    time: float = setting(0.0, "share of the dense model's time on this machine", SHARE_OR_NONE)
    baseline: str = setting(
        "deployed",
        "the dense time that budget.time is a share of: as the dense model is deployed, which is frozen on CPUs, or as"
        " its library runs it",
        choices=("deployed", "library"),
        when=_is_timed,
    )
    batch: int = setting(32, "samples in the forward that budget.time times", at_least(1), when=_is_timed)
    rounds: int = setting(9, "interleaved rounds of every value that is timed", at_least(1), when=_is_timed)
    samples: int = setting(
        512, "validation samples on which multiply-adds are counted; 0: all", at_least(0), when=_is_counted
    )

    @property
    def asked(self) -> str:
        """The setting that asks for a share, of ASKED; "" where none does."""
        return next((name for name in ASKED if getattr(self, name)), "")

    @property
    def share(self) -> float:
        """The share that is asked for."""
        return getattr(self, self.asked)

    def __str__(self) -> str:
        """As on the command line."""
        return f"budget.{self.asked}={self.share:g}"


def check_of_batches(settings: Any) -> None:
    """Raises UserError for a budget of Python that says what has no effect: where batches are given, they are what is
    counted and timed. settings: the root.
    """
    for declared in fields(budget := settings.budget):
        value, name = getattr(budget, declared.name), f"budget.{declared.name}={getattr(budget, declared.name)!r}"
        if value == initial(declared):
            continue
        if declared.name in ("batch", "samples"):
            raise UserError(f"{name} has no effect beside calibration batches, all of which are used: leave it out")
        if reason := no_effect(settings, f"budget.{declared.name}"):
            raise UserError(f"{name} has no effect: {reason}")


def check_budget(settings: Any, given: Iterable[str]) -> None:
    """Raises UserError for a budget that the method cannot keep, or that says what another setting says.

    settings: the root; given: names of settings of the method that the user gave a value.
    """
    budget, sparsity = settings.budget, settings.sparsity
    if budget.macs and budget.time:
        raise UserError(f"budget.macs={budget.macs:g} and budget.time={budget.time:g} cannot both be kept: give one")
    if not budget.asked:
        return
    dial = sparsity.dial_name()
    if dial is None:
        raise UserError(
            f"{budget}: {sparsity.label} has no setting that moves its cost: choose another sparsity, or leave the"
            " budget out"
        )
    if reason := no_effect(settings, f"sparsity.{dial}"):
        raise UserError(f"{budget} moves sparsity.{dial}, which has no effect here: {reason}")
    found = sparsity.found_by_budget()
    for name in given:
        if name in found:
            value = getattr(sparsity, name)
            raise UserError(f"{budget} finds sparsity.{name}: leave sparsity.{name}={value} out, or the budget")
