"""What all tests share: one thread a process, no hub, small models and images."""

from __future__ import annotations

import copy
import logging
import os
import signal
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_SILENT", "true")

from collections.abc import Iterator

import pytest
import torch
from transformers import BertConfig

from long.trials import DONE
from sttabt.backbones.base import Backbone
from sttabt.backbones.bert import Bert
from sttabt.backbones.registry import adapters
from sttabt.backbones.text import EXAMPLE_SIZES, TextBackbone, example_text
from sttabt.cli.composition import compose_settings
from sttabt.models.approximate import ApproximateNetwork
from sttabt.pipeline.stages import run_stages
from sttabt.store.job import Job
from sttabt.testing import contract
from sttabt.testing import models as testing
from sttabt.testing.models import examples, make_example

torch.set_num_threads(1)
contract.count_fused_attention()

LVVIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "stem_width": 8}  # arguments of build_lvvit
LENGTHS = (9, 2, 13, 6)  # tokens of the example texts; the third is the longest
TEXTS = tuple(sorted(name for kind in adapters() if kind.may_pad for name in kind.examples()))
VISION = tuple(sorted(set(examples()) - set(TEXTS)))
POOLING = (  # examples whose head reads no class token
    *("attention_pool", "bert_mean", "clip", "mean_of_patches", "siglip", "siglip_embedding"),
)
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


def make_text_model(name: str, **changes: object) -> TextBackbone:
    """The example of that name with changes to the library's configuration; random weights, as the library starts."""
    example: Any = examples()[name]().model
    config = copy.deepcopy(example.model.config)
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(7)
    return type(example).from_config(config)


def set_dropouts(base: Backbone) -> None:
    """Another rate for every dropout, so that none can stand in another's place."""
    for number, module in enumerate(m for m in base.modules() if isinstance(m, torch.nn.Dropout)):
        module.p = 0.15 + 0.01 * number


def make_backbone(name: str) -> Backbone:
    """The example of that name."""
    return make_example(name).model


def new_backbone(name: str) -> Any:
    """The example of that name with weights as the library starts them."""
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


@pytest.fixture(autouse=True)
def small_numbers() -> Iterator[None]:
    """A run lets its process take the smallest numbers for 0 (sttabt.lit.launch): no test hands that to the next."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(params=[*VISION, *TEXTS])
def backbone_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[name for name in (*VISION, *TEXTS) if name not in POOLING])
def class_token_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=VISION)
def vision_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Whatever a test sets: sums of two threads differ from those of one in their last bits."""
    yield
    torch.set_num_threads(1)


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


@pytest.fixture
def hears_signals() -> Iterator[None]:
    """Processes that a test starts hear Ctrl-C and SIGHUP, also where a shell or `nohup` told pytest to ignore them."""
    ignored = [each for each in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(each) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


DEVICE = os.environ.get("DEVICE", "cuda")  # where tests marked gpu run
NO_GPU = "there is no CUDA device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu run where there is one. With DEVICE=cpu those that ask for `device` run there instead."""
    for item in items:
        rehearsed = DEVICE == "cpu" and "device" in getattr(item, "fixturenames", ())
        if item.get_closest_marker("gpu") and not (rehearsed or torch.cuda.is_available()):
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Of a test marked gpu. Single precision there is that of float32: convolutions would take TF32 by themselves."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device(DEVICE)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What a skip in a list of many would not tell."""
    skipped = terminalreporter.stats.get("skipped", [])
    if missed := [report for report in skipped if report.longrepr[2].endswith(NO_GPU)]:
        terminalreporter.section("NOTHING RAN ON A GPU", red=True, bold=True)
        terminalreporter.write_line(f"{len(missed)} tests were skipped, as {NO_GPU}: DEVICE=cpu rehearses most of them")
    if pages := [report for report in skipped if "no browser" in report.longrepr[2]]:
        terminalreporter.section("PAGES WERE NOT TESTED", red=True, bold=True)
        terminalreporter.write_line(
            f"{len(pages)} tests of the report's page and of the docs in a browser were skipped: install chromium and"
            " chromium-driver, or run `make browser` as root"
        )
    if DONE:
        terminalreporter.section("trials: rows of docs/RELIABILITY.md")
        for trials in DONE:
            terminalreporter.write_line(trials.line())


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of every stage's artifact, of a model that learned nothing."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = compose_settings(
            ["experiment=debug", "logger=none", "sparsity=concrete", "stages=[base,approx,prune]"],
            output=str(folder / "output"),
        )
        run_stages(settings, Job(command="test", sweep="sweep", multirun=False, commit="0123"))
    return {stage: next((folder / "artifacts" / stage).glob("*/")) for stage in ("base", "approx", "prune")}
