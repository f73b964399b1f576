"""Samples that the approximate network answers by itself, and those that go on to the base model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.cost import PARTS
from sttabt.core.plan import TokenPlan, keep_all
from sttabt.core.trace import AttentionTrace
from sttabt.engine.dropped import run_dropped
from sttabt.engine.run import Run

if TYPE_CHECKING:
    from sttabt.models.pruned import PrunedModel

Form = Callable[[Backbone, Any, AttentionTrace | None], Run]


def run_cascade(model: PrunedModel, inputs: Any, form: Form) -> Run:
    """`form` of the samples that the network is not sure of; no token of the others lives. inputs: prepared."""
    assert model.approx is not None, "checked when constructed"
    network, real = model.approx.backbone, model.base.real(inputs)
    with torch.no_grad():
        prediction = run_dropped(network, inputs, _whole(network, real))
        places = (~model.method.answered(prediction)).nonzero()[:, 0]
        lifetime = torch.zeros_like(real, dtype=torch.int64)
        if not len(places):
            return Run(prediction, TokenPlan(lifetime, model.base.layers), real)
        rest = pick(inputs, places)
        trace = model.trace(rest)
    run = form(model.base, rest, trace)
    lifetime = lifetime.index_copy(0, places, run.plan.lifetime)  # type: ignore[union-attr]
    logits = prediction.to(run.logits.dtype).index_copy(0, places, run.logits)
    return Run(logits, TokenPlan(lifetime, model.base.layers), real, run.scored)


def cascade_macs(model: PrunedModel, run: Run) -> dict[str, float]:
    """Multiply-adds of a sample, by PARTS, mean over the batch: the network's prediction of all, the rest's run."""
    assert model.approx is not None, "checked when constructed"
    method, network = model.method, model.approx.backbone
    rest = (run.plan.lifetime > 0).any(1)  # type: ignore[union-attr]
    share = float(rest.double().mean())
    asked = method.macs(network, Run(run.logits, _whole(network, run.real), run.real), None)
    found = dict.fromkeys(PARTS, 0.0)
    if share:
        plan = TokenPlan(run.plan.lifetime[rest], run.plan.layers)  # type: ignore[union-attr]
        own = Run(run.logits[rest], plan, run.real[rest], run.scored)
        found = {part: share * value for part, value in method.macs(model.base, own, network).items()}
    found["approximate_network"] += sum(asked.values())
    found["stem"] += (1 - share) * model.base.architecture.stem  # computed of all before anybody is asked
    return found


def pick(inputs: Any, places: Tensor) -> Any:
    """These samples of prepared inputs: images, a Text, or images with what a stem made of them."""
    if isinstance(inputs, Tensor):
        return inputs[places]
    return type(inputs)(*(each[places] if isinstance(each, Tensor) else each for each in inputs))


def _whole(network: Backbone, real: Tensor) -> TokenPlan:
    plan = keep_all(real, network.layers, network.outputs)
    return plan.with_survivors() if network.reads_survivors else plan
