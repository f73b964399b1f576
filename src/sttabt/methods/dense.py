"""No pruning: the base model as its library runs it. The control of every method, of no paper."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.plan import TokenPlan
from sttabt.core.trace import AttentionTrace
from sttabt.engine.masked import run_masked
from sttabt.engine.run import Run
from sttabt.methods.base import Form, Method, dense_macs


class Dense(Method):
    """Multiply-adds are those without padding, which a batch of texts has besides."""

    compiles = True

    @property
    def is_static(self) -> bool:
        return True

    def run(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        real = base.real(inputs)
        return Run(base(inputs), self._plan(real), real)

    def masked(self, base: Backbone, inputs: Any, trace: AttentionTrace | None) -> Run:
        """As `run`, through the masked engine."""
        real = base.real(inputs)
        plan = self._plan(real)
        return Run(run_masked(base, inputs, plan), plan, real)

    def forms(self) -> dict[str, Form]:
        return super().forms() | {"masked": self.masked}

    def macs(self, base: Backbone, run: Run, traced: Backbone | None) -> dict[str, float]:
        return dense_macs(base, run.real)

    def _plan(self, real: Tensor) -> TokenPlan:
        return TokenPlan(real * (self.layers + 1), self.layers)
