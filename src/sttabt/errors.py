"""What ends a run early: a user's mistake, a fault of the system, each one clear line and exit code 2, or a signal."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from difflib import get_close_matches

NAMED = 60  # names that a message lists
TERMINATED = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM ended, 143


class UserError(Exception):
    """Something that the user can mend: names the setting, its value and what to do.

    Reads as one line, whatever stands in the name of a file or a cell.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """One line: line breaks, and bytes of a name that are no characters, are written as in Python (`\\n`)."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A half sentence that names the nearest valid name, or all of them: `did you mean 'x'?`.

    Capitals and hyphens count for nothing: papers write ToMe and DynamicViT.
    """
    names = sorted(valid)
    plain = {_plain(each): each for each in reversed(names)}
    close = get_close_matches(name, names, n=1) or get_close_matches(_plain(name), plain, n=1)
    if close:
        return f"did you mean '{close[0] if close[0] in names else plain[close[0]]}'?"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"choose one of: {', '.join(names[:NAMED])}{more}"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
