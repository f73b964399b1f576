"""Settings that change nothing in a job: no mistake, but worth a warning."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from sttabt.settings.fields import describe


def no_effect(settings: Any, key: str) -> str | None:
    """Why the setting or node `key` changes nothing in this job; None where it does, and where there is none."""
    node, path = settings, ""
    for name in key.split("."):
        declared = {field.name: field for field in fields(node)} if is_dataclass(node) else {}
        if name not in declared:
            return None
        path = f"{path}.{name}" if path else name
        when = describe(declared[name]).when
        reason = when(settings, path) if when else None
        if reason:
            return reason
        node = getattr(node, name)
    return None
