"""`python -m sttabt.convert in=FILE out=FILE`: checkpoints of the official implementation to this project's, and back.

Exit codes: 0, 2 for a user's mistake.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sttabt.cli.pairs import read_pairs
from sttabt.errors import UserError
from sttabt.system.faults import tell
from sttabt.system.signals import run_command

USAGE = """usage: python -m sttabt.convert in=FILE out=FILE

From a checkpoint of the official STTABT implementation (its entries `model` and `approx_bert`, or either of them alone)
to a .safetensors file, which model.checkpoint and approx.checkpoint read; and from that, or from an artifact of this
project (artifacts/STAGE/.../model.safetensors), to a file with the official names. Which way it goes, the input's names
say. Vision transformers and BERT.

For example: python -m sttabt.convert in=deit-small.pth out=deit-small.safetensors
"""
KEYS = ("in", "out")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0
    try:
        files = _read(arguments)
        # Imported after the checks: torch takes seconds to load.
        from sttabt.pretrained.official import convert

        sys.stdout.write(f"{convert(files['in'], files['out'])}\n")
    except Exception as error:
        return tell(error)
    return 0


def _read(arguments: Sequence[str]) -> dict[str, Path]:
    given = {key: Path(text) for key, text in read_pairs(arguments, KEYS, "FILE").items()}
    for key in KEYS:
        if key not in given:
            raise UserError(f"{key} is missing: give {key}=FILE (python -m sttabt.convert --help)")
    _check_target(given["out"])
    return given


def _check_target(target: Path) -> None:
    """Raises UserError for a target that is there, or cannot be made."""
    if target.is_dir():
        raise UserError(f"out={target} is a folder: give a file in it, e.g. out={target / 'weights.safetensors'}")
    if target.exists() or target.is_symlink():
        raise UserError(f"out={target} is there already: remove it, or give another name")
    if not target.parent.is_dir():
        raise UserError(f"out={target}: {target.parent} is no folder: make it, or give another name")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"out={target}: {target.parent} takes no files: change its permissions, or give another folder")


if __name__ == "__main__":
    run_command(main, "sttabt.convert")
