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

import timm
import torch
from torch import Tensor

from sttabt.api import freeze, load, prune
from sttabt.core.text import Text
from sttabt.errors import UserError
from sttabt.models.pruned import PrunedModel
from sttabt.runtimes.counting import counts_at_budget, macs_share
from sttabt.runtimes.exporting import export
from sttabt.runtimes.formats import find_runtime
from sttabt.runtimes.reading import open_exported

STATUS = Path("/proc/self/status")
TOKENS = 128  # of each text
CALLS = 3  # timed in a turn, behind one that is not
MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


@dataclass(frozen=True)
class Variant:
    """What one process runs. path: a file of that runtime, or a saved model; counts: tokens at every boundary."""

    model: str
    runtime: str
    int8: bool
    budget: float | None
    macs_share: float
    counts: tuple[int, ...]
    path: str
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


@dataclass(frozen=True)
class Made:
    """A model at a budget. counts: tokens at every boundary that its files have; inputs: on which they were found."""

    pruned: PrunedModel
    counts: list[int]
    macs_share: float
    inputs: Tensor | Text

    def export(self, path: Path, **options: Any) -> None:
        tokens = TOKENS if isinstance(self.inputs, Text) else None
        export(self.pruned, path, calibration=[self.inputs], tokens=tokens, **options)


def make_model(name: str, budget: float | None, factor: int, samples: int) -> Made:
    """Random weights, the same each time: dense, or back-tracking with the counts of that budget."""
    torch.manual_seed(0)
    model, inputs = _library_model(name), make_inputs(name, samples)
    dense = prune(model, "dense")
    tokens = TOKENS if dense.base.may_pad else dense.base.tokens
    if budget is None:
        return Made(dense, [*[tokens] * dense.base.layers, dense.base.outputs], 1.0, inputs)
    pruned = prune(model, "backtracking", approx=factor)
    counts = counts_at_budget(pruned, [inputs], budget)
    assert pruned.approx is not None, "back-tracking reads it"
    fixed, boundaries = prune(model, "backtracking", approx=pruned.approx, counts=counts), [*counts, dense.base.outputs]
    return Made(fixed, boundaries, macs_share(fixed, boundaries, tokens), inputs)


def make_inputs(name: str, samples: int) -> Tensor | Text:
    """Random images (B, 3, 224, 224), or texts (B, TOKENS) without padding; the same each time."""
    generator = torch.Generator().manual_seed(1)
    if name != "minilm":
        return torch.randn(samples, 3, 224, 224, generator=generator)
    ids = torch.randint(1000, 30000, (samples, TOKENS), generator=generator)
    return Text(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))


def _library_model(name: str) -> Any:
    if name != "minilm":
        return timm.create_model(f"{name}_patch16_224").eval()
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification._from_config(BertConfig(**MINILM), attn_implementation="sdpa").eval()


def time_in_turn(
    variants: Sequence[Variant], batches: Sequence[int], rounds: int, threads: int
) -> Iterator[tuple[Variant, Measured]]:
    """Every variant once a round, in a process of its own; the first variant is the baseline of `ratio`.

    Memory is what a process held at most since it loaded the model, above what it held before. Raises UserError where
    a process ends, which the system does where memory is short.
    """
    context = get_context("spawn")
    workers = [_Worker(context, variant, threads) for variant in variants]
    try:
        for batch in sorted(batches):
            running = [worker for worker in workers if worker.takes(batch)]
            seconds: dict[Variant, list[float]] = {worker.variant: [] for worker in running}
            for _ in range(rounds):
                for worker in running:
                    seconds[worker.variant].append(worker.ask(batch))
            base = seconds[variants[0]]
            for worker in running:
                own, taken = worker.variant, seconds[worker.variant]
                dense = next(v for v in seconds if (v.runtime, v.int8, v.budget) == (own.runtime, own.int8, None))
                yield own, Measured(
                    batch, 1000 * statistics.median(taken), 1000 * min(taken), ratio=_ratio(taken, base),
                    own_ratio=_ratio(taken, seconds[dense]), peak_mebibytes=worker.ask(0),
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
        self._answer()  # it is loaded

    def takes(self, batch: int) -> bool:
        exported = self.variant.runtime not in ("torch", "frozen")
        return batch == 1 or not exported or find_runtime(self.variant.runtime).any_batch

    def ask(self, batch: int) -> float:
        """Seconds of a forward of that batch; of 0 the mebibytes that the process held at most."""
        os.kill(self.process.pid, signal.SIGCONT)
        self.line.send(batch)
        return self._answer()

    def _answer(self) -> float:
        try:
            answer: float = self.line.recv()
        except EOFError:
            own = self.variant
            raise UserError(
                f"the process of {own.model} in {own.runtime} ended by itself: give fewer budgets, runtimes or batches"
            ) from None
        os.kill(self.process.pid, signal.SIGSTOP)
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def serve(line: Connection, variant: Variant, threads: int) -> None:
    """What a worker does until it is killed."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    before = _most_held()
    inputs: dict[int, Any] = {}
    run = _runner(variant, threads)
    line.send(0.0)
    while True:
        batch = line.recv()
        if batch == 0:
            line.send(_most_held() - before)
            continue
        if batch not in inputs:
            inputs[batch] = _given(variant, batch)
        with torch.inference_mode():
            run(inputs[batch])
            taken = []
            for _ in range(CALLS):
                started = time.perf_counter()
                run(inputs[batch])
                taken.append(time.perf_counter() - started)
        line.send(statistics.median(taken))


def _runner(variant: Variant, threads: int) -> Callable[[Any], object]:
    if variant.runtime not in ("torch", "frozen"):
        file = open_exported(variant.path, threads=threads)
        return lambda inputs: file(*inputs)
    pruned = load(variant.path)
    if variant.runtime == "frozen":
        return freeze(pruned).run
    # Dense torch is the library's own forward.
    return pruned.run if variant.budget is not None else pruned.base


def _given(variant: Variant, batch: int) -> Any:
    """The inputs of a batch as the runtime reads them."""
    inputs = make_inputs(variant.model, batch)
    if variant.runtime in ("torch", "frozen"):
        return inputs
    if not isinstance(inputs, Text):
        return [inputs.numpy()]
    return [each.long().numpy() for each in (inputs.ids, inputs.real, inputs.types)]


def _most_held() -> float:
    """Mebibytes. What `resource` says of a process begins with those of the one that started it."""
    status = STATUS.read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
