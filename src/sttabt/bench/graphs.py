"""Models as a card runs them: captured as CUDA graphs, as they are or compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.bench.variants import (
    DENSE,
    Variant,
    calibrated,
    dense_macs,
    fixed_model,
    macs_of,
    make_model,
    middle,
    middle_keep,
    planned,
    scaled,
)
from sttabt.core.cost import PARTS
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.graphed import Capture, GraphedModel, capture_graph, compile_graph
from sttabt.models.pruned import PrunedModel
from sttabt.settings import BenchSettings

# In half precision their logits are no longer those of the masked engine in single precision.
GRAPHS, COMPILED = "graphs", "compiled"
DENSE_COMPILED = "dense, compiled"
FIXED = "fixed counts"


@dataclass(frozen=True)
class _Graphs:
    """Variants of one batch, whose results `capture` makes again; keep: what the models were made for."""

    group: str
    inputs: Tensor
    precision: torch.dtype
    capture: Capture
    keep: float

    def whole(self, name: str, model: PrunedModel, factor: int = 0) -> Variant:
        """The model, as `sttabt.freeze` makes it on CUDA."""
        graphed = GraphedModel(copy.deepcopy(model).to(self.precision), [], self.capture)
        macs = partial(macs_of, model, self.inputs, PARTS)
        return Variant(self.group, self._named(name, factor), _in_precision(graphed.run, self._given), macs)

    def planner(self, name: str, model: PrunedModel, factor: int) -> Variant:
        """Its planner alone."""
        own, given = copy.deepcopy(model).to(self.precision), self._given
        macs = partial(macs_of, model, self.inputs, ("approximate_network", "planning"))
        captured = cache(lambda: self.capture(partial(planned, own, given)))  # when it first runs
        name = self._named(f"planner of {name}", factor)
        return Variant(self.group, name, _in_precision(lambda _: captured()(), given), macs)

    @property
    def _given(self) -> Tensor:
        return self.inputs.to(self.precision)

    def _named(self, name: str, factor: int) -> str:
        return f"{name}, {self.group}, factor {factor}, keep {self.keep:g}" if factor else name


def graphed_variants(
    base: Backbone,
    networks: Sequence[ApproximateNetwork],
    inputs: Tensor,
    settings: BenchSettings,
    precision: torch.dtype,
    capture: Capture = capture_graph,
) -> list[Variant]:
    """Models as `sttabt.freeze` makes them on CUDA, with weights in that precision, and their planners alone.

    Dense, ToMe, and pruned at one keep: fixed counts with every network, others with the last.
    """
    keep, merged, last = middle_keep(settings), middle(scaled(base, settings.merged)), networks[-1].factor
    others = {model.method.title: model for model in calibrated(base, networks[-1], inputs, keep)}
    fixed = {network.factor: fixed_model(base, network, keep).pruned for network in networks}
    graphs = _Graphs(GRAPHS, inputs, precision, capture, keep)
    return [
        graphs.whole("dense, graphs", make_model("dense", base)),
        graphs.whole(f"ToMe, graphs, {merged} a layer", make_model("tome", base, merged=merged)),
        *(graphs.whole(name, model, last) for name, model in others.items()),
        *(graphs.whole(FIXED, model, factor) for factor, model in fixed.items()),
        *(graphs.planner(name, model, last) for name, model in others.items()),
        *(graphs.planner(FIXED, model, factor) for factor, model in fixed.items()),
    ]


def compiled_variants(
    base: Backbone,
    network: ApproximateNetwork,
    inputs: Tensor,
    settings: BenchSettings,
    precision: torch.dtype,
    capture: Capture = compile_graph,
) -> list[Variant]:
    """The library's dense model and the pruned one of fixed counts, compiled, with weights in that precision.

    capture: of the pruned one; the dense one is replayed as a CUDA graph by torch.compile itself.
    """
    keep, own = middle_keep(settings), copy.deepcopy(base).to(precision)
    graphs = _Graphs(COMPILED, inputs, precision, capture, keep)
    return [
        Variant(DENSE, DENSE_COMPILED, _compiled(own, inputs.to(precision)), lambda _: dense_macs(base)),
        graphs.whole(FIXED, fixed_model(base, network, keep).pruned, network.factor),
    ]


def compiled_planners(
    base: Backbone,
    network: ApproximateNetwork,
    inputs: Tensor,
    settings: BenchSettings,
    precision: torch.dtype,
    capture: Capture = compile_graph,
) -> list[Variant]:
    """Planners alone, and back-tracking, whose counts differ by image: as `compiled_variants`."""
    keep = middle_keep(settings)
    graphs = _Graphs(COMPILED, inputs, precision, capture, keep)
    concrete, backtracking = calibrated(base, network, inputs, keep)
    return [
        graphs.planner(FIXED, fixed_model(base, network, keep).pruned, network.factor),
        graphs.planner(concrete.method.title, concrete, network.factor),
        graphs.whole(backtracking.method.title, backtracking, network.factor),
    ]


def _in_precision(run: Callable[[Tensor], Any], given: Tensor) -> Callable[[], Any]:
    """Without autocast: weights and images have their precision."""

    def without_autocast() -> Any:
        with torch.autocast(given.device.type, enabled=False):
            return run(given)

    return without_autocast


def _compiled(model: Backbone, given: Tensor) -> Callable[[], Tensor]:
    """One graph, on CUDA replayed as a CUDA graph."""
    mode = "reduce-overhead" if given.is_cuda else "default"
    compiled: Any = torch.compile(model, dynamic=False, fullgraph=True, mode=mode)
    return _in_precision(compiled, given)
