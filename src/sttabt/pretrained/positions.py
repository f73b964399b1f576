"""Position embeddings that were learned at another image size."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.backbones.vit import ViT

log = logging.getLogger(__name__)


def fit_positions(backbone: Backbone, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `backbone.model` whose position embedding is of its grid of patches.

    Where that of a vision transformer is of another square grid, it is resized by bicubic interpolation, with a
    warning in the log; otherwise the weights come back as they are.
    """
    state = dict(state)
    there = state.get("pos_embed")
    if not isinstance(backbone, ViT) or there is None:
        return state
    from timm.layers import resample_abs_pos_embed

    here, prefix = backbone.model.pos_embed, 0 if backbone.model.no_embed_class else backbone.outputs
    if there.shape == here.shape or there.ndim != 3 or there.shape[2] != here.shape[2]:
        return state
    side = math.isqrt(max(there.shape[1] - prefix, 0))
    if not side or side**2 + prefix != there.shape[1]:
        return state  # not of a square image: it will not fit
    state["pos_embed"] = resample_abs_pos_embed(there.float(), list(backbone.grid), [side, side], prefix)
    warn_of_positions((side, side), backbone.grid)
    return state


def warn_of_positions(there: tuple[int, int], here: tuple[int, int]) -> None:
    """Say that a position embedding was resized, from and to rows and columns of patches."""
    log.warning(
        "the weights' position embedding is resized from %dx%d to %dx%d patches: they were trained at another image"
        " size, so that accuracy is only what it was after fine-tuning at this one",
        *there,
        *here,
    )
