"""The log file of a job, which may stand on a disk that is full."""

from __future__ import annotations

import logging
import sys


class LogFile(logging.FileHandler):
    """Says once that it lacks lines, where the library prints a traceback for each; other handlers have them."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """An error that the file has nothing to do with is a mistake in the code, and shows as one."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.told:
            self.told = True
            sys.stderr.write(f"{self.baseFilename} lacks lines, which show here alone: {error.strerror}\n")
