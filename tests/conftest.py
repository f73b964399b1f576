"""What all tests share: one thread a process, no hub, small models and images."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

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
from sttabt.backbones.text import EXAMPLE_SIZES, example_text
from sttabt.models.approximate import ApproximateNetwork
from sttabt.testing import models as testing
from sttabt.testing.models import examples, make_example

torch.set_num_threads(1)

LVVIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "stem_width": 8}  # arguments of build_lvvit
LENGTHS = (9, 2, 13, 6)  # tokens of the example texts; the third is the longest
TEXTS = ("bert", "distilbert")  # the example backbones of text
VISION = tuple(sorted(set(examples()) - set(TEXTS)))
BERT = {
    **EXAMPLE_SIZES,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


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
    """The example of that name."""
    return make_example(name).model


def new_vision(name: str) -> Any:
    """A small vision backbone, as it starts."""
    torch.manual_seed(7)
    return examples()[name]().model


def factor_of(name: str) -> int:
    """Of its approximate network."""
    return examples()[name]().factor


def make_approx(base: Backbone, name: str) -> ApproximateNetwork:
    """An approximate network of `base`, which is the example of that name."""
    return testing.make_approx(make_example(name)._replace(model=base))


def make_images(name: str, batch: int = 4) -> torch.Tensor:
    """The example's images, or as many others of their shape."""
    inputs = make_inputs(name)
    return torch.randn(batch, *inputs.shape[1:], generator=torch.Generator().manual_seed(3))


def make_inputs(name: str) -> Any:
    """Four images, or four texts of unequal length."""
    return examples()[name]().inputs


make_text = example_text


@pytest.fixture(params=[*VISION, *TEXTS])
def backbone_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=VISION)
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
