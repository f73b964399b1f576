"""What is asked of an H100, and what is predicted of it: the table of docs/SCALE.md.

DeiT-S at 224 pixels in bfloat16. The baseline is the library's model, compiled and replayed as a CUDA graph.
`python -m sttabt.bench.goals FOLDER/bench.jsonl` prints it with what was measured there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sttabt.bench.graphs import DENSE_COMPILED as DENSE
from sttabt.bench.graphs import FIXED
from sttabt.bench.plans import realistic_plan
from sttabt.bench.predict import H100, KERNELS_A_LAYER, predicted_seconds
from sttabt.core.buckets import Bucket, choose_bucket
from sttabt.core.cost import Architecture
from sttabt.core.counts import mean_counts
from sttabt.errors import UserError
from sttabt.system.faults import tell

MODEL, STEP = "deit_small", "training step"  # names of the benchmark
DEIT = Architecture(12, 384, 6, 1536, classes=1000, patch_inputs=768)
TOKENS, BATCH, KEEP, SPREAD, MERGED = 197, 128, 0.41, 0.25, 13
# Calls of operators that are no views, or what torch.compile leaves of them, as tests/test_goals.py counts them; on a
# device some are several kernels. Models are those that sttabt.freeze captures; ToMe on maps, a pass with DynamicViT's
# masks and steps are under autocast.
KERNELS = {
    "fixed counts": 435,
    "fixed counts, compiled": 382,
    "back-tracking": 719,
    "back-tracking, compiled": 353,
    "ToMe": 962,
    "planner of fixed counts": 284,
    "planner of fixed counts, compiled": 219,
    "planner of concrete masks": 567,
    "planner of concrete masks, compiled": 181,
    "ToMe on maps": 545,
    "DynamicViT's masks": 601,
    "dense step": 654,
    "step of concrete masks": 3966,
    "teacher": 252,
}
# Attention maps of all heads in single precision that are written or read of an image, counted there, too.
MAPS = {"ToMe on maps": 34.4, "DynamicViT's masks": 151.0, "step of concrete masks": 113.5}


@dataclass(frozen=True)
class Goal:
    """The time of `variant`, in milliseconds, or in times of `beside` where that is named: variants of the benchmark.

    goal: None where nothing is asked.
    """

    name: str
    goal: float | None
    predicted: float
    batch: int
    variant: str
    beside: str = ""

    def measured(self, rows: Sequence[dict[str, Any]]) -> float | None:
        """Of the benchmark's rows; None where one is missing. The last row of a variant counts."""
        times = {row["variant"]: row["ms"] for row in rows if (row["model"], row["batch"]) == (MODEL, self.batch)}
        if self.variant not in times or (self.beside and self.beside not in times):
            return None
        return times[self.variant] / (times[self.beside] if self.beside else 1.0)


def goals() -> list[Goal]:
    """In the order of the table."""
    dense = {batch: _dense(batch) for batch in (1, BATCH)}
    compiled, asked = f"compiled, factor 8, keep {KEEP}", f"keep {KEEP}, fixed counts, planner included"
    found = [
        Goal(f"dense DeiT-S, batch {batch}, compiled: ms", None, dense[batch] * 1e3, batch, DENSE)
        for batch in (BATCH, 1)
    ]
    for batch, goal in ((BATCH, 1.5), (1, 1.0)):
        name = f"{asked}, factor 8, compiled, batch {batch}: times as fast"
        found.append(Goal(name, goal, dense[batch] / _fixed(batch, 8, True), batch, DENSE, f"{FIXED}, {compiled}"))
    for factor in (8, 4):
        name = f"the same, factor {factor}, not compiled, batch {BATCH}: times as fast"
        variant = f"{FIXED}, graphs, factor {factor}, keep {KEEP}"
        found.append(Goal(name, None, dense[BATCH] / _fixed(BATCH, factor), BATCH, DENSE, variant))
    for planner in (FIXED, "concrete masks"):
        name = f"planner of {planner}"
        variant = f"planner of {planner.removesuffix(' masks')}, {compiled}"
        share = _network(BATCH, 8, f"{name}, compiled") / dense[BATCH]
        name = f"{name}, factor 8, compiled, batch {BATCH}: share of dense time"
        found.append(Goal(name, 0.12, share, BATCH, variant, DENSE))
    name = "counts that differ by image, factor 8, compiled: share of the time of fixed counts"
    share = _differing(True) / _fixed(BATCH, 8, True)
    found.append(Goal(name, 1.1, share, BATCH, f"back-tracking top-k, {compiled}", f"{FIXED}, {compiled}"))
    name, graphs = "the same, not compiled", f"graphs, factor 8, keep {KEEP}"
    share = _differing(False) / _fixed(BATCH, 8)
    found.append(Goal(name, None, share, BATCH, f"back-tracking top-k, {graphs}", f"{FIXED}, {graphs}"))
    name = f"a step of concrete masks, batch {BATCH}, factor 4: dense steps"
    found.append(Goal(name, 1.75, _step(), BATCH, f"{STEP}, concrete masks", f"{STEP}, dense"))
    for name, predicted, variant in (
        (f"ToMe, {MERGED} a layer, batch {BATCH}", _tome("ToMe"), f"ToMe, graphs, {MERGED} a layer"),
        ("the same on maps of attention", _tome("ToMe on maps"), f"ToMe on maps of attention, {MERGED} a layer"),
        ("masks as DynamicViT trains with", _masks(), "masks as DynamicViT trains with"),
    ):
        found.append(Goal(f"{name}: share of dense time", None, predicted / dense[BATCH], BATCH, variant, DENSE))
    return found


def format_goals(rows: Sequence[dict[str, Any]] = ()) -> str:
    """A markdown table; rows: of the benchmark, as its JSON lines have them."""
    lines = ["| | goal | predicted | measured |", "| --- | ---: | ---: | ---: |"]
    for each in goals():
        asked, measured = "" if each.goal is None else f"{each.goal:g}", each.measured(rows)
        lines.append(
            f"| {each.name} | {asked} | {each.predicted:.2f} | {'not run' if measured is None else f'{measured:.2f}'} |"
        )
    return "\n".join(lines)


def _dense(batch: int) -> float:
    return predicted_seconds(DEIT, [[TOKENS] * (DEIT.layers + 1)] * batch, H100)


def _network(batch: int, factor: int, name: str = "") -> float:
    """A planner; its last layer, which needs no more than queries and keys, stands for the sums. name: of KERNELS."""
    narrow = replace(DEIT, width=DEIT.width // factor, feed_forward=DEIT.feed_forward // factor)
    return predicted_seconds(narrow, [[TOKENS] * (DEIT.layers + 1)] * batch, H100, KERNELS.get(name, 0))


def _fixed(batch: int, factor: int, compiled: bool = False) -> float:
    """Kernels of planner and base model are those of one graph."""
    plan = realistic_plan(1, TOKENS, DEIT.layers, KEEP, 0.0, 0)
    pruned = predicted_seconds(DEIT, [list(mean_counts(plan, 1))] * batch, H100, _kernels(FIXED, compiled))
    return pruned + _network(batch, factor)


def _differing(compiled: bool) -> float:
    """Back-tracking: the planner's graph, and that of the bucket, with the copies of the rows that go on."""
    counts = realistic_plan(BATCH, TOKENS, DEIT.layers, KEEP, SPREAD, 0).alive.sum(-1)
    wanted = Bucket(tuple(counts.sum(0).tolist()), tuple(counts.amax(0).tolist()))
    bucket = choose_bucket(wanted, [], BATCH, TOKENS)
    pruned = predicted_seconds(DEIT, counts.tolist(), H100, _kernels("back-tracking", compiled), bucket.rows, copied=2)
    return pruned + _network(BATCH, 8)


def _kernels(name: str, compiled: bool) -> int:
    return KERNELS[f"{name}, compiled" if compiled else name]


def _step() -> float:
    """In steps of the dense model, the work of whose backward is that of two forwards; with the teacher's forward."""
    dense, network = _dense(BATCH) - _launches(), _network(BATCH, 4)
    work = 3 * (dense + network) + dense + _maps("step of concrete masks")
    kernels = KERNELS["step of concrete masks"] + KERNELS["teacher"]
    return (work + kernels * H100.launch) / (3 * dense + KERNELS["dense step"] * H100.launch)


def _tome(name: str) -> float:
    """Rows that merge are weighed and summed up: read and written twice."""
    counts = [TOKENS - MERGED * layer for layer in range(DEIT.layers)]
    return predicted_seconds(DEIT, [[*counts, 1]] * BATCH, H100, KERNELS[name], copied=4) + _maps(name)


def _masks() -> float:
    name = "DynamicViT's masks"
    return _dense(BATCH) - _launches() + _maps(name) + KERNELS[name] * H100.launch


def _launches() -> float:
    return KERNELS_A_LAYER * DEIT.layers * H100.launch


def _maps(name: str) -> float:
    return BATCH * MAPS.get(name, 0.0) * DEIT.heads * TOKENS**2 * 4 / H100.bytes


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, 2 for a user's mistake."""
    try:
        if len(arguments) != 1:
            raise UserError("give one file: python -m sttabt.bench.goals FOLDER/bench.jsonl")
        lines = Path(arguments[0]).read_text(encoding="utf-8").splitlines()
        table = format_goals([json.loads(line) for line in lines])
    except Exception as error:
        return tell(error)
    sys.stdout.write(f"{table}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
