"""Samples that the approximate network answers by itself, and those that go on to the base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.cost import PARTS
from sttabt.core.counts import counts_on
from sttabt.core.plan import Planned, TokenPlan, plan_all
from sttabt.core.text import MeasuredText
from sttabt.core.trace import AttentionTrace
from sttabt.engine.dropped import run_dropped
from sttabt.engine.run import Run

if TYPE_CHECKING:
    from sttabt.models.pruned import PrunedModel

Form = Callable[[Backbone, Any, AttentionTrace | None], Run]


class Asked(NamedTuple):
    """prediction: the network's logits (B, classes); real: (B, N) bool; left: samples that it is not sure of.

    places: these on the device, (b,).
    """

    prediction: Tensor
    real: Tensor
    left: list[int]
    places: Tensor


def run_cascade(model: PrunedModel, inputs: Any, form: Form) -> Run:
    """`form` of the samples that the network is not sure of; no token of the others lives. inputs: prepared."""
    asked = _ask(model, inputs)
    if not asked.left:
        return Run(asked.prediction, _plan_of(model, asked, None), asked.real)
    rest = _pick(inputs, asked.left, asked.places)
    with torch.no_grad():
        trace = model.trace(rest)
    run = form(model.base, rest, trace)
    logits = asked.prediction.to(run.logits.dtype).index_copy(0, asked.places, run.logits)
    return Run(logits, _plan_of(model, asked, run.plan), asked.real, run.scored)  # type: ignore[arg-type]


@torch.no_grad()
def plan_cascade(model: PrunedModel, inputs: Any) -> TokenPlan:
    """The plan of that run, for which the base model computes no layer. inputs: prepared."""
    asked = _ask(model, inputs)
    if not asked.left:
        return _plan_of(model, asked, None)
    rest = _pick(inputs, asked.left, asked.places)
    plan = model.method.plan(model.base, rest, model.trace(rest)).plan
    return _plan_of(model, asked, plan.with_survivors() if model.base.reads_survivors else plan)


@torch.no_grad()
def sureness(model: PrunedModel, inputs: Any) -> Tensor:
    """How sure the network is of each sample, (B,); inputs: prepared."""
    return model.method.sureness(_ask(model, inputs).prediction)


def cascade_macs(model: PrunedModel, run: Run) -> dict[str, float]:
    """Multiply-adds of a sample, by PARTS, mean over the batch: the network's prediction of all, the rest's run."""
    assert model.approx is not None, "checked when constructed"
    method, network = model.method, model.approx.backbone
    rest = (run.plan.lifetime > 0).any(1)  # type: ignore[union-attr]
    share = float(rest.double().mean())
    whole = _whole(network, run.real, run.real.sum(-1).tolist()).plan
    asked = method.macs(network, Run(run.logits, whole, run.real), None)
    found = dict.fromkeys(PARTS, 0.0)
    if share:
        plan = TokenPlan(run.plan.lifetime[rest], run.plan.layers)  # type: ignore[union-attr]
        own = Run(run.logits[rest], plan, run.real[rest], run.scored)
        traced = network if method.tracks else None
        found = {part: share * value for part, value in method.macs(model.base, own, traced).items()}
    found["approximate_network"] += sum(asked.values())
    found["stem"] += (1 - share) * model.base.architecture.stem  # computed of all before anybody is asked
    return found


def pick(inputs: Any, samples: Sequence[int]) -> Any:
    """These samples of prepared inputs: images, a Text, or images with what a stem made of them."""
    device = inputs.device if isinstance(inputs, Tensor) else inputs[0].device
    return _pick(inputs, samples, counts_on(device, samples))


def _pick(inputs: Any, samples: Sequence[int], places: Tensor) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[places]
    picked = type(inputs)(*(each[places] if isinstance(each, Tensor) else each for each in inputs))
    if isinstance(inputs, MeasuredText) and inputs.lengths is not None:
        return MeasuredText.of(picked, [inputs.lengths[sample] for sample in samples])
    return picked


@torch.no_grad()
def _ask(model: PrunedModel, inputs: Any) -> Asked:
    assert model.approx is not None, "checked when constructed"
    network, real = model.approx.backbone, model.base.real(inputs)
    whole = _whole(network, real, network.lengths(inputs))
    prediction = run_dropped(network, inputs, whole.plan, whole.counts)
    unread = model.base.unreadable(inputs)
    answered = model.method.answered(prediction)
    # One copy to the host says who goes on, and what no model can read.
    unsure, refused = torch.stack([~answered, answered & False if unread is None else unread]).tolist()
    if any(refused):
        model.base.check_numbers(inputs)
    left = [sample for sample, goes_on in enumerate(unsure) if goes_on]
    return Asked(prediction, real, left, counts_on(real.device, left))


def _plan_of(model: PrunedModel, asked: Asked, plan: TokenPlan | None) -> TokenPlan:
    """Of all samples; plan: of those that are left, None where none is."""
    lifetime = torch.zeros_like(asked.real, dtype=torch.int64)
    if plan is not None:
        lifetime = lifetime.index_copy(0, asked.places, plan.lifetime)
    return TokenPlan(lifetime, model.base.layers)


def _whole(network: Backbone, real: Tensor, lengths: Sequence[int]) -> Planned:
    """All tokens; of the last layer what the head reads."""
    whole = plan_all(real, lengths, network.layers, network.outputs)
    return whole.with_survivors() if network.reads_survivors else whole
