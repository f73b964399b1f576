"""`python -m sttabt.bench.runtimes model=NAME|FOLDER [key=value ...]`: a pruned model in torch and in other runtimes.

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
    import numpy as np

    from sttabt.bench.runtimes_process import Variant
    from sttabt.bench.runtimes_subject import Subject

USAGE = """usage: python -m sttabt.bench.runtimes [model=deit_small] [key=value ...]

  model=deit_small          deit_tiny, deit_small, deit_base or minilm (texts of 128 tokens), with random weights; or
                            artifacts/prune/..., approx/... or budget/..., what a run trained: accuracy, too
  items=1000                test samples on which accuracy is measured
  data=PATH                 where the run's data are now, if not where they were (dataset.path)
  budgets=[0.7,0.5,0.35]    shares of the dense multiply-adds, planner included; dense is always measured
  runtimes=[...]            of torch, frozen, onnx, openvino, executorch; by default those that are installed
  int8=true                 onnx in int8 as well
  batches=[1,8]
  rounds=15
  threads=2
  out=FOLDER                by default runs/runtimes_NAME

On Linux. Writes runtimes.jsonl and runtimes.md, batch by batch: latency, its ratio to dense torch and to the same
runtime's dense, peak memory, size of the file, and accuracy.
"""
DEFAULTS: dict[str, Any] = {
    "model": "deit_small",
    "items": 1000,
    "data": "",
    "budgets": [0.7, 0.5, 0.35],
    "runtimes": [],
    "int8": True,
    "batches": [1, 8],
    "rounds": 15,
    "threads": 2,
    "out": "",
}
MODELS = ("deit_tiny", "deit_small", "deit_base", "minilm")
INPUTS = "inputs.pt"  # beside the files of a measurement
RUNTIMES = ("torch", "frozen", "onnx", "openvino", "executorch")

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
    saved = options["model"] not in MODELS
    if saved and "/" not in options["model"] and not Path(options["model"]).is_dir():
        raise UserError(f"model={options['model']} is no folder, and unknown: {nearest(options['model'], MODELS)}")
    for name in ("items", "data"):
        if not saved and options[name] != DEFAULTS[name]:
            raise UserError(f"{name}={options[name]} has no effect on random weights: leave it out")
    for name in options["runtimes"]:
        if name not in RUNTIMES:
            raise UserError(f"runtimes: {name} is unknown: {nearest(name, RUNTIMES)}")
    options["out"] = Path(options["out"] or f"runs/runtimes_{Path(options['model']).name}")
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
    items: int,
    data: str,
) -> str:
    """Measures, writes runtimes.jsonl and runtimes.md, and gives the table and their names; arguments as in USAGE.

    Raises UserError on another system than Linux, and for a runtime that is asked for and not installed.
    """
    # Imported after the checks: torch takes seconds to load.
    import torch

    from sttabt.bench.runtimes_process import STATUS, predict, time_in_turn, write_inputs
    from sttabt.bench.runtimes_subject import random_subject, saved_subject
    from sttabt.pipeline.result import device_name
    from sttabt.store.job import source_commit

    if not STATUS.exists():
        raise UserError(f"memory is read from {STATUS}, which Linux alone has: measure there")
    wanted = runtimes or [name for name in RUNTIMES if _is_there(name)]
    names = [name for name in RUNTIMES if name in ("torch", *wanted)]  # torch is the baseline
    batches = sorted(set(batches))
    if model in MODELS:
        subject = random_subject(model, batches)
    else:
        subject = saved_subject(Path(model), batches, items, Path(data) if data else None)
    out.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {
        **{"machine": device_name(torch.device("cpu")), "threads": threads, "torch": torch.__version__},
        **{"commit": source_commit(), "rounds": rounds},
        "padded": subject.tokens is not None and subject.test is not None,
    }
    rows: list[RuntimeRow] = []
    with tempfile.TemporaryDirectory() as folder:
        variants: list[Variant] = []
        write_inputs(subject, Path(folder) / INPUTS)
        for budget in (None, *sorted(set(budgets), reverse=True)):
            variants += list(_variants(subject, budget, names, int8, Path(folder)))
        scores = {} if subject.test is None else _scores(dict(predict(variants, threads)), subject.test.labels.numpy())
        for variant, found in time_in_turn(variants, batches, rounds, threads):
            own = {name: value for name, value in asdict(variant).items() if name not in ("path", "inputs")}
            rows.append(RuntimeRow(**common, **own, **asdict(found), **scores.get(variant, {})))
            table = format_rows(rows)  # of what is measured so far: a later batch may end it
            write_atomically(out / "runtimes.jsonl", "".join(row.to_json() + "\n" for row in rows).encode())
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


def _scores(predicted: dict[Variant, np.ndarray], labels: np.ndarray) -> dict[Variant, dict[str, Any]]:
    """Fields of a row; the first variant is dense torch."""
    dense = next(iter(predicted.values()))
    return {
        variant: {"items": len(labels), "accuracy": float((own == labels).mean()), "same": float((own == dense).mean())}
        for variant, own in predicted.items()
    }


def _variants(
    subject: Subject, budget: float | None, names: Sequence[str], int8: bool, folder: Path
) -> Iterator[Variant]:
    """The model at one budget, None: dense, saved once as it is and once for each runtime."""
    from sttabt.bench.runtimes_process import Variant
    from sttabt.runtimes.formats import find_runtime

    made, stem = subject.at(budget), "dense" if budget is None else f"budget_{budget}"
    saved, boundaries = made.pruned.save_pretrained(folder / stem), tuple(made.boundaries)
    variant = partial(Variant, model=subject.name, budget=budget, inputs=str(folder / INPUTS))
    for name in names:
        if name in ("torch", "frozen"):
            size = sum(path.stat().st_size for path in saved.rglob("*.safetensors"))
            yield variant(
                runtime=name,
                int8=False,
                macs_share=made.own_share,
                counts=() if made.counts else boundaries,
                path=str(saved),
                file_mebibytes=size / 2**20,
            )
            continue
        runtime = find_runtime(name)
        for quantised in (False, True) if int8 and runtime.quantises else (False,):
            path = folder / f"{stem}{'_int8' if quantised else ''}{runtime.suffix}"
            log.info("exporting %s", path.name)
            made.export(path, format=name, int8=quantised)
            size = sum(each.stat().st_size for each in (path, *runtime.beside(path)))
            yield variant(
                runtime=name,
                int8=quantised,
                macs_share=made.file_share,
                counts=boundaries,
                path=str(path),
                file_mebibytes=size / 2**20,
            )


if __name__ == "__main__":
    run_command(main, "sttabt.bench.runtimes")
