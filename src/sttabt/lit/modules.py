"""The training stages: base model, approximate network (general, or of a task), pruning."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sttabt.backbones.base import Backbone
from sttabt.core.distill import prediction_divergence, token_divergence
from sttabt.data.base import Batch
from sttabt.data.task import Task
from sttabt.engine.dense import run_dense
from sttabt.errors import UserError
from sttabt.lit.stage import TrainingStage
from sttabt.methods.base import SoftRun
from sttabt.methods.schedules import settings_at, values_at
from sttabt.models.approximate import ApproximateNetwork, ApproximationWeights, approximation_loss
from sttabt.models.pruned import PrunedModel
from sttabt.settings import ApproxSettings, TrainedSettings, TrainingSettings, TunedSettings


class BaseTraining(TrainingStage):
    """Trains the dense base model, from its start or from given weights."""

    stage = "base"

    def __init__(self, base: Backbone, training: TrainingSettings, task: Task) -> None:
        super().__init__(base, training, task)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.trained(batch.inputs)
        return {"task": self.task.loss(logits, batch.labels, self.training_settings.label_smoothing)}

    def predict(self, inputs: Any) -> Tensor:
        return self.trained(inputs)


class Approximation(TrainingStage):
    """Distils the approximate network from the frozen base model (METHOD section 1)."""

    stage = "approx"

    def __init__(self, network: ApproximateNetwork, base: Backbone, settings: ApproxSettings, task: Task) -> None:
        super().__init__(network, settings.training, task)
        self.base, self.settings = Frozen(base), settings
        self.weights = ApproximationWeights(
            settings.attention_weight, settings.hidden_weight, settings.embedding_weight, settings.prediction_weight
        )

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            inputs = self.base.module.prepare(batch.inputs)
            target = run_dense(self.base.module, inputs)
        loss = approximation_loss(self.trained, inputs, target, self.settings.attention_loss, self.weights)
        return {
            "attention": loss.attention,
            "hidden": loss.hidden,
            "embedding": loss.embedding,
            "prediction": loss.prediction,
        }

    def predict(self, inputs: Any) -> Tensor:
        return self.trained.backbone(self.base.module.prepare(inputs))


class GeneralApproximation(Approximation):
    """Distils from a pretrained encoder on unlabelled data: without the prediction, which that has not learned yet."""

    stage = "general"
    leaves_unused = True  # what follows the last attention
    mode = "min"

    def __init__(self, network: ApproximateNetwork, encoder: Backbone, settings: ApproxSettings, task: Task) -> None:
        unpredicted = replace(settings, prediction_weight=0.0, training=settings.corpus_training)
        super().__init__(network, encoder, unpredicted, task)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not network.is_head(name))

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        return {name: term for name, term in super().terms(batch).items() if name != "prediction"}

    @property
    def validated(self) -> str:
        return f"{self.stage}/validation_attention"

    def validation_step(self, batch: Batch, index: int) -> None:
        """Without labels, validation measures the distance of the attention."""
        attention = self.terms(batch)["attention"]
        self.log(self.validated, attention, batch_size=len(batch.labels), sync_dist=True)


class Pruning(TrainingStage):
    """Trains a method's own weights, the base weights and the approximate network end to end (METHOD sections 3, 4).

    On the soft run first; from the share `hard_from` of the epochs on, on the hard run, where the base model learns to
    do with the tokens that are left. `averaged`, where `ema` asks for it, follows the weights after each update.

    Settings that have a schedule have its value in a training step alone, and their own at any other time. The value
    follows from the number of the update, so that a resumed training repeats it.
    Raises UserError for a schedule that cannot reach what a budget has found.
    """

    stage = "prune"
    leaves_unused = True  # the prediction of an approximate network that plans is not used

    def __init__(self, pruned: PrunedModel, teacher: Backbone, settings: TrainedSettings, task: Task) -> None:
        if pruned.base.embeds:
            raise UserError(f"{pruned.method.title} trains on labels, which a model without a classifier has none of")
        super().__init__(pruned, settings.training, task)
        self.settings = settings
        values_at(settings, 0.0)  # a mistake in it shows before the first step
        taught = settings.distillation > 0 or pruned.method.compares_states
        self.teacher = Frozen(teacher) if taught else None
        for parameter in pruned.base.embeddings() if pruned.method.trains_base else pruned.base.parameters():
            parameter.requires_grad_(False)
        self.averaged: Any = None
        if settings.ema:
            # A submodule, so that checkpoints hold it.
            follow = partial(_follow, settings.ema)  # torch's own is a closure, which no other process can be given
            self.averaged = AveragedModel(pruned, multi_avg_fn=follow).requires_grad_(False)
            self.averaged_metric = task.new_metric(task.metric)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if not self.settings.schedules:
            return super().training_step(batch, index)
        own, done = self.trained.method.settings, self._done()
        self.trained.method.settings = settings_at(own, done)
        try:
            loss = super().training_step(batch, index)
        finally:
            self.trained.method.settings = own
        values = {f"{self.stage}/scheduled_{name}": value for name, value in values_at(own, done).items()}
        self.log_dict(values, on_step=True, rank_zero_only=True, batch_size=len(batch.labels))
        return loss

    def _done(self) -> float:
        """The share of the updates that schedules count in that is made before this one; from 1 on all are."""
        epochs = self.settings.training.epochs
        soft = 1.0 if isinstance(self.settings, TunedSettings) else math.ceil(self.settings.hard_from * epochs) / epochs
        updates = soft * int(self.trainer.estimated_stepping_batches)
        return self.global_step / updates if updates else 1.0

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        if self.current_epoch >= self.settings.hard_from * self.settings.training.epochs:
            run = SoftRun(self.trained.run(batch.inputs).logits, {})
        else:
            run = self.trained.soft(batch.inputs)
        smoothing = self.settings.training.label_smoothing
        terms = {"task": self.task.loss(run.logits, batch.labels, smoothing)} | run.terms
        return terms if self.teacher is None else terms | self._taught(run, self.teacher.module, batch.inputs)

    def _taught(self, run: SoftRun, teacher: Backbone, inputs: Any) -> dict[str, Tensor]:
        """The losses against the teacher, which computes its last states where they are compared."""
        terms = {}
        with torch.no_grad():
            dense = None if run.compared is None else run_dense(teacher, teacher.prepare(inputs))
            logits = teacher(inputs) if dense is None else dense.logits
        if self.settings.distillation:
            terms["distillation"] = self.settings.distillation * prediction_divergence(run.logits, logits)
        if dense is not None and run.compared is not None:
            own = run.compared
            terms["tokens"] = own.weight * token_divergence(own.states, dense.states, own.rows)
        return terms

    def predict(self, inputs: Any) -> Tensor:
        return self.trained.run(inputs).logits

    def train(self, mode: bool = True) -> Pruning:
        super().train(mode)
        if not self.trained.method.trains_base:
            self.trained.base.eval()  # neither dropped out nor the statistics of a batch
        return self

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        if self.averaged is not None:
            self.averaged.update_parameters(self.trained)

    def validation_step(self, batch: Batch, index: int) -> None:
        super().validation_step(batch, index)
        if self.averaged is not None:
            logits = self.averaged.module.run(batch.inputs).logits
            self.averaged_metric.update(self.task.readings(self.task.metric, logits), batch.labels)
            self.log(f"{self.stage}/validation_ema_{self.task.metric}", self.averaged_metric, on_epoch=True)

    def own_rates(self) -> list[dict[str, Any]]:
        rate = self.settings.training.learning_rate
        return [
            {"params": [parameter], "lr": relative * rate, "weight_decay": 0.0}
            for parameter, relative in self.trained.method.rates()
        ]


def _follow(decay: float, averages: list[Tensor], weights: list[Tensor], updates: int) -> None:
    torch._foreach_lerp_(averages, weights, 1 - decay)


class Frozen(nn.Module):
    """A copy that is neither trained nor switched to training mode; the module itself stays as it is."""

    def __init__(self, module: Backbone) -> None:
        super().__init__()
        self.module: Any = copy.deepcopy(module).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)
