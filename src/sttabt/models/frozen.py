"""A model for inference: on CPUs weights are packed once, at that moment, and belong to the frozen model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sttabt.backbones import adapt
from sttabt.backbones.base import Backbone
from sttabt.core.trace import AttentionTrace
from sttabt.engine.dense import trace_attention
from sttabt.engine.frozen import FrozenBackbone
from sttabt.engine.packing import packing_problems
from sttabt.errors import UserError
from sttabt.methods import find_method
from sttabt.methods.base import Predicted, SoftRun
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.pruned import PrunedModel
from sttabt.settings import method_settings

SHOWN = 3  # problems in a message

log = logging.getLogger(__name__)


def freeze(model: nn.Module, strict: bool = True, compiled: bool = False) -> FrozenModel:
    """A copy for inference, with the logits of `model` (to rounding).

    On CPUs it computes in single precision by the kernels of sttabt.native. On CUDA it computes in the precision of the
    weights (`model.to(torch.bfloat16)` before) and replays CUDA graphs, which it captures as shapes of inputs come
    (models.graphed).
    model: a pruned model in evaluation mode, or a dense one: a Backbone, or a library's model as `prune` takes it.
    strict: False leaves to torch what the kernels cannot reproduce, and logs it; `left_to_torch` of the result says
    what that is.
    compiled: on CUDA, torch.compile what is captured: fewer and larger kernels, after a minute or so for each shape of
    inputs and each bucket.

    Nothing is shared: the original may be trained on, changed or deleted.
    Raises UserError, naming the modules, for what cannot be reproduced: hooks, subclasses such as LoRA's, dropout at
    work, other dtypes on CPUs, and where sttabt was installed without a C++ compiler. On CUDA: for texts, and for
    methods that decide layer by layer or on the host how many tokens are left. compiled=True: for what is on a CPU or
    frozen, and for a method that torch.compile does not take whole.
    """
    if isinstance(model, FrozenModel):
        if compiled:
            raise UserError("compiled=True: this model is frozen already; freeze the original")
        return model
    pruned = model if isinstance(model, PrunedModel) else _dense(adapt(model))
    if next(pruned.base.parameters()).is_cuda:
        return _graphed(pruned, strict, compiled)
    if compiled:
        raise UserError("compiled=True is for CUDA: on a CPU a frozen model runs by kernels that are compiled already")
    parts: dict[str, Backbone] = {"the base model": pruned.base}
    if pruned.approx is not None and pruned.method.attention == "approximate":
        parts["the approximate network"] = pruned.approx.backbone
    problems = {part: packing_problems(backbone) for part, backbone in parts.items()}
    left = [f"{part}: {_shown(found)}" for part, found in problems.items() if found]
    dtype = next(pruned.base.parameters()).dtype
    if strict and dtype != torch.float32:
        raise UserError(
            f"cannot be frozen: the model is {dtype}, and the kernels compute in float32: freeze a copy,"
            " sttabt.freeze(copy.deepcopy(model).float()) (strict=False leaves it to torch)"
        )
    if left and strict:
        raise UserError(f"cannot be frozen: {'; '.join(left)} (strict=False leaves that to torch)")
    for part in left:
        log.warning("left to torch: %s", part)
    return FrozenModel(pruned, {part for part, found in problems.items() if not found}, left)


def deployed(model: PrunedModel) -> PrunedModel:
    """The model as evaluation times it: frozen on a CPU, with what the kernels cannot reproduce left to torch.

    Elsewhere as it is: on CUDA `freeze` captures graphs, in one precision, a shape of inputs each. The benchmark times
    those, and a run's rows do not.
    """
    return freeze(model, strict=False) if next(model.base.parameters()).is_cpu else model


class FrozenNetwork(nn.Module):
    """An approximate network that can do no more than trace its attention."""

    def __init__(self, network: ApproximateNetwork, packed: bool = True) -> None:
        super().__init__()
        self.backbone = _frozen(network.backbone, packed)
        self.factor, self.share_stem = network.factor, network.share_stem

    def forward(self, inputs: Any) -> AttentionTrace:
        """What every layer would attend to."""
        return trace_attention(self.backbone, inputs)


class FrozenModel(PrunedModel):
    """Made by `freeze`. Called as the model that was frozen; in evaluation mode, on the CPU, for good.

    left_to_torch: parts that the kernels do not compute, each with the reason; [] where they compute all.
    """

    def __init__(self, pruned: PrunedModel, packed: set[str], left_to_torch: list[str]) -> None:
        base = _frozen(pruned.base, "the base model" in packed)
        method = copy.deepcopy(pruned.method).requires_grad_(False)
        method.settle()
        network: Any = None
        if pruned.approx is not None and pruned.method.attention == "approximate":
            network = FrozenNetwork(pruned.approx, "the approximate network" in packed)
        super().__init__(base, method, network)
        self.calibration, self.preparation = pruned.calibration, pruned.preparation
        self.left_to_torch = left_to_torch
        super().train(False)

    @torch.no_grad()
    def run(self, inputs: Any) -> Any:
        return super().run(inputs)

    def forms(self) -> dict[str, Callable[[Any], Predicted]]:
        """None: masks and gradients are the original's."""
        return {}

    def soft(self, inputs: Any) -> SoftRun:
        raise UserError("a frozen model cannot learn: train the model that was frozen, and freeze it again")

    def train(self, mode: bool = True) -> FrozenModel:
        if mode:
            raise UserError("a frozen model cannot be trained: train the model that was frozen, and freeze it again")
        return self

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        raise UserError("a frozen model takes no other weights: load them into the original, and freeze it again")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenModel:
        probe = fn(torch.empty(0, dtype=torch.float32, device="cpu"))
        if probe.dtype != torch.float32 or not probe.is_cpu:
            raise UserError(
                f"a frozen model stays in float32 on the CPU, not {probe.dtype} on {probe.device}: move the original"
            )
        return self


def _graphed(pruned: PrunedModel, strict: bool, compiled: bool) -> FrozenModel:
    from sttabt.models import graphed  # which extends what is here

    problems = graphed.capturing_problems(pruned)
    if problems and strict:
        raise UserError(f"cannot be frozen: {'; '.join(problems)} (strict=False leaves that to torch)")
    if compiled and not pruned.method.compiles:
        raise UserError(
            f"compiled=True: torch.compile does not take {pruned.method.title} whole, which counts rows on the host"
            " between layers: leave it out"
        )
    for problem in problems:
        log.warning("left to torch: %s", problem)
    capture = graphed.compile_graph if compiled else graphed.capture_graph
    return graphed.GraphedModel(pruned, problems, capture)


def _frozen(backbone: Backbone, packed: bool) -> Backbone:
    return FrozenBackbone(backbone) if packed else copy.deepcopy(backbone).requires_grad_(False).eval()


def _dense(base: Backbone) -> PrunedModel:
    method = find_method("dense")(method_settings("dense")(method="dense"), base.layers, base.outputs)
    return PrunedModel(base, method)


def _shown(problems: list[str]) -> str:
    more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return ", ".join(problems[:SHOWN]) + more
