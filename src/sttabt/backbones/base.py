"""What the engines need from a transformer encoder. N tokens, D width, H heads, L layers, T rows of any layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sttabt import native
from sttabt.core.cost import Architecture
from sttabt.errors import UserError

Rows = Callable[[Tensor], Tensor]  # picks the rows that a layer writes from those that it reads


class Backbone(nn.Module, ABC):
    """An encoder cut into the steps between which tokens can go.

    Rows stand in the last but one dimension: (B, N, D), or (T, D) when samples of different length are packed.
    The first `outputs` tokens are those that the head reads; they are never dropped.
    """

    model: Any  # the library's own module; weight files use its names
    head_prefixes: tuple[str, ...]  # what the names of the parameters that depend on the classes begin with, in `model`
    head_is_new: bool = False  # the weights are pretrained, but they came without a head for these classes
    normalised_by: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean, std of pretraining's images
    architecture: Architecture
    tokens: int  # tokens of one sample, class token included; of text, whose length varies, the most that it may have
    outputs: int
    may_pad: bool = False  # whether samples of a batch may differ in length
    grid: tuple[int, int]  # rows and columns of patches; (0, 0) for text
    reads_survivors: bool = False  # the head reads every token that is left, so that the last layer writes them all
    own_start: tuple[str, ...] = ("classifier.",)  # official names that an interpolated start does not take over

    @property
    def layers(self) -> int:
        return self.architecture.layers

    @property
    def heads(self) -> int:
        return self.architecture.heads

    @property
    def attention_dropout(self) -> float:
        """Share of the attention probabilities that training drops at random; 0 in evaluation mode."""
        return 0.0

    def read_call(self, inputs: Any) -> tuple[Any, Callable[[Tensor], Any]]:
        """What a call of the original model with these arguments asks for.

        Returns the inputs as the engines read them, and what makes of logits that which the original returns.
        """
        return inputs, lambda logits: logits

    @abstractmethod
    def real(self, inputs: Any) -> Tensor:
        """Which tokens are real, (B, N) bool; False on padding."""

    def prepare(self, inputs: Any) -> Any:
        """Inputs with what is computed of them whole, whichever tokens are kept: a convolutional stem's output.

        What it gives may stand for the inputs everywhere, so that several networks share it. Twice is as once.
        """
        return inputs

    def samples(self, inputs: Any) -> list[Tensor]:
        """What each sample of a batch is made of, without padding and whatever `prepare` added."""
        return list(inputs)

    @abstractmethod
    def embed(self, inputs: Any) -> Tensor:
        """All tokens, (B, N, D), as the first layer reads them."""

    @abstractmethod
    def embed_tokens(self, inputs: Any, sample: Tensor, token: Tensor) -> Tensor:
        """Only the tokens (sample[t], token[t]), (T, D): what nobody reads is not embedded."""

    @abstractmethod
    def qkv(self, layer: int, x: Tensor, written: Rows | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the written rows, keys and values of all rows of x; width D each, heads not split."""

    @abstractmethod
    def queries_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys alone: all that a trace needs of a last layer."""

    @abstractmethod
    def project(self, layer: int, x: Tensor, attended: Tensor, gate: Tensor | None = None) -> Tensor:
        """Output projection and residual on the written rows x; `attended` has the width D of x.

        gate: a factor a row (..., 1) on the projection's output: soft masks (METHOD section 3).
        """

    @abstractmethod
    def feed_forward(self, layer: int, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Feed-forward and residual.

        gate: as in `project`, on the intermediate before its activation and on the output.
        """

    def finish(self, layer: int, x: Tensor, attended: Tensor, gate: Tensor | None = None) -> Tensor:
        """The rest of the layer on the written rows."""
        return self.feed_forward(layer, self.project(layer, x, attended, gate), gate)

    def native_encoder(self, x: Tensor) -> native.Encoder | None:
        """All layers in one call on packed rows x (T, D), by the kernels of sttabt.native; None where they cannot.

        Not under torch.compile, which joins more.
        """
        if torch.compiler.is_compiling() or self.attention_dropout or not native.fits(x):
            return None
        layers = [layer for layer in map(self._native_layer, range(self.layers)) if layer is not None]
        return native.make_encoder(self, layers) if len(layers) == self.layers else None

    def _native_layer(self, layer: int) -> native.Layer | None:
        """None where the layer is not made as the kernels compute it."""
        return None

    @abstractmethod
    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        """Logits (B, classes) from what the last layer wrote, (B, n, D), the output tokens first.

        alive: (B, n) bool, which rows are tokens that are left; None for all. It matters to `reads_survivors` alone.
        """

    @abstractmethod
    def embeddings(self) -> list[nn.Parameter]:
        """What the paper's recipe freezes while it prunes: class token and position embedding; nothing of text."""

    @abstractmethod
    def narrow(self, factor: int, share_stem: bool = False) -> Backbone:
        """A new encoder of the same depth and heads, `factor` times narrower, with random weights.

        share_stem: where this one has a convolutional stem, read what `prepare` gives of it, instead of owning a
        narrow one.
        Raises UserError when the factor does not divide the width of a head.
        """

    def from_released(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published weights under the names of `model`, changed to what it holds where the two differ."""
        return dict(state)

    def fit_positions(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of `model` whose position embedding is of this many tokens, where it can be resized."""
        return dict(state)

    @abstractmethod
    def official_names(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values by parameter name (weights, gradients) under the official names, fused projections taken apart."""

    @abstractmethod
    def official_state(self) -> dict[str, Tensor]:
        """The parameters themselves under the official implementation's names: views, not copies."""

    @abstractmethod
    def load_official_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `official_state` gives, strictly; raises UserError naming what does not fit."""


def check_factor(sizes: Architecture, factor: int) -> None:
    """Raise UserError unless `factor` divides the width of a head."""
    if factor < 1 or sizes.width % (factor * sizes.heads):
        raise UserError(
            f"approx.factor={factor} does not divide the width of a head ({sizes.width}/{sizes.heads}"
            f" = {sizes.width // sizes.heads}): choose a divisor of {sizes.width // sizes.heads}"
        )
