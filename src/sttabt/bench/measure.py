"""From variants to rows: each runs once, is checked against the masked engine, then timed beside the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.bench.predict import H100, predicted_seconds
from sttabt.bench.table import SpeedRow
from sttabt.bench.variants import GATED, Variant
from sttabt.core.plan import Planned, TokenPlan
from sttabt.engine.masked import run_masked
from sttabt.engine.run import Run
from sttabt.timing.interleaved import time_interleaved

TOLERANCE = 1e-4  # of the logits, relative to the largest, and of each
CHECKED_SAMPLES = 8  # of a batch, spread over it: samples do not depend on each other
SECONDS = 60.0  # for the rounds of one batch on a CPU
CPU_ROUNDS, CUDA_ROUNDS = (3, 15), 30

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """What one run of a variant showed.

    occupancy: mean over samples and boundaries; memory: peak MiB, CUDA only; predicted: seconds, CUDA in half
    precision only.
    """

    variant: Variant
    macs: float
    occupancy: float | None
    seconds: float
    memory: float | None
    predicted: float | None


def measure(
    variants: Sequence[Variant],
    base: Backbone,
    inputs: Tensor,
    rounds: int,
    precision: torch.dtype,
    common: dict[str, Any],
) -> tuple[list[SpeedRow], list[str]]:
    """Rows of the variants, the first of which is the baseline, and the names of those that failed.

    A variant that raises, or whose logits differ from the masked engine's, gets no row. rounds: 0 chooses by the time
    that they take. common: the fields of the rows that say where and with what they were measured.
    """
    trials, wrong = list[Trial](), list[str]()
    for variant in variants:
        try:
            trial, error = _try(variant, base, inputs, precision)
        except RuntimeError:  # of a kernel, a capture, a compiler: the others are still measured
            if not trials:
                raise
            log.exception("%s, batch %d failed; it is not timed", variant.name, len(inputs))
            wrong.append(variant.name)
            continue
        if error:
            log.error("%s, batch %d: %s; it is not timed", variant.name, len(inputs), error)
            wrong.append(variant.name)
        else:
            trials.append(trial)
    rounds = rounds or _rounds(sum(trial.seconds for trial in trials), inputs)
    expected = rounds * sum(trial.seconds for trial in trials)
    log.info("variants: %d, rounds: %d, about %.0f s", len(trials), rounds, expected)
    dense = trials[0]
    # On a CPU the trial was the warm-up.
    timings = time_interleaved(
        {trial.variant.name: trial.variant.run for trial in trials}, dense.variant.name, rounds, int(inputs.is_cuda)
    )
    rows = []
    for trial in trials:
        timing = timings[trial.variant.name]
        low, high = timing.quartiles
        rows.append(
            SpeedRow(
                **common,
                batch=len(inputs),
                group=trial.variant.group,
                variant=trial.variant.name,
                occupancy=trial.occupancy,
                macs=trial.macs,
                macs_ratio=trial.macs / dense.macs,
                rounds=rounds,
                ms=timing.median * 1e3,
                ms_least=min(timing.seconds) * 1e3,
                ratio=timing.ratio,
                ratio_low=low,
                ratio_high=high,
                memory=trial.memory,
                baseline=dense.variant.name,
                predicted_ms=trial.predicted and trial.predicted * 1e3,
            )
        )
    return rows, wrong


def difference(run: Run, base: Backbone, inputs: Tensor) -> str:
    """Says how far the logits are from the masked engine's under the same plan; '' where they agree."""
    some = torch.linspace(0, len(inputs) - 1, min(len(inputs), CHECKED_SAMPLES)).long().to(inputs.device)
    assert isinstance(run.plan, TokenPlan), "what merges has no masked form"
    expected = run_masked(base, inputs[some], TokenPlan(run.plan.lifetime[some], run.plan.layers))
    scale = expected.abs().max()
    found, expected = run.logits[some] / scale, expected / scale
    if torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
        return ""
    return f"its logits differ from the masked engine's by {float((found - expected).abs().max()):.1e} of the largest"


def _try(variant: Variant, base: Backbone, inputs: Tensor, precision: torch.dtype) -> tuple[Trial, str]:
    """One run as it will be timed, and what is wrong with the variant's logits in single precision, '' if nothing."""
    timed = replace(variant, run=_under(variant.run, inputs, precision))
    if inputs.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(2):  # the first may compile
        started = time.perf_counter()
        result = timed.run()
        if inputs.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated() / 2**20 if inputs.is_cuda else None
    plan = result.plan if isinstance(result, Run | Planned) else None
    occupancy = None if plan is None else float(plan.occupancy().mean())
    error = ""
    if variant.group in GATED:
        error = difference(result if precision == torch.float32 else variant.run(), base, inputs)
    predicted = None
    if inputs.is_cuda and precision != torch.float32 and isinstance(result, Run):
        predicted = predicted_seconds(base.architecture, result.plan.counts.tolist(), H100)
    return Trial(timed, variant.macs(result), occupancy, min(seconds), memory, predicted), error


def _rounds(seconds: float, inputs: Tensor) -> int:
    """As many as fit into SECONDS, within CPU_ROUNDS."""
    if inputs.is_cuda:
        return CUDA_ROUNDS
    least, most = CPU_ROUNDS
    return max(least, min(most, int(SECONDS / seconds)))


def _under(run: Callable[[], Any], inputs: Tensor, precision: torch.dtype) -> Callable[[], Any]:
    """Autocast is entered for each run: the weights that it converts are part of a forward's price."""
    if precision == torch.float32:
        return run

    def cast() -> Any:
        with torch.autocast(inputs.device.type, precision):
            return run()

    return cast
