"""`python -m sttabt.bench.runtimes model=NAME [key=value ...]`: a pruned model in torch and in other runtimes.

One process a variant, woken in turn: what one runtime spins, caches or holds does not count for another. Exit codes: 0,
2 for a user's mistake.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttabt.bench.runtimes_table import RuntimeRow, format_rows
from sttabt.cli.pairs import read_pairs
from sttabt.errors import UserError, nearest
from sttabt.system.faults import tell
from sttabt.system.files import write_atomically
from sttabt.system.signals import run_command

if TYPE_CHECKING:
    from sttabt.bench.runtimes_process import Variant

USAGE = """usage: python -m sttabt.bench.runtimes [model=deit_small] [key=value ...]

  model=deit_small          deit_tiny, deit_small, deit_base or minilm (texts of 128 tokens); weights are random
  budgets=[0.7,0.5,0.35]    shares of the dense model's multiply-adds, planner included; dense is always measured
  runtimes=[...]            of torch, frozen, onnx, openvino, executorch; by default those that are installed
  int8=true                 onnx in int8 as well
  batches=[1,8]
  rounds=15
  threads=2
  out=FOLDER                by default runs/runtimes_NAME

On Linux. Writes runtimes.jsonl and runtimes.md at the end: latency, its ratio to dense torch and to the same runtime's
dense, peak memory and size of the file.
"""
DEFAULTS: dict[str, Any] = {
    "model": "deit_small",
    "budgets": [0.7, 0.5, 0.35],
    "runtimes": [],
    "int8": True,
    "batches": [1, 8],
    "rounds": 15,
    "threads": 2,
    "out": "",
}
MODELS = ("deit_tiny", "deit_small", "deit_base", "minilm")
RUNTIMES = ("torch", "frozen", "onnx", "openvino", "executorch")
FACTOR = 4  # of the approximate network
SAMPLES = 4  # random inputs on which a budget is found; how many are kept is the same for all

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0
    try:
        options = read_options(arguments)
        table = measure(**options)
    except Exception as error:
        return tell(error)
    sys.stdout.write(table)
    return 0


def read_options(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings of the command. Raises UserError."""
    options = DEFAULTS | {key: _value(key, text) for key, text in read_pairs(arguments, DEFAULTS).items()}
    if options["model"] not in MODELS:
        raise UserError(f"model={options['model']} is unknown: {nearest(options['model'], MODELS)}")
    for name in options["runtimes"]:
        if name not in RUNTIMES:
            raise UserError(f"runtimes: {name} is unknown: {nearest(name, RUNTIMES)}")
    options["out"] = Path(options["out"] or f"runs/runtimes_{options['model']}")
    return options


def _value(key: str, text: str) -> Any:
    like, words = DEFAULTS[key], [part.strip() for part in text.removeprefix("[").removesuffix("]").split(",")]
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[text]
        if key == "budgets":
            return _above_0([float(word) for word in words], most=1.0)
        if key == "batches":
            return _above_0([int(word) for word in words])
        if isinstance(like, int):
            return _above_0([int(text)])[0]
    except (KeyError, ValueError):
        raise UserError(f"{key}={text}: give a value like {json.dumps(like)}") from None
    return words if isinstance(like, list) else text


def _above_0(numbers: list[Any], most: float = float("inf")) -> list[Any]:
    if not all(0 < number <= most for number in numbers):
        raise ValueError
    return numbers


def measure(
    model: str,
    budgets: Sequence[float],
    runtimes: Sequence[str],
    int8: bool,
    batches: Sequence[int],
    rounds: int,
    threads: int,
    out: Path,
) -> str:
    """Measures, writes runtimes.jsonl and runtimes.md, and gives the table and their names; arguments as in USAGE.

    Raises UserError on another system than Linux, and for a runtime that is asked for and not installed.
    """
    # Imported after the checks: torch takes seconds to load.
    import torch

    from sttabt.bench.runtimes_process import STATUS, time_in_turn
    from sttabt.pipeline.result import device_name
    from sttabt.store.job import source_commit

    if not STATUS.exists():
        raise UserError(f"memory is read from {STATUS}, which Linux alone has: measure there")
    names = [name for name in RUNTIMES if _is_there(name)] if not runtimes else list(runtimes)
    if "torch" not in names:
        names.insert(0, "torch")  # the baseline
    out.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {
        **{"machine": device_name(torch.device("cpu")), "threads": threads, "torch": torch.__version__},
        **{"commit": source_commit(), "rounds": rounds},
    }
    rows: list[RuntimeRow] = []
    with tempfile.TemporaryDirectory() as folder:
        variants: list[Variant] = []
        for budget in (None, *sorted(budgets, reverse=True)):
            variants += list(_variants(model, budget, names, int8, Path(folder)))
        for variant, found in time_in_turn(variants, batches, rounds, threads):
            own = {name: value for name, value in asdict(variant).items() if name != "path"}
            rows.append(RuntimeRow(**common, **own, **asdict(found)))
    write_atomically(out / "runtimes.jsonl", "".join(row.to_json() + "\n" for row in rows).encode())
    table = format_rows(rows)
    write_atomically(out / "runtimes.md", table.encode())
    return f"{table}\n{out / 'runtimes.jsonl'}\n{out / 'runtimes.md'}\n"


def _is_there(name: str) -> bool:
    from sttabt.runtimes.formats import RUNTIMES as FORMATS

    if name not in FORMATS or name == "torch":
        return True
    try:
        FORMATS[name].check()
    except UserError as error:
        log.warning("%s is left out: %s", name, error)
        return False
    return True


def _variants(model: str, budget: float | None, names: Sequence[str], int8: bool, folder: Path) -> Iterator[Variant]:
    """The model at one budget, None: dense, saved once as it is and once for each runtime."""
    from sttabt.bench.runtimes_process import Variant, make_model
    from sttabt.runtimes.formats import find_runtime

    made = make_model(model, budget, FACTOR, SAMPLES)
    stem = f"{model}_{'dense' if budget is None else budget}"
    saved = made.pruned.save_pretrained(folder / stem)
    variant = partial(Variant, model=model, budget=budget, macs_share=made.macs_share, counts=tuple(made.counts))
    for name in names:
        if name in ("torch", "frozen"):
            size = sum(path.stat().st_size for path in saved.rglob("*.safetensors"))
            yield variant(runtime=name, int8=False, path=str(saved), file_mebibytes=size / 2**20)
            continue
        runtime = find_runtime(name)
        for quantised in (False, True) if int8 and runtime.quantises else (False,):
            path = folder / f"{stem}{'_int8' if quantised else ''}{runtime.suffix}"
            log.info("exporting %s", path.name)
            made.export(path, format=name, int8=quantised)
            size = sum(each.stat().st_size for each in (path, *runtime.beside(path)))
            yield variant(runtime=name, int8=quantised, path=str(path), file_mebibytes=size / 2**20)


if __name__ == "__main__":
    run_command(main, "sttabt.bench.runtimes")
