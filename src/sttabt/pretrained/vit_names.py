"""Names of a vision transformer's parameters: timm's, and those of Hugging Face transformers' files.

The latter are the official STTABT implementation's, too, and what transformers 4 and 5 write. Projections that timm
fuses (qkv) are apart there. Of LV-ViT's convolutional stem no official name is known: it keeps its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sttabt.backbones.vit import QKV, split_qkv

ENCODERS = ("vit.", "deit.", "bert.")  # what files have before the names; of the approximate network it is `bert.`
POOLER = "pooler."  # of a transformers model without a classifier; nothing reads it

_OUTER = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "head": "classifier",
}
_DISTILLED = {**_OUTER, "head": "cls_classifier", "head_dist": "distillation_classifier"}
_INNER = {
    "attn.query": "attention.attention.query",
    "attn.key": "attention.attention.key",
    "attn.value": "attention.attention.value",
    "attn.proj": "attention.output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_STEM = ("patch_embed.", "embeddings.patch_embeddings.")


def to_official(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's names to the official ones; parts of a fused projection are views of it."""
    outer = _DISTILLED if any(name.startswith("head_dist.") for name in values) else _OUTER
    return {_to_official(name, outer): value for name, value in split_qkv(values).items()}


def is_official(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of transformers' files and not timm's."""
    return any(".layer." in name or name.removeprefix("vit.").startswith("embeddings.") for name in names)


def from_official(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official names to timm's, fused projections put together; a name that is not known stays as it is."""
    ours: dict[str, Tensor] = {}
    for name, value in values.items():
        name = re.sub(rf"^({'|'.join(map(re.escape, ENCODERS))})", "", name)
        if not name.startswith(POOLER):
            ours[_from_official(name)] = value
    for query in [name for name in ours if ".attn.query." in name]:
        block, kind = query.split("attn.query.")
        parts = [f"{block}attn.{part}.{kind}" for part in QKV]
        if all(part in ours for part in parts) and len({ours[part].shape for part in parts}) == 1 and ours[query].ndim:
            ours[f"{block}attn.qkv.{kind}"] = torch.cat([ours.pop(part) for part in parts])
    return ours


def _to_official(name: str, outer: Mapping[str, str]) -> str:
    if found := re.match(r"blocks\.(\d+)\.(.+)$", name):
        return f"encoder.layer.{found[1]}.{_swap(found[2], _INNER)}"
    swapped = _swap(name, outer)
    return _STEM[1] + name.removeprefix(_STEM[0]) if swapped == name and name.startswith(_STEM[0]) else swapped


def _from_official(name: str) -> str:
    if found := re.match(r"encoder\.layer\.(\d+)\.(.+)$", name):
        return f"blocks.{found[1]}.{_swap(found[2], {theirs: ours for ours, theirs in _INNER.items()})}"
    swapped = _swap(name, {theirs: ours for ours, theirs in (_OUTER | _DISTILLED).items()} | {"classifier": "head"})
    return _STEM[0] + name.removeprefix(_STEM[1]) if swapped == name and name.startswith(_STEM[1]) else swapped


def _swap(name: str, names: Mapping[str, str]) -> str:
    """`name` with its module's name replaced: all of it, or all but its last part (weight, bias)."""
    if name in names:
        return names[name]
    module, _, kind = name.rpartition(".")
    return f"{names[module]}.{kind}" if module in names else name
