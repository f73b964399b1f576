"""A model for inference on CUDA: its operators are captured once a shape of inputs, and replayed without the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import _dynamo as dynamo

from sttabt.core.buckets import Bucket, choose_bucket
from sttabt.core.plan import Planned
from sttabt.engine.dropped import first_tokens, run_fixed, run_packed
from sttabt.engine.packed import Packing
from sttabt.engine.run import Run
from sttabt.errors import UserError
from sttabt.models.frozen import FrozenModel
from sttabt.models.pruned import PrunedModel

MOST_COMPILED = 1000  # shapes and buckets of a process
WARM_UP = 3  # runs before a capture, in which libraries choose and compile their kernels

Result = TypeVar("Result")
Capture = Callable[[Callable[[], Result]], Callable[[], Result]]


def capturing_problems(pruned: PrunedModel) -> list[str]:
    """Why a model cannot be captured; [] where it can."""
    found = []
    if pruned.base.may_pad:
        found.append("texts differ in length from batch to batch")
    if pruned.method.settings.asks_network:
        found.append(f"{pruned.method.title} sends on to the base model as many samples as it is not sure of")
    elif not (pruned.method.is_static or "planning" in pruned.method.steps()):
        found.append(f"{pruned.method.title} decides on the host, or layer by layer, how many tokens are left")
    return found


def capture_graph(run: Callable[[], Result]) -> Callable[[], Result]:
    """What replays the operators of `run` as one CUDA graph; its results lie in the same memory each time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def compile_graph(run: Callable[[], Result]) -> Callable[[], Result]:
    """As `capture_graph`, of what torch.compile makes of `run`: fewer and larger kernels, after a minute or so."""
    return capture_graph(compile_whole(run))


def compile_whole(run: Callable[[], Result]) -> Callable[[], Result]:
    """`run` as one program of torch.compile. Raises UserError where torch does not take it, at its first call."""
    compiled = torch.compile(run, dynamic=False, fullgraph=True)

    def call() -> Result:
        try:
            # To torch.compile each shape and bucket is the same code once more.
            with dynamo.config.patch(recompile_limit=MOST_COMPILED, accumulated_recompile_limit=MOST_COMPILED):
                return compiled()
        except dynamo.exc.TorchDynamoException as error:
            problem = str(error).partition("\n")[0].rstrip(".")
            raise UserError(f"torch.compile does not take this model: {problem}; leave compiled=True out") from error

    return call


class GraphedModel(FrozenModel):
    """Made by `sttabt.freeze` of a model on CUDA. Called as that; in evaluation mode, in its precision, for good.

    Where shapes do not depend on the images (dense, fixed counts, merging, shares of tokens) a run is one graph. Where
    a plan says how many tokens each image keeps, planning is one, one copy brings the sizes to the host, and the base
    model is one of a few, of the bucket that holds them (core.buckets). Logits and plan are those of the model that was
    frozen. A shape of inputs that is new, or a bucket, is captured when it comes. That copy stays: the host starts a
    bucket's graph, so it must know which holds the batch; one guessed from the last batch would have to be checked.

    left_to_torch: why nothing is captured, [] where all is. capture: what makes a graph of a function: capture_graph,
    compile_graph.
    """

    def __init__(self, pruned: PrunedModel, left_to_torch: list[str], capture: Capture = capture_graph) -> None:
        super().__init__(pruned, set(), left_to_torch)
        self.capture, self._graphs = capture, dict[Any, _Graphs]()

    @torch.no_grad()
    def run(self, inputs: Any) -> Run:
        self.base.check_inputs(inputs)
        if self.left_to_torch or not len(inputs):
            return super().run(inputs)
        if torch.is_autocast_enabled(inputs.device.type):
            raise UserError(
                "a frozen model computes in the precision of its weights: leave autocast, and freeze the model in"
                " another precision, model.to(torch.bfloat16)"
            )
        key = inputs.shape
        # What is captured is used in and out of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            if key not in self._graphs:
                kind = _Static if self.method.is_static else _Bucketed
                self._graphs[key] = kind(self, inputs)
            return self._graphs[key].run(inputs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenModel:
        own = next(self.base.parameters())
        probe = fn(torch.empty(0, dtype=own.dtype, device=own.device))
        if probe.dtype != own.dtype or probe.device != own.device:
            raise UserError(
                f"a frozen model stays in {own.dtype} on {own.device}, not {probe.dtype} on {probe.device}: move the"
                " original, and freeze it again"
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the graphs: a copy captures its own."""
        return {**self.__dict__, "_graphs": {}}


class _Graphs:
    """What was captured for inputs of one shape; `given` is where these graphs read them."""

    def __init__(self, model: GraphedModel, inputs: Tensor) -> None:
        self.model, self.base, self.given = model, model.base, inputs.detach().clone()

    def run(self, inputs: Tensor) -> Run:
        """Results are copies: the next run overwrites what was captured."""
        raise NotImplementedError


class _Static(_Graphs):
    """One graph."""

    def __init__(self, model: GraphedModel, inputs: Tensor) -> None:
        super().__init__(model, inputs)
        self.graph = model.capture(self._forward)

    def run(self, inputs: Tensor) -> Run:
        self.given.copy_(inputs)
        found = self.graph()
        return Run(found.logits.clone(), found.plan.clone(), found.real, found.scored)

    def _forward(self) -> Run:
        method, inputs = self.model.method, self.base.prepare(self.given)
        trace = self.model.trace(inputs)
        if method.counts is None:
            return method.run(self.base, inputs, trace)
        assert trace is not None, "fixed counts are planned from a trace"
        planned = method.plan(self.base, inputs, trace)
        plan = planned.plan.with_survivors() if self.base.reads_survivors else planned.plan
        logits = run_fixed(self.base, inputs, plan.order()[:, : method.counts[0]], method.counts)
        return Run(logits, plan, self.base.real(inputs), planned.scored)


@dataclass(frozen=True)
class _Sized:
    """A plan, with what the base model reads of it; sizes: rows and longest sample of each boundary, and whether any
    sample cannot be read or a plan drops what the head reads, one int64 tensor (2L+3,).
    """

    planned: Planned
    inputs: Any
    counts: Tensor
    sizes: Tensor


class _Bucketed(_Graphs):
    """A graph that plans, and one a bucket for the base model."""

    def __init__(self, model: GraphedModel, inputs: Tensor) -> None:
        super().__init__(model, inputs)
        self.planning = model.capture(self._plan)
        self.buckets: dict[Bucket, Callable[[], Tensor]] = {}

    def run(self, inputs: Tensor) -> Run:
        self.given.copy_(inputs)
        found = self.planning()
        *sizes, refused = found.sizes.tolist()  # the one copy to the host
        plan, real = found.planned.plan, self.base.real(inputs)
        if refused:
            self.base.check_numbers(inputs)
            plan.check(self.base.outputs, self.base.pools)
        half = len(sizes) // 2
        wanted = Bucket(tuple(sizes[:half]), tuple(sizes[half:]))
        bucket = choose_bucket(wanted, list(self.buckets), *real.shape)
        if bucket not in self.buckets:
            self.buckets[bucket] = self.model.capture(lambda: self._forward(found, bucket))
        logits = self.buckets[bucket]()
        return Run(logits.clone(), plan.clone(), real, _copied(found.planned.scored))

    def _plan(self) -> _Sized:
        inputs = self.base.prepare(self.given)
        planned = self.model.method.plan(self.base, inputs, self.model.trace(inputs))
        plan = planned.plan.with_survivors() if self.base.reads_survivors else planned.plan
        counts, wrong = plan.counts, plan.lacking(self.base.outputs, self.base.pools)
        if (unreadable := self.base.unreadable(inputs)) is not None:
            wrong = wrong | unreadable
        sizes = torch.cat([counts.sum(0), counts.amax(0), wrong.any()[None]])
        return _Sized(Planned(plan, planned.scored), inputs, counts, sizes)

    def _forward(self, found: _Sized, bucket: Bucket) -> Tensor:
        packings = Packing.of_boundaries(found.counts, bucket.rows, bucket.longest)
        x = self.base.embed_tokens(found.inputs, *first_tokens(found.planned.plan, packings[0]))
        return run_packed(self.base, x, packings)


def _copied(scored: Any) -> Any:
    return scored.clone() if isinstance(scored, Tensor) else scored
