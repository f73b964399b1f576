"""`python -m sttabt.artifacts list|verify|remove [artifacts=FOLDER] ...`: looks after the store of artifacts.

Exit codes: 0, 2 for a user's mistake and for a store that is damaged.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sttabt.cli.pairs import read_names_and_pairs
from sttabt.errors import UserError, nearest
from sttabt.store.artifacts import STAGES
from sttabt.store.inventory import FINISHED, Entry, chosen, dependents, entries, remove
from sttabt.system.faults import tell
from sttabt.system.signals import run_command

USAGE = """usage: python -m sttabt.artifacts list [artifacts=FOLDER] [stage=STAGE]
       python -m sttabt.artifacts verify [artifacts=FOLDER]
       python -m sttabt.artifacts remove KEY... [artifacts=FOLDER] [dependents=true]

list    says what the store holds: stage, key, when it was made, how large it is, what it is.
verify  compares every file with the checksum that was written with it; exit code 2 where one differs.
remove  deletes artifacts by their keys (the beginning will do), or all that are `unfinished` or `damaged`. What others
        are made of is kept, unless dependents=true deletes those, too.
artifacts is ./artifacts where it is not given. To make stages again: python -m sttabt.run ... remake=[base,approx]
"""
COMMANDS = ("list", "verify", "remove")
OPTIONS = ("artifacts", "stage", "dependents")
UNITS = ("B", "KB", "MB", "GB", "TB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0
    try:
        command, keys, options = _read(arguments)
        root = Path(options.get("artifacts", "artifacts"))
        if command == "list":
            found = [each for each in entries(root) if options.get("stage", each.stage) == each.stage]
            sys.stdout.write(_table(found))
            return 0
        if command == "verify":
            return _verify(entries(root, whole=True))
        return _remove(keys, entries(root), options.get("dependents") == "true")
    except Exception as error:
        return tell(error)


def _verify(found: Sequence[Entry]) -> int:
    damaged = [each for each in found if each.state not in (FINISHED, "unfinished")]
    whole = sum(each.state == FINISHED for each in found)
    for each in damaged:
        sys.stdout.write(f"{each.state}\n")
    sys.stdout.write(f"{whole} whole, {len(damaged)} damaged, {len(found) - whole - len(damaged)} unfinished\n")
    if damaged:
        sys.stdout.write("the next job that needs a damaged one sets it aside; `remove damaged` deletes all of them\n")
    return 2 if damaged else 0


def _remove(keys: Sequence[str], found: Sequence[Entry], with_dependents: bool) -> int:
    if not keys:
        raise UserError("remove needs keys, `unfinished` or `damaged`: `list` names the keys")
    going = chosen(keys, found)
    folders = {each.folder for each in going}
    for each in list(going):
        left = [other for other in dependents(each, found) if other.folder not in folders]
        if left and not with_dependents:
            names = ", ".join(f"{other.stage}/{other.key}" for other in left)
            raise UserError(f"{each.stage}/{each.key} is a part of {names}: remove these too, with dependents=true")
        going += left
        folders |= {other.folder for other in left}
    for each in reversed(going):
        remove(each)
        sys.stdout.write(f"removed {each.stage}/{each.key}, {_size(each.bytes)}\n")
    return 0


def _table(found: Sequence[Entry]) -> str:
    lines = [("stage", "key", "made", "size", "what it is")]
    for each in found:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.made))
        lines.append((each.stage, each.key, made, _size(each.bytes), _what(each)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    total = f"{len(found)} artifacts, {_size(sum(each.bytes for each in found))}\n"
    rows = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "".join(f"{row}\n" for row in rows) + total


def _what(entry: Entry) -> str:
    """Model, data and method of a finished artifact; what is wrong with another."""
    settings = entry.record.get("notes", {}).get("settings")
    if entry.state != FINISHED or settings is None:
        return entry.state
    said = [settings["model"]["name"], settings["dataset"]["name"]]
    if entry.stage in ("approx", "general"):
        said.append(f"factor {settings['approx']['factor']}")
    elif entry.stage != "base":
        said.append(settings["sparsity"]["method"])
    return ", ".join([*said, f"seed {settings['seed']}"])


def _size(count: float) -> str:
    power = 0
    while count >= 1000 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {UNITS[power]}"


def _read(arguments: Sequence[str]) -> tuple[str, list[str], dict[str, str]]:
    if not arguments:
        raise UserError(f"say what to do: {', '.join(COMMANDS)} (python -m sttabt.artifacts --help)")
    command = arguments[0]
    if command not in COMMANDS:
        raise UserError(f"{command} is unknown: {nearest(command, COMMANDS)}")
    keys, options = read_names_and_pairs(arguments[1:], OPTIONS, lambda _: False)
    if keys and command != "remove":
        raise UserError(f"{keys[0]} has no effect with {command}: keys are for remove")
    if options.get("stage", STAGES[0]) not in STAGES:
        raise UserError(f"stage={options['stage']} is unknown: {nearest(options['stage'], STAGES)}")
    if options.get("dependents", "true") not in ("true", "false"):
        raise UserError(f"dependents={options['dependents']} is neither true nor false")
    return command, keys, options


if __name__ == "__main__":
    run_command(main, "sttabt.artifacts")
