"""What all tests share: one thread a process, no hub, small models and images."""

from __future__ import annotations

import logging
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_SILENT", "true")

from collections.abc import Iterator

import pytest
import torch
from transformers import BertConfig, DistilBertConfig

from sttabt.backbones.base import Backbone
from sttabt.backbones.bert import Bert
from sttabt.backbones.distilbert import DistilBert
from sttabt.backbones.vit import ViT
from sttabt.core.text import Text
from sttabt.models.approximate import ApproximateNetwork
from sttabt.pretrained.lvvit import build_lvvit
from sttabt.pretrained.timm_model import build_timm

torch.set_num_threads(1)

LVVIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "stem_width": 8}

# Every vision backbone variant that an adapter promises to prune: (timm name or lvvit, arguments, channels, size,
# factor).
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
    "lvvit": ("lvvit", LVVIT, 3, 32, 2),
    "lvvit_shared_stem": ("lvvit", {**LVVIT, "depth": 2}, 1, 24, 4),
    "lvvit_auxiliary": ("lvvit", LVVIT, 3, 32, 2),
}

BERT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "num_labels": 5,
}
TEXTS = ("bert", "distilbert")  # the backbones of text
TEXT_FACTOR = 4
LENGTHS = (9, 2, 13, 6)  # tokens of the texts; the third is the longest


def make_bert(**changes: object) -> Bert:
    """Random weights, as the library starts them."""
    torch.manual_seed(7)
    return Bert.from_config(BertConfig(**{**BERT, **changes}))


def make_distilbert(**changes: object) -> DistilBert:
    """As make_bert, of the same sizes."""
    torch.manual_seed(7)
    names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
    sizes = {(names | {"intermediate_size": "hidden_dim"}).get(name, name): value for name, value in BERT.items()}
    return DistilBert.from_config(DistilBertConfig(**{**sizes, **changes}))


def make_backbone(name: str) -> Backbone:
    """A small backbone with weights far enough from their start that its attention differs from row to row."""
    torch.manual_seed(7)
    if name in TEXTS:
        base: Backbone = make_bert() if name == "bert" else make_distilbert()
    else:
        base = new_vision(name)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for buffer in base.buffers():  # of batch norms: mean and variance
            if buffer.is_floating_point():
                buffer.add_(0.5 * torch.rand_like(buffer))
    return base.eval()


def new_vision(name: str) -> ViT:
    """A small vision backbone, as it starts."""
    kind, arguments, channels, size, _ = BACKBONES[name]
    if kind == "lvvit":
        return build_lvvit("small", arguments, 5, channels, size, auxiliary=name == "lvvit_auxiliary")
    return build_timm(kind, arguments, classes=5, channels=channels, image_size=size)


def factor_of(name: str) -> int:
    return TEXT_FACTOR if name in TEXTS else BACKBONES[name][4]


def make_approx(base: Backbone, name: str) -> ApproximateNetwork:
    torch.manual_seed(8)
    network = ApproximateNetwork(base, factor_of(name), share_stem=name == "lvvit_shared_stem")
    network.start_from(base)
    return network.eval()


def make_images(name: str, batch: int = 4) -> torch.Tensor:
    _, _, channels, size, _ = BACKBONES[name]
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(3))


def make_inputs(name: str) -> torch.Tensor | Text:
    """Four images, or four texts of unequal length."""
    return make_text() if name in TEXTS else make_images(name)


def make_text(lengths: tuple[int, ...] = LENGTHS) -> Text:
    """Texts of these lengths, of two parts each; what stands on padding is as arbitrary as the rest."""
    generator = torch.Generator().manual_seed(5)
    shape = (len(lengths), max(lengths))
    ids = torch.randint(1, BERT["vocab_size"], shape, generator=generator)
    real = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    types = (torch.arange(shape[1]) >= torch.tensor(lengths)[:, None] // 2).long()
    return Text(ids, types, real)


def pick(inputs: torch.Tensor | Text, samples: slice | torch.Tensor) -> torch.Tensor | Text:
    """These samples of a batch, padded as they are."""
    return Text(*(field[samples] for field in inputs)) if isinstance(inputs, Text) else inputs[samples]


def one_by_one(inputs: torch.Tensor | Text) -> list[torch.Tensor | Text]:
    """A batch a sample, without padding."""
    if not isinstance(inputs, Text):
        return list(inputs.split(1))
    return [
        Text(*(field[index : index + 1, :length] for field in inputs))
        for index, length in enumerate(inputs.real.sum(-1).tolist())
    ]


def pad_text(text: Text, more: int) -> Text:
    """`more` places of padding behind the longest text, with arbitrary ids."""
    batch = len(text.ids)
    return Text(
        torch.cat([text.ids, torch.full((batch, more), 7)], 1),
        torch.cat([text.types, torch.ones(batch, more, dtype=torch.long)], 1),
        torch.cat([text.real, torch.zeros(batch, more, dtype=torch.bool)], 1),
    )


@pytest.fixture(params=[*sorted(BACKBONES), *TEXTS])
def backbone_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=sorted(BACKBONES))
def vision_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has its own folder, and gets back the log handlers that Hydra replaces."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
