"""What the command line sets without effect: no mistake, but worth a warning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sttabt.data.sources import unused_settings
from sttabt.settings import Settings
from sttabt.settings.effects import no_effect

PREPARATION = ("crop", "mean", "std")  # settings of a model that images are prepared by


def without_effect(settings: Settings, overrides: Iterable[str]) -> Iterator[str]:
    """One line for every override of the command line (`key=value`) that changes nothing in this job."""
    for override, reason in _reasons(settings, overrides):
        if reason:
            yield _line(override, reason)


class Unused:
    """The overrides of a sweep that change nothing in any of its jobs."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._used: set[str] = set()

    def add(self, settings: Settings, overrides: Iterable[str]) -> None:
        """A job of the sweep, with its own overrides."""
        for override, reason in _reasons(settings, overrides):
            if reason:
                self._reasons.setdefault(override, reason)
            else:
                self._used.add(override)

    def lines(self) -> Iterator[str]:
        """One line each, with the reason in the first job that has it."""
        for override, reason in self._reasons.items():
            if override not in self._used:
                yield _line(override, reason)


def _reasons(settings: Settings, overrides: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    unread = {f"dataset.{name}": reason for name, reason in unused_settings(settings.dataset).items()}
    if "dataset.mean" in unread:  # the source prepares its data by itself
        unread |= {f"model.{name}": unread["dataset.mean"] for name in PREPARATION}
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        setting = ".".join(key.split(".")[:2])
        yield override, unread.get(setting) or no_effect(settings, key)


def _line(override: str, reason: str) -> str:
    return f"{override} has no effect: {reason}"
