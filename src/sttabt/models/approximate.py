"""The approximate attention network: a narrow copy of a backbone whose attention tells what the base will read.

(STTABT section 3.1; METHOD section 1)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sttabt.backbones.base import Backbone
from sttabt.core.distill import attention_divergence, attention_squared_error, prediction_error, state_error
from sttabt.core.trace import AttentionTrace
from sttabt.engine.dense import DenseRun, run_dense, trace_attention
from sttabt.errors import UserError, nearest
from sttabt.pretrained.names import load_official_state
from sttabt.pretrained.states import load_views, without_unused

ATTENTION_LOSSES = ("kldiv", "tinybert")


class ApproximateNetwork(nn.Module):
    """A backbone `factor` times narrower with its own embedding and head, and maps from its width to the base's.

    share_stem: where the base has a convolutional stem, read its output instead of owning a narrow one. Inputs must
    then be what the base's `prepare` makes of them.
    """

    def __init__(self, base: Backbone, factor: int, share_stem: bool = False) -> None:
        super().__init__()
        self.factor, self.share_stem = factor, share_stem
        self.backbone = base.narrow(factor, share_stem)
        narrow, wide = self.backbone.architecture.width, base.architecture.width
        self.transfer_hidden = nn.ModuleList(nn.Linear(narrow, wide) for _ in range(base.layers))
        self.transfer_embedding = nn.Linear(narrow, wide)
        weights = next(base.parameters())
        self.to(weights.device, weights.dtype)

    def forward(self, inputs: Any) -> AttentionTrace:
        """What every layer would attend to; computes nothing that the trace does not need."""
        return trace_attention(self.backbone, inputs)

    def start_from(self, base: Backbone) -> None:
        """Interpolated start: each encoder parameter is the base's, flattened and resized by nearest neighbour.

        Raises UserError for a base model with other weights than its library gives it.
        """
        fresh = (*base.head_prefixes, *base.narrow_prefixes)
        known = self.backbone.model.state_dict().keys()
        if other := [name for name in base.model.state_dict() if name not in known and not name.startswith(fresh)]:
            raise UserError(
                f"{other[0]} is no plain weight, so that no approximate network can start from it: merge it first"
                " (LoRA: merge_and_unload(); parametrize.remove_parametrizations), quantise afterwards, or"
                " choose a method that needs no such network, as attention='actual'"
            )
        parts = self.backbone.parts()
        with torch.no_grad():
            for name, wide in base.parts().items():
                if not name.startswith(fresh):
                    parts[name].copy_(resize_flat(wide, parts[name].shape))

    def is_head(self, name: str) -> bool:
        """Whether a parameter of this name belongs to the head, which depends on the classes."""
        return name.startswith(tuple(f"backbone.model.{prefix}" for prefix in self.backbone.head_prefixes))

    def start_from_general(self, state: Mapping[str, Tensor]) -> None:
        """Start from a network that was distilled from a pretrained encoder; the head keeps its own start."""
        own = {name: value for name, value in self.state_dict().items() if self.is_head(name)}
        self.load_state_dict({**state, **own}, strict=True)

    def load_official_state(self, state: Mapping[str, Tensor]) -> None:
        """Load an official checkpoint's `approx_bert` entry; its unused pruning parameters are left out."""
        encoder = {
            name.removeprefix("bert."): value
            for name, value in without_unused(state).items()
            if not name.startswith("transfer_")
        }
        load_official_state(self.backbone, encoder)
        own = {name: value for name, value in state.items() if name.startswith("transfer_")}
        transfer = nn.ModuleDict(
            {"transfer_hidden": self.transfer_hidden, "transfer_embedding": self.transfer_embedding}
        )
        load_views(own, transfer.state_dict())


@dataclass(frozen=True)
class ApproximationLoss:
    """Weighted scalar terms of the distillation, and their sum."""

    attention: Tensor
    hidden: Tensor
    embedding: Tensor
    prediction: Tensor

    @property
    def total(self) -> Tensor:
        return self.attention + self.hidden + self.embedding + self.prediction


@dataclass(frozen=True)
class ApproximationWeights:
    """Weights of the four terms (METHOD section 1; vision: 1 or, for tinybert, 10; 1/100; 1; 200; text: all 1)."""

    attention: float = 1.0
    hidden: float = 0.01
    embedding: float = 1.0
    prediction: float = 200.0


def approximation_loss(
    network: ApproximateNetwork,
    inputs: Any,
    target: DenseRun,
    attention_loss: str,
    weights: ApproximationWeights,
    rows: Tensor | None = None,
) -> ApproximationLoss:
    """How far the network is from `target`, the frozen base model's run on the same inputs.

    Of models that embed the prediction's term is 0.
    rows: (B, N) bool, the tokens whose states and attention rows are compared, None for the real ones; the official
    implementation compares padding too, except in the divergence.
    """
    if attention_loss not in ATTENTION_LOSSES:
        raise UserError(
            f"approx.attention_loss={attention_loss} is unknown: {nearest(attention_loss, ATTENTION_LOSSES)}"
        )
    run = run_dense(network.backbone, inputs)
    layers = range(network.backbone.layers)
    real = target.trace.real
    rows = real if rows is None else rows
    actual = [target.trace.probabilities(layer) for layer in layers]
    found = [run.trace.probabilities(layer) for layer in layers]
    if attention_loss == "kldiv":
        attention = attention_divergence(actual, found, real)
    else:
        attention = attention_squared_error(actual, found, real, rows)
    hidden = torch.stack(
        [
            state_error(transfer(narrow), wide, rows)
            for transfer, narrow, wide in zip(network.transfer_hidden, run.hidden, target.hidden, strict=True)
        ]
    ).mean()
    prediction = run.logits.new_zeros(())
    if not network.backbone.embeds:  # the narrow network's vector has a width of its own
        prediction = weights.prediction * prediction_error(run.logits, target.logits)
    return ApproximationLoss(
        attention=weights.attention * attention,
        hidden=weights.hidden * hidden,
        embedding=weights.embedding * state_error(network.transfer_embedding(run.hidden[0]), target.hidden[0], rows),
        prediction=prediction,
    )


def resize_flat(values: Tensor, shape: torch.Size) -> Tensor:
    """`values` flattened, resized by nearest neighbour to the length of `shape`, and given that shape."""
    return F.interpolate(values.reshape(1, 1, -1), size=shape.numel(), mode="nearest").reshape(shape)
