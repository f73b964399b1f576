"""What is timed beside the dense forward: each variant with what it computes, in multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.bench.plans import realistic_plan, solve_increasing
from sttabt.bench.rivals import masks_macs, plain_tome_macs, run_plain_tome
from sttabt.core.cost import PARTS
from sttabt.core.counts import mean_counts
from sttabt.core.plan import Planned, TokenPlan, keep_all
from sttabt.engine.dropped import run_dropped
from sttabt.engine.frozen import FrozenBackbone
from sttabt.engine.masked import run_masked
from sttabt.engine.run import Run
from sttabt.methods import find_method
from sttabt.methods.dynamicvit import DynamicVit
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.fixed import FixedModel
from sttabt.models.frozen import FrozenNetwork
from sttabt.models.pruned import PrunedModel
from sttabt.settings import BenchSettings, method_settings

DENSE, MASKED, DROPPED, PLANNER, WHOLE, TOME = "dense", "masked", "dropped", "planner", "end to end", "ToMe"
RIVALS = "rivals"
GATED = (DROPPED, WHOLE)  # groups whose logits must be those of the masked engine

# Planned methods, the setting that decides how much they keep, and its range. Occupancy rises with both.
CALIBRATED = (("concrete", "p_logit", -10.0, 5.0), ("backtracking", "keep_ratio", 0.005, 1.0))
CALIBRATION_IMAGES = 8
CALIBRATION_TOLERANCE = 0.005  # of the mean occupancy
CALIBRATION_STEPS = 12
TOME_PATCHES, TOME_LAYERS = 196, 12  # the sizes that bench.merged is stated for


Network = ApproximateNetwork | FrozenNetwork


@dataclass(frozen=True)
class Variant:
    """run: gives a Run, a plan (Planned), or something without one.

    macs: multiply-adds of a sample, mean over the batch, of what a run gave.
    """

    group: str
    name: str
    run: Callable[[], Any]
    macs: Callable[[object], float]


def make_variants(
    base: Backbone,
    networks: Sequence[ApproximateNetwork],
    inputs: Tensor,
    settings: BenchSettings,
    frozen: bool = False,
) -> list[Variant]:
    """All variants of one batch: the library's dense forward, and pruned ones, as they are or frozen.

    frozen: the dense model is timed frozen, too, with every token: what kernels gain without pruning.
    """
    own: Backbone = base
    traced: list[Network] = [*networks]
    variants = [
        Variant(DENSE, DENSE, partial(base, inputs), lambda _: dense_macs(base)),
        _masked(base, inputs, settings),
    ]
    if frozen:
        own, traced = FrozenBackbone(base), [FrozenNetwork(network) for network in networks]
        variants.append(Variant(DENSE, "dense, frozen", partial(own, inputs), lambda _: dense_macs(base)))
    return [
        *variants,
        *_given_plans(own, inputs, settings),
        *(variant for network in traced for variant in _planners(own, network, inputs, settings)),
        *(variant for network in traced for variant in _whole(own, network, inputs, settings)),
        *(variant for network in traced for variant in _fixed(own, network, inputs, settings)),
        *_tome(own, inputs, settings.merged),
        *_rivals(base, inputs, settings.merged),
    ]


def make_model(name: str, base: Backbone, network: Network | None = None, **settings: Any) -> PrunedModel:
    """`base` under the method of that name, whose other settings keep their defaults."""
    method = find_method(name)(method_settings(name)(method=name, **settings), base.layers, base.outputs)
    return PrunedModel(base, method.to(next(base.parameters()).device), cast(Any, network)).eval()


def fixed_model(base: Backbone, network: Network, keep: float) -> FixedModel:
    """Back-tracking with the counts of a realistic plan, the same for all images."""
    counts = mean_counts(realistic_plan(1, base.tokens, base.layers, keep, 0.0, 0, base.outputs), base.outputs)
    return FixedModel(make_model("backtracking", base, network, counts=counts[:-1]))


def dense_macs(base: Backbone) -> float:
    """Multiply-adds of a sample in the base model's own forward."""
    return sum(make_model("dense", base).dense_macs(torch.ones(1, base.tokens, dtype=torch.bool)).values())


def middle_keep(settings: BenchSettings) -> float:
    """The keep of the variants that are timed at one keep only."""
    return sorted(settings.keeps)[len(settings.keeps) // 2]


def calibrated(base: Backbone, network: Network, inputs: Tensor, keep: float) -> list[PrunedModel]:
    """A model for each of CALIBRATED whose own plans of the first images have the mean occupancy `keep`."""
    some = inputs[:CALIBRATION_IMAGES]
    trace = network(some)
    models = []
    for name, key, low, high in CALIBRATED:
        build = partial(make_model, name, base, network)

        def occupancy(value: float, build: Callable[..., PrunedModel] = build, key: str = key) -> float:
            return float(build(**{key: value}).method.plan(base, some, trace).plan.occupancy().mean())

        value = solve_increasing(occupancy, keep, low, high, CALIBRATION_TOLERANCE, CALIBRATION_STEPS)
        models.append(build(**{key: value}))
    return models


def _masked(base: Backbone, inputs: Tensor, settings: BenchSettings) -> Variant:
    keep = middle_keep(settings)
    plan, real = _plan(base, inputs, keep, 0), base.real(inputs)
    run = partial(run_masked, base, inputs, plan)
    return Variant(MASKED, f"masked, keep {keep:g}", lambda: Run(run(), plan, real), lambda _: dense_macs(base))


def _given_plans(base: Backbone, inputs: Tensor, settings: BenchSettings) -> list[Variant]:
    real = base.real(inputs)
    costs = make_model("random", base)  # counts the base model alone, under any plan

    def variant(kind: str, keep: float, spread: float) -> Variant:
        plan = _plan(base, inputs, keep, spread)
        run = partial(run_dropped, base, inputs, plan)
        name, macs = f"dropped, {kind}, keep {keep:g}", partial(macs_of, costs, inputs, PARTS)
        return Variant(DROPPED, name, lambda: Run(run(), plan, real), macs)

    # A batch of one has no counts that differ.
    kinds = {"uniform": 0.0} | ({"per sample": settings.spread} if len(inputs) > 1 and settings.spread else {})
    return [variant(kind, keep, spread) for kind, spread in kinds.items() for keep in sorted(settings.keeps)]


def _plan(base: Backbone, inputs: Tensor, keep: float, spread: float) -> TokenPlan:
    plan = realistic_plan(len(inputs), base.tokens, base.layers, keep, spread, 0, base.outputs)
    return replace(plan, lifetime=plan.lifetime.to(inputs.device))


def _planners(base: Backbone, network: Network, inputs: Tensor, settings: BenchSettings) -> list[Variant]:
    models = calibrated(base, network, inputs, middle_keep(settings))
    tracing = partial(macs_of, models[0], inputs, ("approximate_network",))

    def trace() -> object:
        return network(inputs).compute()

    def plan(model: PrunedModel) -> Variant:
        name = f"trace and {model.method.title}, factor {network.factor}"
        macs = partial(macs_of, model, inputs, ("approximate_network", "planning"))
        return Variant(PLANNER, name, partial(planned, model, inputs), macs)

    return [Variant(PLANNER, f"trace, factor {network.factor}", trace, tracing), *map(plan, models)]


def _whole(base: Backbone, network: Network, inputs: Tensor, settings: BenchSettings) -> list[Variant]:
    by_keep = {keep: calibrated(base, network, inputs, keep) for keep in sorted(settings.keeps)}
    return [
        Variant(
            WHOLE,
            f"{models[place].method.title}, factor {network.factor}, keep {keep:g}",
            partial(models[place].run, inputs),
            partial(macs_of, models[place], inputs, PARTS),
        )
        for place in range(len(CALIBRATED))
        for keep, models in by_keep.items()
    ]


def _fixed(base: Backbone, network: Network, inputs: Tensor, settings: BenchSettings) -> list[Variant]:
    real = base.real(inputs)

    def variant(keep: float) -> Variant:
        model = fixed_model(base, network, keep)
        made = planned(model.pruned, inputs)  # for the check: the timed forward makes its own
        name = f"fixed counts, factor {network.factor}, keep {keep:g}"
        return Variant(
            WHOLE,
            name,
            lambda: Run(model(inputs), made.plan, real, made.scored),
            partial(macs_of, model.pruned, inputs, PARTS),
        )

    return [variant(keep) for keep in sorted(settings.keeps)]


def _tome(base: Backbone, inputs: Tensor, counts: Sequence[int]) -> list[Variant]:
    models = {merged: make_model("tome", base, merged=merged) for merged in scaled(base, counts)}
    return [
        Variant(TOME, f"ToMe, {merged} a layer", partial(model.run, inputs), partial(macs_of, model, inputs, PARTS))
        for merged, model in models.items()
    ]


def _rivals(base: Backbone, inputs: Tensor, counts: Sequence[int]) -> list[Variant]:
    """In plain torch, as their authors run them."""
    merged, dynamicvit = middle(scaled(base, counts)), make_model("dynamicvit", base).method
    assert isinstance(dynamicvit, DynamicVit), "found by its name"
    dynamicvit.train()  # decisions are drawn; the base model stays as it is
    return [
        Variant(
            RIVALS,
            f"ToMe on maps of attention, {merged} a layer",
            partial(run_plain_tome, base, inputs, merged),
            lambda _: plain_tome_macs(base, merged),
        ),
        Variant(
            RIVALS,
            "masks as DynamicViT trains with",
            lambda: dynamicvit.soft(base, base.prepare(inputs), None).logits,
            lambda _: masks_macs(base, dynamicvit),
        ),
    ]


def scaled(base: Backbone, counts: Sequence[int]) -> list[int]:
    scale = (base.tokens - base.outputs) / TOME_PATCHES * TOME_LAYERS / base.layers
    return sorted({max(1, round(count * scale)) for count in counts})


def middle(values: Sequence[int]) -> int:
    return values[len(values) // 2]


def planned(model: PrunedModel, inputs: Tensor) -> Planned:
    """The plan of a model that decides beforehand, with the trace that it reads."""
    return model.steps()["planning"](inputs)  # type: ignore[return-value]


def macs_of(model: PrunedModel, inputs: Tensor, parts: Sequence[str], result: object) -> float:
    """Of what a run gave; without a plan: what is the same under any."""
    if not isinstance(result, Run):
        real = model.base.real(inputs)
        planned = result if isinstance(result, Planned) else Planned(keep_all(real, model.base.layers))
        result = Run(real.new_empty(0), planned.plan, real, planned.scored)
    found = model.macs(result)
    return sum(found[part] for part in parts)
