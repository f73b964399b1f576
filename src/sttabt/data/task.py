"""What a model predicts, a class or a score: its loss, its metrics, and how logits read.

Higher is better in every metric. A metric is that of the whole split, never a mean of batch means.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassMatthewsCorrCoef
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from sttabt.settings import METRICS, DatasetSettings

warnings.filterwarnings("ignore", message=".*will save all targets and predictions")  # a number a sample is little

TOP = 5  # the likeliest classes, one of which the label has to be, for top-5


@dataclass(frozen=True)
class Task:
    """metric: what is reported and what choices go by; classes: of the logits (B, classes), 1 for a score."""

    metric: str
    classes: int

    @classmethod
    def of(cls, dataset: DatasetSettings) -> Task:
        return cls(dataset.metric, dataset.classes)

    @property
    def is_score(self) -> bool:
        return self.classes == 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """The reported metric, then the others: F1 is that of class 1 among two, top-5 says little of five classes."""
        names = METRICS["regression" if self.is_score else "classification"]
        defined = {"f1": self.classes == 2, "top5": self.classes > TOP}
        return (self.metric, *(name for name in names if name != self.metric and defined.get(name, True)))

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
        """Cross-entropy of classes (B,) int, or of shares of them (B, classes); squared error of scores (B,) float."""
        if self.is_score:
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction=reduction)
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction=reduction)

    def read(self, logits: Tensor) -> Tensor:
        """The prediction of each sample, (B,): the likeliest class, or the score itself."""
        return logits.squeeze(-1) if self.is_score else logits.argmax(-1)

    def readings(self, name: str, logits: Tensor) -> Tensor:
        """What the metric of that name takes of logits (B, classes): the predictions, for top-5 the logits."""
        return logits if name == "top5" else self.read(logits)

    def new_metric(self, name: str) -> Metric:
        """A metric that takes `readings(name, logits)` and labels batch by batch."""
        if name == "top5":
            return MulticlassAccuracy(self.classes, top_k=TOP, average="micro")
        if name == "accuracy":
            return MulticlassAccuracy(self.classes, average="micro")
        if name == "matthews":
            return MulticlassMatthewsCorrCoef(self.classes)
        if name == "f1":
            return BinaryF1Score()
        kind = {"pearson": PearsonCorrCoef, "spearman": SpearmanCorrCoef}[name]
        return kind().set_dtype(torch.float64)  # its running sums lose digits in single precision


def score_of(metric: Metric) -> float:
    """What a metric found; 0 where it is not defined, as for the correlation with a constant prediction."""
    value = float(metric.compute())
    return value if math.isfinite(value) else 0.0
