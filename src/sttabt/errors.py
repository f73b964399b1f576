"""What ends a run early: a user's mistake, one clear line and exit code 2, or the signal to end."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from difflib import get_close_matches

TERMINATED = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM ended, 143


class UserError(Exception):
    """Something that the user can mend: names the setting, its value and what to do."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A half sentence that names the nearest valid name, or all of them: `did you mean 'x'?`."""
    names = sorted(valid)
    close = get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"choose one of: {', '.join(names)}"
