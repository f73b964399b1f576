"""`python -m sttabt.predict model=FOLDER INPUT...`: what a saved model says of files, as lines of JSON.

Exit codes: 0; 1 where inputs were left out, be it all of them; 2 for a user's mistake.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sttabt.cli.pairs import read_names_and_pairs
from sttabt.errors import UserError
from sttabt.system.faults import tell
from sttabt.system.signals import run_command

USAGE = """usage: python -m sttabt.predict model=FOLDER INPUT... [key=value ...]

  model=FOLDER     what save_pretrained wrote, artifacts/STAGE/FINGERPRINT of a run, or an id of the Hugging Face hub
  INPUT            of a model of images: files, and folders with images below them; - reads paths from standard input
                   of a model of texts: .txt files, a text a line; .csv, .tsv, .jsonl and .parquet files; - reads lines
  column=NAME      of such tables; two, column=A,B, for a model of pairs; by default that which the model was trained on
  out=FILE         where the lines go; by default to standard output
  show=FOLDER      a picture of what was kept, of the first 32 inputs
  batch=32         inputs at a time: it changes the time, and the last digit of few numbers
  encoding=utf-8   of texts; separator=, of tables

A line for each input, in their order: input, class and probability (or score, or the embedding of an encoder), how many
tokens it has, and the share of them that was kept, mean over the layers. A file that cannot be read is named and left
out.
For example: python -m sttabt.predict model=artifacts/prune/0123456789abcdef photos/ out=photos.jsonl
"""
KEYS = ("model", "column", "out", "show", "batch", "encoding", "separator")
BATCH = 32
PIPE_CLOSED = 141  # what a shell says of a process whose reader went


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0
    try:
        given, options = _read(arguments)
        return _predict(given, options)
    except BrokenPipeError:  # as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        return tell(error)


def _predict(given: Sequence[str], options: dict[str, str]) -> int:
    from sttabt.prediction.inputs import Reading, check_given, find_images, find_texts
    from sttabt.prediction.writing import Lines, check_target

    check_given(given)
    out = Path(options["out"]) if "out" in options else None
    if out is not None:
        check_target(out)
    # Imported after the checks: torch takes seconds to load.
    from sttabt.api import load
    from sttabt.prediction.predictor import Predictor

    model = load(options["model"])
    left_out: list[str] = []
    if model.base.may_pad:
        columns = tuple(name for name in options.get("column", "").split(",") if name)
        reading = Reading(columns, options.get("encoding", "utf-8"), options.get("separator", ""))
        usual = model.preparation.inputs.get("columns", ()) if model.preparation else ()
        items, left_out = find_texts(given, reading, usual)
    else:
        for name in ("column", "encoding", "separator"):
            if name in options:
                raise UserError(f"{name}={options[name]} has no effect on images: leave it out")
        items = find_images(given)
    if not items and not left_out:
        raise UserError(f"there is nothing to predict in {', '.join(given)}")
    predictor = Predictor(model, _batch(options))
    with Lines(out) as lines:
        _go(predictor, items, lines, left_out, options.get("show"))
    if left_out:
        inputs = "1 input was" if len(left_out) == 1 else f"{len(left_out)} inputs were"
        sys.stderr.write(f"{inputs} left out, {lines.count} predicted\n")
    return 1 if left_out else 0


def _go(predictor: Any, items: Sequence[Any], lines: Any, left_out: list[str], show: str | None) -> None:
    """Predicts and writes, with a bar where somebody looks at standard error alone."""
    from rich.console import Console
    from rich.progress import Progress

    pictures = None
    if show is not None:
        from sttabt.prediction.pictures import Pictures  # matplotlib takes a second

        pictures = Pictures(Path(show), predictor)
    for line in left_out:
        sys.stderr.write(f"{line}\n")
    console = Console(stderr=True)
    hidden = not console.is_terminal or (lines.path is None and sys.stdout.isatty())
    with Progress(console=console, disable=hidden, transient=True, redirect_stdout=False) as bar:
        task, told = bar.add_task("predict", total=len(items)), 0
        for predictions in predictor.predict(items):
            for line in predictor.left_out[told:]:
                sys.stderr.write(f"{line}\n")
            told = len(predictor.left_out)
            if predictions:
                lines.write([each.said for each in predictions])
            if pictures is not None:
                pictures.draw(predictions)
            bar.update(task, completed=lines.count + told)
    left_out += predictor.left_out


def _read(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    inputs, options = read_names_and_pairs(arguments, KEYS, lambda argument: Path(argument).exists())
    if "model" not in options:
        raise UserError("model is missing: give model=FOLDER (python -m sttabt.predict --help)")
    _batch(options)
    return inputs, options


def _batch(options: dict[str, str]) -> int:
    value = options.get("batch", str(BATCH))
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"batch={value} is no whole number above 0")
    return int(value)


if __name__ == "__main__":
    run_command(main, "sttabt.predict")
