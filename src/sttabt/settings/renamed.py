"""Names that settings had in the last version: understood until the next one, with a line that says the new name."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from sttabt.settings.run import TRAININGS

NAMES = {
    **{f"{node}.deviation": f"{node}.std" for node in ("model", "dataset")},
    **{f"{node}.batch": f"{node}.global_batch_size" for node in TRAININGS.values()},
    **{f"{node}.clip": f"{node}.grad_clip_norm" for node in TRAININGS.values()},
    "hardware.accumulate": "hardware.accumulate_grad_batches",
}
CHOICES = {("sparsity", "undecided"): "each_job"}  # of groups

log = logging.getLogger(__name__)


def new_name(key: str) -> str:
    """The full key that a setting has now."""
    if key in NAMES:
        _say(key, NAMES[key])
    return NAMES.get(key, key)


def new_choice(group: str, choice: Any) -> Any:
    """What a group's choice is called now."""
    if not isinstance(choice, str) or (group, choice) not in CHOICES:
        return choice
    _say(f"{group}={choice}", f"{group}={CHOICES[group, choice]}")
    return CHOICES[group, choice]


def new_override(override: str) -> str:
    """An argument of the command line with the names of now; options and other overrides stay as they are."""
    parts = re.fullmatch(r"([+~]*)([^=]*)(=?)(.*)", override, re.DOTALL)
    assert parts is not None, "the pattern fits any text"
    prefix, key, sign, value = parts.groups()
    return f"{prefix}{new_name(key)}{sign}{new_choice(key, value)}"


def new_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with the names of now; prefix: of the node that they are in, with a dot."""
    found = {}
    for key, value in values.items():
        full = f"{prefix}{key}"
        new = new_name(full).removeprefix(prefix) if full in NAMES else key
        found[new] = new_values(value, f"{full}.") if isinstance(value, Mapping) else value
    return found


@cache  # a sweep reads a file once a job
def _say(old: str, new: str) -> None:
    log.warning("%s is now called %s", old, new)
