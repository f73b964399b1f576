"""Tokens masked: the whole computation stays, so that gradients reach the masks. For training, and as the reference."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.core.plan import SoftPlan, TokenPlan
from sttabt.engine.attention import attend_weighted

TINY = 1e-20  # keeps the logarithm of a mask that is 0, and its gradient, finite


def run_masked(backbone: Backbone, inputs: Any, plan: TokenPlan | SoftPlan, epsilon: float = TINY) -> Tensor:
    """Logits (B, classes) under a soft or a hard plan (STTABT section 3.3).

    The official implementation multiplies the attention probabilities by the mask and renormalises. Adding the
    mask's logarithm to the scores is the same and lets attention stay fused; epsilon=1e-7 is the term that it
    adds when it renormalises, where dropping tokens has none.
    """
    plan = plan.with_survivors() if backbone.reads_survivors else plan
    x = backbone.embed(inputs)
    real = backbone.real(inputs).to(x.dtype)  # the term is for tokens that are dropped: padding weighs nothing
    for layer in range(backbone.layers):
        read, write = (mask.to(x.dtype)[..., None] for mask in (plan.reads(layer), plan.writes(layer)))
        query, key, value = backbone.qkv(layer, x)
        log_weight = (read[..., 0] + epsilon * real).clamp_min(TINY).log()
        gated = query * write, key * read, value * read
        attended = attend_weighted(*gated, backbone.heads, log_weight, backbone.attention_dropout(layer))
        x = backbone.finish(layer, x, attended, gate=write)
    return backbone.head(x, plan.writes(backbone.layers - 1) >= 0.5)
