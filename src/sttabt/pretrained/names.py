"""Parameters of a backbone under the names of official checkpoints and of published files.

Adapters that are not registered here (those of other packages) keep the names of their own library.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.backbones.lvvit import LvVit, fold_branches
from sttabt.backbones.text import TextBackbone
from sttabt.backbones.vit import ViT
from sttabt.pretrained import vit_names
from sttabt.pretrained.states import load_views, without_unused


def official_state(backbone: Backbone) -> dict[str, Tensor]:
    """The parameters themselves under the official implementation's names: views, not copies."""
    return official_names(backbone, backbone.model.state_dict())


def load_official_state(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    """Load what `official_state` gives, strictly; raises UserError naming what does not fit."""
    load_views(without_unused(state), official_state(backbone))


@singledispatch
def official_names(backbone: Backbone, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values by parameter name (weights, gradients) under the official names, fused projections taken apart."""
    return backbone.parts(values)


@official_names.register
def _(backbone: ViT, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return vit_names.to_official(values)


@official_names.register
def _(backbone: TextBackbone, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    encoder = f"{backbone.model.base_model_prefix}."
    return {name.removeprefix(encoder): value for name, value in values.items()}


@singledispatch
def from_released(backbone: Backbone, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under the names of `backbone.model`, changed to what it holds where the two differ."""
    return dict(state)


@from_released.register
def _(backbone: ViT, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return vit_names.from_official(state) if vit_names.is_official(state) else dict(state)


@from_released.register
def _(backbone: LvVit, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Folds skip_lam, and leaves the auxiliary head out where it takes no part."""
    if vit_names.is_official(state):
        own, skip_lam = vit_names.from_official(state), 1.0
    else:
        own, skip_lam = dict(state), backbone.sizes.skip_lam
    if not backbone.reads_survivors:
        own = {name: value for name, value in own.items() if not name.startswith("aux_head.")}
    return fold_branches(own, skip_lam)
