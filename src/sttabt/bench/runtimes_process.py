"""Variants in processes of their own, woken one at a time.

A process that waits is stopped by a signal: the threads of some runtimes spin while they wait.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sttabt.api import freeze, load
from sttabt.bench.runtimes_subject import Subject, in_batches, inputs_of, tensors_of
from sttabt.errors import UserError
from sttabt.runtimes.formats import find_runtime
from sttabt.runtimes.graph import Input
from sttabt.runtimes.reading import open_exported
from sttabt.runtimes.runtime import one_line

STATUS = Path("/proc/self/status")
PREDICTED = 32  # samples at once
CALLS = 3  # timed in a turn, behind one that is not


@dataclass(frozen=True)
class Variant:
    """What one process runs. path: a file of that runtime, or a saved model; counts: tokens at every boundary, ()
    where each sample has its own; inputs: the file of what it is given, as `write_inputs` writes it.
    """

    model: str
    runtime: str
    int8: bool
    budget: float | None
    macs_share: float
    counts: tuple[int, ...]
    path: str
    inputs: str
    file_mebibytes: float


@dataclass(frozen=True)
class Measured:
    """Of one variant, a whole batch. ratio: to dense torch; own_ratio: to dense in the same runtime and precision."""

    batch: int
    ms: float  # median over rounds
    ms_least: float
    ratio: float
    own_ratio: float
    peak_mebibytes: float


def write_inputs(subject: Subject, path: Path) -> None:
    """What the processes are given: inputs to time by batch, and those of the test, none with random weights."""
    test = [] if subject.test is None else tensors_of(subject.test.inputs)
    timed = {batch: tensors_of(inputs) for batch, inputs in subject.timed.items()}
    torch.save({"timed": timed, "test": test}, path)


def predict(variants: Sequence[Variant], threads: int) -> Iterator[tuple[Variant, np.ndarray]]:
    """The class (samples,) that each variant predicts of every test input, one process after the other."""
    context = get_context("spawn")
    for variant in variants:
        worker = _Worker(context, variant, threads)
        try:
            yield variant, worker.ask("predict")
        finally:
            worker.end()


def time_in_turn(
    variants: Sequence[Variant], batches: Sequence[int], rounds: int, threads: int
) -> Iterator[tuple[Variant, Measured]]:
    """Every variant once a round, in a process of its own; the first variant is the baseline of `ratio`.

    Memory is what a process held at most since it loaded the model, above what it held before. Raises UserError where
    a process ends, which the system does where memory is short.
    """
    context, workers = get_context("spawn"), []
    try:
        for variant in variants:
            workers.append(_Worker(context, variant, threads))
        for batch in sorted(batches):
            running = [worker for worker in workers if worker.takes(batch)]
            seconds: dict[Variant, list[float]] = {worker.variant: [] for worker in running}
            for _ in range(rounds):
                for worker in running:
                    seconds[worker.variant].append(worker.ask("time", batch))
            base = seconds[variants[0]]
            for worker in running:
                own, taken = worker.variant, seconds[worker.variant]
                dense = next(v for v in seconds if (v.runtime, v.int8, v.budget) == (own.runtime, own.int8, None))
                yield own, Measured(
                    batch, 1000 * statistics.median(taken), 1000 * min(taken), ratio=_ratio(taken, base),
                    own_ratio=_ratio(taken, seconds[dense]), peak_mebibytes=worker.ask("memory"),
                )  # fmt: skip
    finally:
        for worker in workers:
            worker.end()


def _ratio(own: Sequence[float], other: Sequence[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(own, other, strict=True))


class _Worker:
    def __init__(self, context: Any, variant: Variant, threads: int) -> None:
        self.variant = variant
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, variant, threads), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the line
        try:
            self._answer()  # it is loaded
        except BaseException:
            self.end()  # nobody else has it: a stopped process would be waited for without end
            raise

    def takes(self, batch: int) -> bool:
        exported = self.variant.runtime not in ("torch", "frozen")
        return batch == 1 or not exported or find_runtime(self.variant.runtime).any_batch

    def ask(self, what: str, batch: int = 0) -> Any:
        """time: seconds of a forward of that batch; memory: mebibytes that it held at most; predict: classes."""
        return self._answer((what, batch))

    def _answer(self, asked: tuple[str, int] | None = None) -> Any:
        try:
            if asked is not None:
                os.kill(self.process.pid, signal.SIGCONT)
                self.line.send(asked)
            answer = self.line.recv()
            os.kill(self.process.pid, signal.SIGSTOP)
        except (EOFError, OSError):
            own = self.variant
            raise UserError(
                f"the process of {own.model} in {own.runtime} ended by itself: give fewer budgets, runtimes or batches"
            ) from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def serve(line: Connection, variant: Variant, threads: int) -> None:
    """What a worker does until it is killed. An error goes to who asked."""
    try:
        _serve(line, variant, threads)
    except UserError as error:
        line.send(error)
    except Exception as error:  # of any runtime; some cannot be sent
        line.send(UserError(f"{variant.model} does not run in {variant.runtime}: {one_line(error)}"))


def _serve(line: Connection, variant: Variant, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    given = torch.load(variant.inputs, weights_only=True, mmap=True)
    before = _most_held()
    run = _runner(variant, threads)
    line.send(None)
    while True:
        what, batch = line.recv()
        if what == "memory":
            line.send(_most_held() - before)
        elif what == "predict":
            with torch.inference_mode():
                classes = [run(some).argmax(-1) for some in in_batches(given["test"], PREDICTED)]
            line.send(torch.cat(classes).numpy())
        else:
            line.send(_seconds(run, given["timed"][batch]))


@torch.inference_mode()
def _seconds(run: Callable[[Sequence[Tensor]], Tensor], inputs: Sequence[Tensor]) -> float:
    run(inputs)
    taken = []
    for _ in range(CALLS):
        started = time.perf_counter()
        run(inputs)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _runner(variant: Variant, threads: int) -> Callable[[Sequence[Tensor]], Tensor]:
    """From the tensors of a file to logits."""
    if variant.runtime not in ("torch", "frozen"):
        file = open_exported(variant.path, threads=threads)
        return lambda tensors: file(*_as_written(file.inputs, tensors))
    pruned = load(variant.path)
    if variant.runtime == "torch" and variant.budget is None:
        return lambda tensors: pruned.base(inputs_of(tensors))  # the library's own forward
    own = freeze(pruned) if variant.runtime == "frozen" else pruned
    return lambda tensors: own.run(inputs_of(tensors)).logits


def _as_written(inputs: Sequence[Input], tensors: Sequence[Tensor]) -> list[Tensor]:
    """As a file reads them: its kind of numbers, and of a text the types only where it has them."""
    return [each.to(getattr(torch, own.dtype)) for own, each in zip(inputs, tensors, strict=False)]


def _most_held() -> float:
    """Mebibytes. What `resource` says of a process begins with those of the one that started it."""
    status = STATUS.read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
