"""JSON files that stand beside weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sttabt.errors import UserError

LARGEST = 64 * 2**20  # bytes; configurations have some thousands


def read_json(path: Path, setting: str) -> dict[str, Any]:
    """The object that a file holds. Raises UserError naming `setting` and the file when it holds none."""
    try:
        if not path.is_file():
            raise UserError(f"{setting}: {path} is missing, or no file: put it there")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{setting}: {path} has {path.stat().st_size} bytes, which no configuration has")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{setting}: {path} cannot be read as JSON ({reason}): mend it, or fetch it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{setting}: {path} holds a {type(found).__name__}, not an object of names: fetch it again")
    return found
