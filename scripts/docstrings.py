"""An extension of griffe: docstrings as they are written here, for mkdocstrings.

A line that begins with names and a colon (`counts: ...`, `width, depth: ...`) is an entry of a list, and what begins
with "Raises" a paragraph.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ENTRY = re.compile(r"^((?:[a-z]\w*, )*[a-z]\w*): ", re.MULTILINE)
RAISES = re.compile(r"^Raises ", re.MULTILINE)


class Entries(griffe.Extension):
    """Docstrings as Markdown."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """The docstring with its entries as a list."""
    listed = ENTRY.sub(lambda entry: f"\n- {', '.join(f'`{name}`' for name in entry[1].split(', '))}: ", text)
    return RAISES.sub("\nRaises ", listed)
