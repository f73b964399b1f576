"""What a job's log looks like on the screen."""

from __future__ import annotations

import copy
import logging


class OneLine(logging.Formatter):
    """An error is one line here; the traceback is in the job's own log, which another handler writes."""

    def format(self, record: logging.LogRecord) -> str:
        if not record.exc_info or record.exc_info[1] is None:
            return super().format(record)
        error, shown = record.exc_info[1], copy.copy(record)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        shown.msg, shown.args = f"{record.getMessage()}: {reason} (its traceback is in the job's log)", None
        shown.exc_info = shown.exc_text = shown.stack_info = None
        return super().format(shown)
