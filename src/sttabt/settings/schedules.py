"""Schedules: while a method trains, a setting goes from another value to its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sttabt.errors import UserError, nearest
from sttabt.settings.effects import no_effect
from sttabt.settings.fields import ANY, MISSING, SHARE_ABOVE_ZERO, Description, describe, setting
from sttabt.settings.values import check_value, check_values

SHAPES = ("linear", "geometric", "cosine")
KEEP = "keep"  # in place of a name: the setting that says how many tokens are kept, whatever the method calls it
KEY = "sparsity.schedules"


@dataclass
class ScheduleSettings:
    """How a setting of a method gets to its own value."""

    start: float = setting(MISSING, "value at the first weight update; of `keep` a share of tokens", ANY)
    until: float = setting(
        1.0,
        "share of the weight updates after which the setting has its own value; where training drops tokens from"
        " `hard_from` on, of those before",
        SHARE_ABOVE_ZERO,
    )
    shape: str = setting("linear", "how it gets there", choices=SHAPES)

    def __str__(self) -> str:
        """For readers, behind the name of the setting."""
        return f"from {self.start:g} ({self.shape}, until {self.until:g})"


def read_schedules(given: Mapping[Any, Any]) -> dict[str, ScheduleSettings]:
    """Schedules by name of plain values. Raises UserError for what is none."""
    return {str(name): _read(f"{KEY}.{name}", values) for name, values in given.items()}


def _read(key: str, values: Any) -> ScheduleSettings:
    if isinstance(values, ScheduleSettings):
        return values
    if not isinstance(values, Mapping):
        raise UserError(f"{key}={values} is no schedule: give {key}.start=VALUE, and until and shape where you like")
    typed, names = OmegaConf.structured(ScheduleSettings), [each.name for each in fields(ScheduleSettings)]
    for name, value in values.items():
        if name not in names:
            raise UserError(f"{key}.{name} is not a setting: {nearest(str(name), names)}")
        try:
            typed[name] = value
        except OmegaConfBaseException as error:
            raise UserError(f"{key}.{name}={value} cannot be read: give a number, or for shape its name") from error
    if OmegaConf.is_missing(typed, "start"):
        raise UserError(f"{key}.start is missing: give {key}.start=VALUE")
    return ScheduleSettings(typed.start, typed.until, typed.shape)


def scheduled_names(kind: type) -> list[str]:
    """What can be scheduled of the settings of a method's class: those declared so, and `keep` where one of them says
    how many tokens are kept.
    """
    names = [each.name for each in fields(kind) if describe(each).scheduled]
    return names + [KEEP] * bool(getattr(kind, "kept_by", ""))


def resolved(sparsity: Any) -> dict[str, ScheduleSettings]:
    """The schedules of a method's settings by the names of these, each start in the units of its setting.

    Raises UserError for a share of tokens that the method's setting cannot say.
    """
    found = {}
    for name, schedule in sparsity.schedules.items():
        if name == KEEP:
            found[sparsity.kept_setting] = replace(schedule, start=sparsity.for_kept(schedule.start))
        else:
            found[name] = schedule
    return found


def check_schedules(settings: Any) -> None:
    """Raises UserError for a schedule of what does not train or has no effect, or of values that it cannot have.

    settings: the root. What a budget finds is not known yet: see `check_shape`.
    """
    sparsity = settings.sparsity
    schedules: dict[str, ScheduleSettings] = getattr(sparsity, "schedules", {})
    if not schedules:
        return
    if not sparsity.trains or sparsity.training.epochs == 0:
        raise UserError(
            f"{KEY}.{next(iter(schedules))} has no effect: sparsity.training.epochs=0 trains nothing: set epochs, or"
            " schedule=none"
        )
    if sparsity.hard_from == 0 and not no_effect(settings, "sparsity.hard_from"):
        raise UserError(
            f"{KEY}.{next(iter(schedules))} has no effect: sparsity.hard_from=0 trains without a soft run, which alone"
            " reads it: raise hard_from, or set schedule=none"
        )
    valid = scheduled_names(type(sparsity))
    declared = {each.name: describe(each) for each in fields(sparsity)}
    for name, schedule in schedules.items():
        if name not in valid:
            hint = nearest(name, valid) if valid else "it has none"
            raise UserError(f"{KEY}.{name} is no setting of {sparsity.method} that can be scheduled: {hint}")
        check_values(schedule, f"{KEY}.{name}.")
        of_share = Description("", SHARE_ABOVE_ZERO)
        check_value(f"{KEY}.{name}.start", schedule.start, of_share if name == KEEP else declared[name])
        moved = sparsity.kept_setting if name == KEEP else name
        if name == KEEP and moved in schedules:
            raise UserError(f"{KEY}.{KEEP} and {KEY}.{moved} move the same setting: give one")
        if reason := no_effect(settings, f"sparsity.{moved}"):
            raise UserError(f"{KEY}.{name} moves sparsity.{moved}, which has no effect here: {reason}")
        if settings.budget.asked and name in type(sparsity).at_budget:
            raise UserError(
                f"{KEY}.{name} has no effect: {settings.budget} moves sparsity.{sparsity.dial_name()} instead: schedule"
                f" `{KEEP}`"
            )
    found = sparsity.found_by_budget() if settings.budget.asked else ()
    for name, schedule in resolved(sparsity).items():
        if name not in found:
            check_shape(name, schedule, getattr(sparsity, name))


def check_shape(name: str, schedule: ScheduleSettings, own: float) -> None:
    """Raises UserError for a geometric schedule that would have to cross 0; own: the value of the setting `name`."""
    if schedule.shape == "geometric" and schedule.start * own <= 0:
        raise UserError(
            f"a geometric schedule of sparsity.{name} cannot go from {schedule.start:g} to {own:g}, as it needs two"
            " values of one sign: set shape=linear or shape=cosine"
        )
