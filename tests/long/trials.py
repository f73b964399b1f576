"""What a long test counts: of so many trials of a fault, how many were survived and what was lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date

from sttabt.store.job import source_commit


@dataclass
class Trials:
    """survived: trials after which the same command went on to the right end; lost: what one of them lost."""

    fault: str
    survived: int = 0
    lost: list[str] = field(default_factory=list)

    def line(self) -> str:
        """A row of the table in docs/RELIABILITY.md."""
        total = self.survived + len(self.lost)
        return f"| {self.fault} | {total} | {self.survived} | {len(self.lost)} | {date.today()} | {source_commit()} |"

    def trial(self, lost: str | None) -> None:
        """lost: None where nothing was."""
        if lost is None:
            self.survived += 1
        else:
            self.lost.append(lost)


DONE: list[Trials] = []  # in this process: pytest shows their lines at its end


@contextmanager
def trials(fault: str) -> Iterator[Trials]:
    """Counts, also of a test that is stopped; raises AssertionError if anything was lost."""
    found = Trials(fault)
    DONE.append(found)
    yield found
    assert not found.lost, "\n".join(found.lost)
