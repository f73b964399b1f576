"""What is timed beside the dense forward: each variant with what it computes, in multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.bench.plans import realistic_plan, solve_increasing
from sttabt.core.cost import PARTS
from sttabt.core.counts import mean_counts
from sttabt.core.plan import TokenPlan
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.methods import find_method
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.fixed import FixedModel
from sttabt.models.pruned import PrunedModel, PrunedRun
from sttabt.settings import BenchSettings, method_settings

DENSE, MASKED, DROPPED, PLANNER, WHOLE, TOME = "dense", "masked", "dropped", "planner", "end to end", "ToMe"
GATED = (DROPPED, WHOLE)  # groups whose logits must be those of the masked engine

# Planned methods, the setting that decides how much they keep, and its range. Occupancy rises with both.
CALIBRATED = (("concrete", "p_logit", -10.0, 5.0), ("backtracking", "keep_ratio", 0.005, 1.0))
CALIBRATION_IMAGES = 8
CALIBRATION_TOLERANCE = 0.005  # of the mean occupancy
CALIBRATION_STEPS = 12
TOME_PATCHES, TOME_LAYERS = 196, 12  # the sizes that bench.merged is stated for


@dataclass(frozen=True)
class Variant:
    """run: gives a PrunedRun, a TokenPlan, or something without a plan.

    macs: multiply-adds of a sample, mean over the batch, under the plan of that run (None where it has none).
    """

    group: str
    name: str
    run: Callable[[], Any]
    macs: Callable[[TokenPlan | None], float]


def make_variants(
    base: Backbone, networks: Sequence[ApproximateNetwork], inputs: Tensor, settings: BenchSettings
) -> list[Variant]:
    """All variants of one batch, dense first."""
    return [
        Variant(DENSE, DENSE, partial(base, inputs), lambda _: dense_macs(base)),
        *_given_plans(base, inputs, settings),
        *(variant for network in networks for variant in _planners(base, network, inputs, settings)),
        *(variant for network in networks for variant in _whole(base, network, inputs, settings)),
        *(variant for network in networks for variant in _fixed(base, network, inputs, settings)),
        *_tome(base, inputs, settings.merged),
    ]


def compiled_variants(
    base: Backbone, network: ApproximateNetwork, inputs: Tensor, settings: BenchSettings
) -> list[Variant]:
    """The dense forward and a pruned one of fixed counts, each compiled as one graph."""
    dense = _compiled(base, inputs)
    model = fixed_model(base, network, middle_keep(settings))
    plan, pruned = model.pruned.plan(inputs), _compiled(model, inputs)
    return [
        Variant(DENSE, "dense, compiled", dense, lambda _: dense_macs(base)),
        Variant(
            WHOLE,
            f"fixed counts, compiled, factor {network.factor}, keep {middle_keep(settings):g}",
            lambda: PrunedRun(pruned(), plan, base.real(inputs)),
            partial(_macs, model.pruned, inputs, PARTS),
        ),
    ]


def make_model(name: str, base: Backbone, network: ApproximateNetwork | None = None, **settings: Any) -> PrunedModel:
    """`base` under the method of that name, whose other settings keep their defaults."""
    method = find_method(name)(method_settings(name)(method=name, **settings), base.layers, base.outputs)
    return PrunedModel(base, method.to(next(base.parameters()).device), network).eval()


def fixed_model(base: Backbone, network: ApproximateNetwork, keep: float) -> FixedModel:
    """Back-tracking with the counts of a realistic plan, the same for all images."""
    counts = mean_counts(realistic_plan(1, base.tokens, base.layers, keep, 0.0, 0, base.outputs), base.outputs)
    return FixedModel(make_model("backtracking", base, network, counts=counts[:-1]))


def dense_macs(base: Backbone) -> float:
    """Multiply-adds of a sample in the base model's own forward."""
    return sum(make_model("dense", base).dense_macs(torch.ones(1, base.tokens, dtype=torch.bool)).values())


def middle_keep(settings: BenchSettings) -> float:
    """The keep of the variants that are timed at one keep only."""
    return sorted(settings.keeps)[len(settings.keeps) // 2]


def calibrated(base: Backbone, network: ApproximateNetwork, inputs: Tensor, keep: float) -> list[PrunedModel]:
    """A model for each of CALIBRATED whose own plans of the first images have the mean occupancy `keep`."""
    some = inputs[:CALIBRATION_IMAGES]
    real, trace = base.real(some), network(some)
    models = []
    for name, key, low, high in CALIBRATED:
        build = partial(make_model, name, base, network)

        def occupancy(value: float, build: Callable[..., PrunedModel] = build, key: str = key) -> float:
            return float(build(**{key: value}).method.plan(some, real, trace).occupancy().mean())  # type: ignore[operator]

        value = solve_increasing(occupancy, keep, low, high, CALIBRATION_TOLERANCE, CALIBRATION_STEPS)
        models.append(build(**{key: value}))
    return models


def _given_plans(base: Backbone, inputs: Tensor, settings: BenchSettings) -> list[Variant]:
    batch, real = len(inputs), base.real(inputs)
    costs = make_model("dense", base)  # the base model alone, under any plan

    def variant(group: str, name: str, keep: float, spread: float) -> Variant:
        plan = realistic_plan(batch, base.tokens, base.layers, keep, spread, 0, base.outputs)
        plan = TokenPlan(plan.alive.to(inputs.device))
        if group == MASKED:
            return Variant(group, name, lambda: PrunedRun(run_masked(base, inputs, plan), plan, real), whole)
        macs = partial(_macs, costs, inputs, PARTS)
        return Variant(group, name, lambda: PrunedRun(run_dropped(base, inputs, plan), plan, real), macs)

    def whole(_: TokenPlan | None) -> float:
        return dense_macs(base)

    keep = middle_keep(settings)
    variants = [variant(MASKED, f"masked, keep {keep:g}", keep, 0)]
    # A batch of one has no counts that differ.
    kinds = {"uniform": 0.0} | ({"per sample": settings.spread} if batch > 1 and settings.spread else {})
    for kind, spread in kinds.items():
        variants += [
            variant(DROPPED, f"dropped, {kind}, keep {keep:g}", keep, spread) for keep in sorted(settings.keeps)
        ]
    return variants


def _planners(base: Backbone, network: ApproximateNetwork, inputs: Tensor, settings: BenchSettings) -> list[Variant]:
    models = calibrated(base, network, inputs, middle_keep(settings))
    tracing = partial(_macs, models[0], inputs, ("approximate_network",))

    def trace() -> Any:
        return network(inputs)

    def plan(model: PrunedModel) -> Variant:
        name = f"trace and {model.method.card.title}, factor {network.factor}"
        macs = partial(_macs, model, inputs, ("approximate_network", "planning"))
        return Variant(PLANNER, name, partial(model.plan, inputs), macs)

    return [Variant(PLANNER, f"trace, factor {network.factor}", trace, tracing), *map(plan, models)]


def _whole(base: Backbone, network: ApproximateNetwork, inputs: Tensor, settings: BenchSettings) -> list[Variant]:
    by_keep = {keep: calibrated(base, network, inputs, keep) for keep in sorted(settings.keeps)}
    return [
        Variant(
            WHOLE,
            f"{models[place].method.card.title}, factor {network.factor}, keep {keep:g}",
            partial(models[place], inputs),
            partial(_macs, models[place], inputs, PARTS),
        )
        for place in range(len(CALIBRATED))
        for keep, models in by_keep.items()
    ]


def _fixed(base: Backbone, network: ApproximateNetwork, inputs: Tensor, settings: BenchSettings) -> list[Variant]:
    real = base.real(inputs)

    def variant(keep: float) -> Variant:
        model = fixed_model(base, network, keep)
        plan = model.pruned.plan(inputs)  # for the check: the timed forward makes its own
        name = f"fixed counts, factor {network.factor}, keep {keep:g}"
        return Variant(
            WHOLE, name, lambda: PrunedRun(model(inputs), plan, real), partial(_macs, model.pruned, inputs, PARTS)
        )

    return [variant(keep) for keep in sorted(settings.keeps)]


def _tome(base: Backbone, inputs: Tensor, counts: Sequence[int]) -> list[Variant]:
    scale = (base.tokens - base.outputs) / TOME_PATCHES * TOME_LAYERS / base.layers
    scaled = sorted({max(1, round(count * scale)) for count in counts})
    models = {merged: make_model("tome", base, merged=merged) for merged in scaled}
    return [
        Variant(TOME, f"ToMe, {merged} a layer", partial(model, inputs), partial(_macs, model, inputs, PARTS))
        for merged, model in models.items()
    ]


def _compiled(model: Backbone | FixedModel, inputs: Tensor) -> Callable[[], Tensor]:
    """One graph, on CUDA replayed as a CUDA graph."""
    mode = "reduce-overhead" if inputs.is_cuda else "default"
    compiled: Any = torch.compile(model, dynamic=False, fullgraph=True, mode=mode)
    return partial(compiled, inputs)


def _macs(model: PrunedModel, inputs: Tensor, parts: Sequence[str], plan: TokenPlan | None) -> float:
    """Without a plan: what is the same under any."""
    if plan is None:
        plan = TokenPlan(model.base.real(inputs)[:, None].repeat(1, model.base.layers + 1, 1))
    found = model.macs(plan, model.base.real(inputs))
    return sum(found[part] for part in parts)
