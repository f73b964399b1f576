"""What a pruning method is: a card, and a plan made beforehand, a rule that decides on the way, or merging.

One that has weights of its own is a TrainedMethod besides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sttabt.backbones.base import Backbone
from sttabt.core.plan import TokenPlan
from sttabt.core.trace import AttentionTrace
from sttabt.engine.online import Rule


@dataclass(frozen=True)
class Card:
    """What a reader wants to know first. `trained`: has weights of its own that are trained with the base model."""

    title: str
    source: str
    trained: bool = False


class Method(nn.Module, ABC):
    """Constructed with its settings (a MethodSettings), the number of layers and of tokens that are never dropped."""

    card: ClassVar[Card]

    def __init__(self, settings: Any, layers: int, outputs: int) -> None:
        super().__init__()
        self.settings, self.layers, self.outputs = settings, layers, outputs

    @property
    def attention(self) -> str | None:
        """Whose attention the plan is made from: "approximate", "actual" (the base model's own), or None."""
        return None


class PlannedMethod(Method):
    """Decides before the base model runs."""

    @abstractmethod
    def plan(self, inputs: Any, real: Tensor, trace: AttentionTrace | None) -> TokenPlan:
        """The hard plan of a batch. real: (B, N) bool; trace: the attention asked for, None if none was."""

    def planning_macs(self, scored: tuple[float, ...], tokens: int, width: int, heads: int) -> float:
        """Multiply-adds of planning one sample, apart from the trace.

        scored: the plan's; tokens: of the longest sample; width, heads: of the traced network.
        """
        return 0.0


class OnlineMethod(Method):
    """Decides layer by layer."""

    @abstractmethod
    def rule(self, real: Tensor) -> Rule:
        """The rule for a batch whose real tokens are `real` (B, N)."""

    @abstractmethod
    def decision_macs(self, tokens: float) -> float:
        """Multiply-adds of one decision among `tokens` tokens of a sample."""


class MergingMethod(Method):
    """Merges tokens layer by layer instead of dropping them; it has no masked form."""

    @property
    @abstractmethod
    def merged(self) -> int:
        """Pairs that every layer but the last merges."""

    @abstractmethod
    def decision_macs(self, tokens: float, head_width: int) -> float:
        """Multiply-adds of comparing `tokens` tokens of a sample."""


@dataclass(frozen=True)
class SoftRun:
    """logits (B, classes), and scalar losses by name that join the task's; differentiable in the method's weights."""

    logits: Tensor
    terms: dict[str, Tensor]


class TrainedMethod(Method):
    """Has parameters that train with the base weights: on its soft run, and from `hard_from` on on the hard run.

    The hard run carries no gradient to them, so that they then stay as they are. The settings are TrainedSettings.
    """

    @abstractmethod
    def soft(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> SoftRun:
        """The differentiable run of a batch; trace: the attention asked for, None if none was."""

    @abstractmethod
    def rates(self) -> list[tuple[nn.Parameter, float]]:
        """Parameters that have a learning rate of their own and no weight decay: with the rate relative to the rest."""
