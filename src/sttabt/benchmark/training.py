"""One step of training: fine-tuning the dense model, and training concrete masks end to end."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sttabt.approx import ApproximateNetwork
from sttabt.backbones.base import Backbone
from sttabt.benchmark.variants import DENSE, Variant, dense_macs, make_model
from sttabt.core.cost import trace_macs
from sttabt.data.base import Batch
from sttabt.lit.modules import Pruning
from sttabt.methods.concrete import Concrete
from sttabt.settings import ConcreteSettings, TrainingSettings
from sttabt.task import Task

TRAINING = "training step"
LEARNING_RATE = 1e-5
FORWARD_AND_BACKWARD = 3  # in forwards: a backward is a product for the inputs and one for the weights


def make_steps(base: Backbone, network: ApproximateNetwork, inputs: Tensor) -> list[Variant]:
    """A dense step and a pruning step (soft masks, distillation from the dense model), each with its own weights.

    Their multiply-adds are those of forward and backward; what AdamW does to each weight is not counted.
    """
    labels = torch.randint(base.architecture.classes, (len(inputs),), generator=torch.Generator().manual_seed(0)).to(
        inputs.device
    )
    batch = Batch(inputs, labels)
    dense = copy.deepcopy(base).train()
    training = TrainingSettings(epochs=1, learning_rate=LEARNING_RATE)
    task = Task("accuracy", base.architecture.classes)
    settings = ConcreteSettings(method="concrete", training=training)
    pruning = Pruning(make_model("concrete", copy.deepcopy(base), copy.deepcopy(network)), base, settings, task).train()
    dense_optimizer = torch.optim.AdamW(dense.parameters(), lr=LEARNING_RATE)
    pruning_optimizer = torch.optim.AdamW(pruning.trained.parameters(), lr=LEARNING_RATE)

    def dense_loss() -> Tensor:
        return task.loss(dense(inputs), labels)

    def pruning_loss() -> Tensor:
        return torch.stack(list(pruning.terms(batch).values())).sum()

    return [
        Variant(
            DENSE,
            f"{TRAINING}, dense",
            partial(_step, dense_optimizer, dense_loss),
            lambda _: FORWARD_AND_BACKWARD * dense_macs(base),
        ),
        Variant(
            TRAINING,
            f"{TRAINING}, concrete masks",
            partial(_step, pruning_optimizer, pruning_loss),
            lambda _: pruning_step_macs(base, network),
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


def _step(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
