"""`python -m sttabt.export model=artifacts/STAGE/FINGERPRINT format=onnx`: a saved model as a file for another runtime.

Exit codes: 0, 2 for a user's mistake. `sttabt.export(model, path)` does the same to a model at hand, also where this
module was imported, which stands under that name then.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sttabt.cli.pairs import read_pairs
from sttabt.errors import UserError
from sttabt.system.faults import tell
from sttabt.system.signals import run_command

USAGE = """usage: python -m sttabt.export model=FOLDER [format=onnx] [key=value ...]

  model=FOLDER        artifacts/base/... (dense), artifacts/approx/... (back-tracking) or artifacts/prune/...
  format=onnx         onnx, openvino, torch (torch.export's .pt2) or executorch (one sample at a time)
  out=FILE            by default STAGE-FINGERPRINT with the format's ending, here
  counts=[A,B,...]    tokens that each layer reads; by default the mean of what the method keeps of the validation
                      split, of texts the mean share, times tokens
  budget=0.5          instead: counts at which the file costs this share of the dense file's multiply-adds
  calibration=256     samples of the validation split that this mean, and int8's agreement, are taken of
  data=PATH           where the run's data are now, if not where they were (dataset.path)
  tokens=N            texts: the length that they are padded to; by default dataset.max_tokens of the run
  int8=true           onnx: quantised products
  opset=18            onnx

The file holds the planner and really fewer tokens, preprocessing, class names and counts; it was compared with torch.
For example: python -m sttabt.export model=artifacts/prune/0123456789abcdef format=onnx
"""
KEYS = ("model", "format", "out", "counts", "budget", "calibration", "data", "tokens", "int8", "opset")
CALIBRATION = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0
    try:
        options = _read(arguments)
        # Imported after the checks: torch takes seconds to load.
        from sttabt.runtimes.saved import export_saved

        made = export_saved(**options)
    except Exception as error:
        return tell(error)
    agreement = ""
    if made.agreement is not None and made.output == "logits":
        agreement = f"; int8 predicts as torch for {made.agreement:.1%} of the samples"
    elif made.agreement is not None:
        agreement = f"; int8 has a mean cosine similarity of {made.agreement:.4f} to torch's"
    sys.stdout.write(
        f"{made.path}: {made.counts} tokens, {made.macs_share:.3f} of the dense multiply-adds; {made.output} within"
        f" {made.difference:.2g} of torch's at batch 1, 2 and 7{agreement}\n"
    )
    return 0


def _read(arguments: Sequence[str]) -> dict[str, Any]:
    given = read_pairs(arguments, KEYS)
    if "model" not in given:
        raise UserError("model is missing: give model=artifacts/STAGE/FINGERPRINT (python -m sttabt.export --help)")
    if given.get("int8", "true") not in ("true", "false"):
        raise UserError(f"int8={given['int8']} is neither true nor false")
    return {
        "folder": Path(given["model"]),
        "out": Path(given["out"]) if "out" in given else None,
        "format": given.get("format", "onnx"),
        "counts": _counts(given["counts"]) if "counts" in given else None,
        "budget": _share(given["budget"]) if "budget" in given else None,
        "samples": _number(given, "calibration") or CALIBRATION,
        "data": Path(given["data"]) if "data" in given else None,
        "tokens": _number(given, "tokens"),
        "int8": given.get("int8") == "true",
        "opset": _number(given, "opset"),
    }


def _number(given: dict[str, str], key: str) -> int | None:
    if key not in given:
        return None
    if not given[key].isdecimal() or int(given[key]) < 1:
        raise UserError(f"{key}={given[key]} is no whole number above 0")
    return int(given[key])


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"budget={text} is no share of the dense file's multiply-adds: give one, e.g. 0.5") from None


def _counts(text: str) -> list[int]:
    numbers = [part.strip() for part in text.removeprefix("[").removesuffix("]").split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise UserError(f"counts={text}: give whole numbers, one a layer, e.g. counts=[197,150,80]")
    return list(map(int, numbers))


class _Callable(ModuleType):
    """This module, called as the function of the same name."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from sttabt.api import export

        return export(*arguments, **named)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    run_command(main, "sttabt.export")
