"""One step of training: fine-tuning the dense model, and training concrete masks end to end."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.bench.variants import DENSE, Variant, calibrated, dense_macs, make_model, middle_keep
from sttabt.core.cost import trace_macs
from sttabt.data.base import Batch
from sttabt.data.task import Task
from sttabt.engine.run import Run
from sttabt.lit.modules import Pruning
from sttabt.methods.concrete import Concrete
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.pruned import PrunedModel
from sttabt.settings import BenchSettings, TrainingSettings
from sttabt.settings.methods.concrete import ConcreteSettings

TRAINING = "training step"
LEARNING_RATE = 1e-5
FORWARD_AND_BACKWARD = 3  # in forwards: a backward is a product for the inputs and one for the weights


def make_steps(base: Backbone, network: ApproximateNetwork, inputs: Tensor, bench: BenchSettings) -> list[Variant]:
    """A dense step and steps of pruning (soft masks, hard masks; distillation from the dense model).

    Each has weights of its own. Hard masks keep the middle of `bench.keeps`, and the dropped engine runs them. The
    multiply-adds are those of forward and backward; what AdamW does to each weight is not counted.
    """
    labels = torch.randint(base.architecture.classes, (len(inputs),), generator=torch.Generator().manual_seed(0)).to(
        inputs.device
    )
    batch = Batch(inputs, labels)
    dense = copy.deepcopy(base).train()
    training = TrainingSettings(epochs=1, learning_rate=LEARNING_RATE)
    task = Task("accuracy", base.architecture.classes)
    keep = middle_keep(bench)
    with torch.no_grad():
        sparse = calibrated(base, network, inputs, keep)[0]
        run = sparse.run(inputs)

    def step_of(p_logit: float, hard_from: float) -> Callable[[], None]:
        settings = ConcreteSettings(method="concrete", training=training, hard_from=hard_from)
        model = make_model("concrete", copy.deepcopy(base), copy.deepcopy(network), p_logit=p_logit)
        pruning = Pruning(model, base, settings, task).train()

        def loss() -> Tensor:
            return torch.stack(list(pruning.terms(batch).values())).sum()

        return partial(_step, torch.optim.AdamW(pruning.trained.parameters(), lr=LEARNING_RATE), loss)

    def dense_loss() -> Tensor:
        return task.loss(dense(inputs), labels)

    return [
        Variant(
            DENSE,
            f"{TRAINING}, dense",
            partial(_step, torch.optim.AdamW(dense.parameters(), lr=LEARNING_RATE), dense_loss),
            lambda _: FORWARD_AND_BACKWARD * dense_macs(base),
        ),
        Variant(
            TRAINING,
            f"{TRAINING}, concrete masks",
            step_of(p_logit=0.0, hard_from=1.0),
            lambda _: pruning_step_macs(base, network),
        ),
        Variant(
            TRAINING,
            f"{TRAINING}, hard masks, keep {keep:g}",
            step_of(sparse.method.settings.p_logit, hard_from=0.0),
            lambda _: hard_step_macs(sparse, run),
        ),
    ]


def pruning_step_macs(base: Backbone, network: ApproximateNetwork) -> float:
    """Multiply-adds of a sample: three forwards of base model, trace and planning of all rows; one of the teacher."""
    architecture, tokens = network.backbone.architecture, base.tokens
    trace = trace_macs(architecture, tokens, tokens - base.outputs)
    method = make_model("concrete", base, network).method
    assert isinstance(method, Concrete), "found by its name"
    planning = method.planning_macs((tokens,) * base.layers, tokens, architecture.width, architecture.heads)
    return FORWARD_AND_BACKWARD * (dense_macs(base) + trace + planning) + dense_macs(base)


def hard_step_macs(model: PrunedModel, run: Run) -> float:
    """Multiply-adds of a sample: three forwards of what a run kept; one of the planner and of the teacher."""
    parts = model.macs(run)
    planner = parts["approximate_network"] + parts["planning"]
    return FORWARD_AND_BACKWARD * (sum(parts.values()) - planner) + planner + dense_macs(model.base)


def _step(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
