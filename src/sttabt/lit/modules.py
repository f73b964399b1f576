"""The three training stages: base classifier, approximate attention network, pruning."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sttabt.approx import ApproximateNetwork, ApproximationWeights, approximation_loss
from sttabt.backbones.base import Backbone
from sttabt.core.distill import prediction_divergence
from sttabt.data.base import Batch
from sttabt.engine.dense import run_dense
from sttabt.lit.stage import TrainingStage
from sttabt.pruned import PrunedModel
from sttabt.settings import ApproxSettings, TrainedSettings, TrainingSettings


class BaseClassifier(TrainingStage):
    """Trains the dense base model."""

    stage = "base"

    def __init__(self, base: Backbone, training: TrainingSettings) -> None:
        super().__init__(base, training, base.architecture.classes)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.trained(batch.inputs)
        return {"task": F.cross_entropy(logits, batch.labels, label_smoothing=self.training_settings.label_smoothing)}

    def predict(self, inputs: Any) -> Tensor:
        return self.trained(inputs)


class Approximation(TrainingStage):
    """Distils the approximate network from the frozen base model (METHOD section 1)."""

    stage = "approx"

    def __init__(self, network: ApproximateNetwork, base: Backbone, settings: ApproxSettings) -> None:
        super().__init__(network, settings.training, base.architecture.classes)
        self.base, self.settings = Frozen(base), settings
        self.weights = ApproximationWeights(
            settings.attention_weight, settings.hidden_weight, settings.embedding_weight, settings.prediction_weight
        )

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            target = run_dense(self.base.module, batch.inputs)
        loss = approximation_loss(self.trained, batch.inputs, target, self.settings.attention_loss, self.weights)
        return {
            "attention": loss.attention,
            "hidden": loss.hidden,
            "embedding": loss.embedding,
            "prediction": loss.prediction,
        }

    def predict(self, inputs: Any) -> Tensor:
        return self.trained.backbone(inputs)


class Pruning(TrainingStage):
    """Trains a method's own weights, the base weights and the approximate network end to end (METHOD sections 3, 4).

    On the soft run first; from the share `hard_from` of the epochs on on the hard run, where the base model learns to
    do with the tokens that are left.
    """

    stage = "prune"

    def __init__(self, pruned: PrunedModel, teacher: Backbone, settings: TrainedSettings) -> None:
        super().__init__(pruned, settings.training, pruned.base.architecture.classes)
        self.settings = settings
        self.teacher = Frozen(teacher) if settings.distillation > 0 else None
        for parameter in pruned.base.embeddings():
            parameter.requires_grad_(False)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        if self.current_epoch >= self.settings.hard_from * self.settings.training.epochs:
            logits, own = self.trained(batch.inputs).logits, {}
        else:
            run = self.trained.soft(batch.inputs)
            logits, own = run.logits, run.terms
        smoothing = self.settings.training.label_smoothing
        terms = {"task": F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)} | own
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher.module(batch.inputs)
            terms["distillation"] = self.settings.distillation * prediction_divergence(logits, teacher)
        return terms

    def predict(self, inputs: Any) -> Tensor:
        return self.trained(inputs).logits

    def own_rates(self) -> list[dict[str, Any]]:
        rate = self.settings.training.learning_rate
        return [
            {"params": [parameter], "lr": relative * rate, "weight_decay": 0.0}
            for parameter, relative in self.trained.method.rates()
        ]


class Frozen(nn.Module):
    """A copy that is neither trained nor switched to training mode; the module itself stays as it is."""

    def __init__(self, module: Backbone) -> None:
        super().__init__()
        self.module: Any = copy.deepcopy(module).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)
