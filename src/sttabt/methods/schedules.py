"""The settings of a method at some point of its training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from sttabt.core.schedule import scheduled
from sttabt.settings import TrainedSettings
from sttabt.settings.schedules import check_shape, resolved

Settings = TypeVar("Settings", bound=TrainedSettings)


def settings_at(settings: Settings, done: float) -> Settings:
    """`settings` when the share `done` of the updates that their schedules count in is made; from 1 on as they are."""
    return replace(settings, **values_at(settings, done))


def values_at(settings: TrainedSettings, done: float) -> dict[str, Any]:
    """What `settings_at` changes: by name the value of every setting that has a schedule.

    Raises UserError for a schedule that cannot reach the setting's own value.
    """
    found = {}
    for name, each in resolved(settings).items():
        own = getattr(settings, name)
        check_shape(name, each, own)
        found[name] = scheduled(each.start, own, each.until, each.shape, done)
    return found
