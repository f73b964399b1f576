"""A model with a pruning method: it runs the method, and counts what that computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Backbone
from sttabt.core.budget import Calibration
from sttabt.core.plan import TokenPlan
from sttabt.core.trace import AttentionTrace
from sttabt.engine.dense import trace_attention
from sttabt.engine.run import Run
from sttabt.errors import UserError
from sttabt.methods.base import Method, Predicted, SoftRun, dense_macs
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.cascade import cascade_macs, plan_cascade, run_cascade
from sttabt.pretrained.description import Preparation


class PrunedModel(nn.Module):
    """A base model under a method. `approx` is the approximate network, where the method reads one.

    `run` gives logits and what was kept; `forms` are other ways to compute the same. `calibration` says what was found
    where a budget was asked for, and is None elsewhere.
    Raises UserError for a method that cannot prune this base model.
    """

    def __init__(self, base: Backbone, method: Method, approx: ApproximateNetwork | None = None) -> None:
        super().__init__()
        if method.attention == "approximate" and approx is None:
            raise UserError(f"{method.title} reads the approximate attention network: run the stage approx first")
        method.pools = base.pools
        method.check(base)
        method.fit_to(base)
        self.base, self.method, self.approx = base, method, approx
        self.calibration: Calibration | None = None  # what was found, where a budget was asked for
        self.preparation: Preparation | None = None  # of its inputs, where a saved model says it

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Called as the base model's library is, and gives what that gives, from the tokens that are kept."""
        inputs, answer = self.base.read_call(*arguments, **named)
        return answer(self.run(inputs).logits)

    @property
    def config(self) -> Any:
        """The configuration of the library's model, where that has one (transformers: `model.config.id2label`)."""
        return self.base.config

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        tokenizer: Any = None,
        class_names: Sequence[str] | None = None,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes the model as a folder that `sttabt.load` reads: weights, configuration, model card, and the tokenizer.

        tokenizer, class_names, preprocessing: what `sttabt.predict` reads beside the model, where the model does not
        know it: a tokenizer of transformers; names in the order of the logits; of images `mean`, `std` (a number a
        channel, of pixels in [0, 1]), `crop` and `interpolation`. An earlier saved model there is replaced.
        Raises UserError for a model that would not come back as it is: nothing is written then.
        """
        from sttabt.sharing.folder import save  # which knows this class

        return save(self, Path(folder), tokenizer, class_names, preprocessing)

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None, **saved: Any) -> str:
        """Puts what `save_pretrained` writes on the Hugging Face hub, as `name` (USER/MODEL); gives its address.

        saved: as `save_pretrained` takes it. Raises UserError where the hub cannot be reached, or refuses.
        """
        from sttabt.sharing.hub import push

        return push(self, name, private, token, saved)

    def run(self, inputs: Any) -> Run:
        """Drops tokens. The plan carries no gradient; the logits carry that of the base model.

        Raises UserError for inputs that the model cannot read.
        """
        self.base.check_inputs(inputs)
        if (real := self.base.real(inputs)).shape[0] == 0:
            return self._run_of_nothing(real)
        prepared = self.base.prepare(inputs)
        if self.method.settings.asks_network:
            return run_cascade(self, prepared, self.method.run)
        with torch.no_grad():
            trace = self.trace(prepared)
        return self.method.run(self.base, prepared, trace)

    def forms(self) -> dict[str, Callable[[Any], Predicted]]:
        """Other ways to run the model, by name (Method.forms), from a batch of inputs; differentiable."""
        return {name: partial(self._form, form) for name, form in self.method.forms().items()}

    def soft(self, inputs: Any) -> SoftRun:
        """The run that a trained method learns on, with its gradients."""
        prepared = self.base.prepare(inputs)
        return self.method.soft(self.base, prepared, self.trace(prepared))

    @torch.no_grad()
    def plan(self, inputs: Any) -> TokenPlan:
        """The hard plan of a method that decides beforehand. Raises UserError for inputs that the model cannot read."""
        self.base.check_inputs(inputs)
        prepared = self.base.prepare(inputs)
        if self.method.settings.asks_network:
            return plan_cascade(self, prepared)
        plan = self.method.plan(self.base, prepared, self.trace(prepared)).plan
        return plan.with_survivors() if self.base.reads_survivors else plan

    def trace(self, inputs: Any) -> AttentionTrace | None:
        """The attention that the method reads, None if it reads none."""
        if not self.method.tracks:
            return None
        if self.method.attention == "approximate":
            assert self.approx is not None, "checked when constructed"
            return self.approx(self.base.prepare(inputs) if self.approx.share_stem else inputs)
        if self.method.attention == "actual":
            with torch.no_grad():
                return trace_attention(self.base, inputs)
        return None

    def steps(self) -> dict[str, Callable[[Any], object]]:
        """What of a run can be timed by itself, by names of core.cost.PARTS, each from a batch of inputs.

        Each begins with the one before it: a plan begins with the attention that it reads. A cascade has none: what
        it asks of all samples and what of the rest cannot be told apart by steps on whole batches.
        """
        if self.method.settings.asks_network:
            return {}
        traced = {"approximate_network": self._traces} if self.method.attention == "approximate" else {}
        return traced | {name: partial(self._step, step) for name, step in self.method.steps().items()}

    def macs(self, run: Run) -> dict[str, float]:
        """Multiply-adds of a sample, part by part, mean over the batch of `run`, as `run` executes them."""
        if self.method.settings.asks_network:
            return cascade_macs(self, run)
        return self.method.macs(self.base, run, self._traced())

    def dense_macs(self, real: Tensor) -> dict[str, float]:
        """As `macs`, of the base model's own forward on samples that are not padded. real: (B, N) bool."""
        return dense_macs(self.base, real)

    def _run_of_nothing(self, real: Tensor) -> Run:
        """Of an empty batch, `real` (0, N): several of the engines' steps need a sample."""
        dtype = next(self.base.parameters()).dtype
        logits = torch.empty(0, self.base.architecture.classes, dtype=dtype, device=real.device)
        return Run(logits, TokenPlan(real.long(), self.base.layers), real)

    def _traced(self) -> Backbone | None:
        """The network whose attention the method reads."""
        if not self.method.tracks:
            return None
        if self.method.attention == "approximate" and self.approx is not None:
            return self.approx.backbone
        return self.base if self.method.attention == "actual" else None

    def _traces(self, inputs: Any) -> AttentionTrace:
        trace = self.trace(inputs)
        assert trace is not None, "asked for where there is one"
        return trace.compute()

    def _form(self, form: Callable[..., Predicted], inputs: Any) -> Predicted:
        prepared = self.base.prepare(inputs)
        if self.method.settings.asks_network:
            return run_cascade(self, prepared, form)  # type: ignore[arg-type]
        return form(self.base, prepared, self.trace(prepared))

    @torch.no_grad()
    def _step(self, step: Callable[..., object], inputs: Any) -> object:
        prepared = self.base.prepare(inputs)
        return step(self.base, prepared, self.trace(prepared))
