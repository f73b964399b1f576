"""`python -m sttabt.parity DIR [DEVICE]`: does this project compute what the official implementation computes?

Checks every case under DIR (a folder with meta.json, weights and vectors.safetensors), prints one line a quantity
and exits with 1 if any fails or is missing. A quantity that is left out on purpose says why and counts as neither.
DEVICE is torch's name of one, `cuda`; without it the CPU computes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sttabt.errors import UserError
from sttabt.parity.check import Check
from sttabt.system.faults import tell
from sttabt.system.packages import need
from sttabt.system.signals import run_command

HEADER = f"{'case':<16} {'quantity':<44} {'error':>10} {'tolerance':>10}  result"


def check_folder(folder: Path, device: str = "cpu") -> Iterator[Check]:
    """Every quantity of every case at or below `folder`; raises UserError when there is none, or no such device."""
    found = sorted({path.parent for name in ("meta.json", "flops.json") for path in folder.rglob(name)})
    if not found:
        raise UserError(f"{folder} holds no case: give a folder with folders that have a meta.json")
    _check_device(device)
    for case in found:
        yield from check_case(case, device)


def check_case(case: Path, device: str) -> Iterator[Check]:
    """Every quantity of one case."""
    if not (case / "meta.json").exists():
        from sttabt.parity.flops import check_flops

        yield from check_flops(case)
        return
    try:
        meta = json.loads((case / "meta.json").read_text(encoding="utf-8"))
        arch = meta.get("arch")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{case / 'meta.json'} describes no case: {error}") from error
    if arch == "vit":
        from sttabt.parity.vit import check_vit

        yield from check_vit(case, meta, device)
    elif arch == "bert":
        need("transformers", str(case))
        from sttabt.parity.bert import check_bert

        yield from check_bert(case, meta, device)
    elif arch == "lvvit":
        from sttabt.parity.lvvit import check_lvvit

        yield from check_lvvit(case, meta, device)
    else:
        yield Check(case.name, "all", skipped=f"not supported yet: architecture {arch}")


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        why = str(error).partition("\n")[0]
        raise UserError(f"the device {device} is not on this machine: leave it out for the CPU ({why})") from error


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) not in (1, 2) or arguments[0] in ("-h", "--help"):
        sys.stderr.write("usage: python -m sttabt.parity DIR [DEVICE]   (a folder of cases, such as tests/golden)\n")
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    write: Any = sys.stdout.write
    checks: list[Check] = []
    try:
        for check in check_folder(Path(arguments[0]), *arguments[1:]):
            if not checks:
                write(HEADER + "\n")
            checks.append(check)
            write(f"{check}\n")
    except Exception as error:
        return tell(error, "error: ")
    failed = sum(check.failed for check in checks)
    skipped = sum(bool(check.skipped) for check in checks)
    write(f"{len(checks) - failed - skipped} ok, {failed} failed or missing, {skipped} not compared\n")
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main, "sttabt.parity")
