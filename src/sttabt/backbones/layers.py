"""What a transformer layer is made of, for an engine that computes it by itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn


class EncoderLayer(NamedTuple):
    """The modules of a layer whose feed-forward is narrow(activation(widen(x))).

    block: the module that holds them all. inputs: one linear layer that gives queries, keys and values, or three.
    first, second: the norms at the attention and at the feed-forward; norm_first: they stand before their branch,
    otherwise behind its sum. scales: what multiplies the outputs of the two branches (layer scale), where they have
    that. dropouts: what drops at random in training.
    """

    block: nn.Module
    inputs: tuple[Any, ...]
    join: Any
    widen: Any
    activation: nn.Module
    narrow: Any
    first: Any
    second: Any
    norm_first: bool
    dropouts: tuple[nn.Module, ...] = ()
    scales: tuple[nn.Module, ...] = ()
