"""What all tests share: one thread a process, no hub, small models and images."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_SILENT", "true")

import pytest
import torch

from sttabt.approx import ApproximateNetwork
from sttabt.backbones.vit import ViT, build_vit

torch.set_num_threads(1)

# Every backbone variant that the adapters promise to prune: (timm name, arguments, channels, image size, factor).
BACKBONES = {
    "test_vit": ("test_vit", {"patch_size": 8}, 3, 32, 2),
    "digits": ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3}, 1, 28, 4),
    "no_bias": (
        "vit_tiny_patch16_224",
        {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "qkv_bias": False},
        3,
        24,
        2,
    ),
    "layer_scale_registers": (
        "vit_tiny_patch16_224",
        {
            "patch_size": 8,
            "embed_dim": 32,
            "depth": 3,
            "num_heads": 2,
            "init_values": 0.5,
            "reg_tokens": 2,
            "no_embed_class": True,
        },
        3,
        32,
        4,
    ),
    "distilled": (
        "deit_tiny_distilled_patch16_224",
        {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
        3,
        32,
        2,
    ),
}


def make_backbone(name: str) -> ViT:
    """A small backbone with weights far enough from their start that its attention differs from row to row."""
    timm_name, arguments, channels, size, _ = BACKBONES[name]
    torch.manual_seed(7)
    base = build_vit(timm_name, arguments, classes=5, channels=channels, image_size=size)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return base.eval()


def make_approx(base: ViT, name: str) -> ApproximateNetwork:
    torch.manual_seed(8)
    network = ApproximateNetwork(base, BACKBONES[name][4])
    network.start_from(base)
    return network.eval()


def make_images(name: str, batch: int = 4) -> torch.Tensor:
    _, _, channels, size, _ = BACKBONES[name]
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=sorted(BACKBONES))
def backbone_name(request: pytest.FixtureRequest) -> str:
    return request.param
