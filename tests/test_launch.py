"""Processes that train together: the same samples, the same weights, one mistake, one end, on one node or on two."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import TCPStore
from torch.utils.data import Subset

import sttabt
import sttabt.data.base as data
from sttabt.cli.composition import compose_settings
from sttabt.data import load_splits
from sttabt.data.base import Batch, Sequences, Splits, evaluation_loader, train_loader
from sttabt.data.images import AugmentedImages
from sttabt.data.task import Task
from sttabt.errors import UserError
from sttabt.lit.fit import fit
from sttabt.lit.launch import Nodes, free_port
from sttabt.lit.modules import BaseTraining, Pruning
from sttabt.lit.stage import TrainingStage
from sttabt.methods.concrete import Concrete
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.evaluation import find_device
from sttabt.pretrained.timm_model import build_timm
from sttabt.settings import HardwareSettings, Settings, steps_of, update_size
from sttabt.store.place import Place

PATIENCE = 300  # seconds, of a machine that is busy with more than this
SMALL = {"patch_size": 14, "embed_dim": 16, "depth": 1, "num_heads": 2}
RANKS = 3


def _settings(*overrides: str) -> Settings:
    common = ["name=test", "dataset=digits", "logger=none", "model.training.epochs=2", "model.training.warmup_epochs=0"]
    return compose_settings([*common, *overrides])


@pytest.fixture(scope="module")
def splits() -> Splits:
    """50 images to train on, augmented, and 15 to validate: two processes have unequal numbers of both."""
    whole = load_splits(_settings().dataset)
    train: Any = whole.train
    few = AugmentedImages(train.source, train.indices[:50], train.transform, seed=0)
    return replace(whole, train=few, validation=Subset(whole.validation, range(15)))


class Words(Sequences):
    """Item i is the number i, of a length of its own."""

    def __init__(self, items: int) -> None:
        self.lengths = np.random.default_rng(0).integers(3, 40, items)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Batch:
        return Batch(index, torch.tensor(index))

    def collate(self, items: Any) -> Batch:
        return Batch([item.inputs for item in items], torch.stack([item.labels for item in items]))


@pytest.fixture
def each_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    def ranks() -> Iterator[int]:
        for number in range(RANKS):
            monkeypatch.setattr(data, "rank", lambda number=number: number)
            yield number

    return ranks()  # type: ignore[return-value]


# --- samples


def test_processes_share_each_update_of_images(splits: Splits, each_rank: Iterator[int]) -> None:
    alone = train_loader(splits.train, 4, 0, seed=0, steps=2 * RANKS)
    alone.sampler.set_epoch(1)  # type: ignore[attr-defined]
    expected = np.array([index for _, index in alone.sampler]).reshape(-1, RANKS, 4)
    for number in each_rank:
        together = train_loader(splits.train, 4, 0, seed=0, steps=2, ranks=RANKS)
        together.sampler.set_epoch(1)  # type: ignore[attr-defined]
        own = [index for _, index in together.sampler]
        assert len(together) == len(list(together)) == len(expected)
        assert own == expected[:, number].flatten().tolist()


def test_processes_share_the_batches_of_texts(each_rank: Iterator[int]) -> None:
    words = Words(100)
    expected = [batch.labels.tolist() for batch in train_loader(words, 4, 0, seed=0, steps=RANKS)]
    for number in each_rank:
        loader = train_loader(words, 4, 0, seed=0, ranks=RANKS)
        own = [batch.labels.tolist() for batch in loader]
        assert len(loader) == len(own) and own == expected[number::RANKS]


@pytest.mark.parametrize("dataset", ["images", "texts"])
def test_evaluation_together_sees_every_item_once(dataset: str, splits: Splits, each_rank: Iterator[int]) -> None:
    items: Any = Subset(splits.test, range(100)) if dataset == "images" else Words(100)
    assert len(items) % RANKS
    seen = []
    for _ in each_rank:
        loader = evaluation_loader(items, 7, ranks=RANKS)
        own = list(loader.sampler)
        assert len(loader) == -(-len(own) // 7) == len(list(loader))
        seen += own
    assert sorted(seen) == list(range(len(items)))


def test_an_update_is_divided_among_processes() -> None:
    hardware = HardwareSettings(devices=4, nodes=2, batch_size=16)
    assert steps_of(512, hardware) == (16, 4)
    settings = _settings(
        "hardware.batch_size=8", "hardware.accumulate_grad_batches=3", "hardware.devices=2", "hardware.nodes=2"
    )
    assert update_size(settings, "base") == 8 * 3 * 4
    with pytest.raises(UserError, match="global_batch_size=30 does not make 1 equal steps on 4 devices of at most"):
        _settings("hardware.batch_size=8", "hardware.devices=4", "model.training.global_batch_size=30")
    with pytest.raises(UserError, match="2 validation samples are fewer than the 3 processes"):
        evaluation_loader(Words(2), 1, ranks=3)
    with pytest.raises(UserError, match="a weight update of 60 samples is more than the 50"):
        train_loader(Words(50), 20, 0, seed=0, ranks=3)


# --- training


def _module(stage: str, settings: Settings) -> TrainingStage:
    torch.manual_seed(0)
    base = build_timm("test_vit", SMALL, classes=10, channels=1, image_size=28)
    task = Task("accuracy", 10)
    if stage == "base":
        return BaseTraining(base, settings.model.training, task)
    method = Concrete(settings.sparsity, base.layers, base.outputs)
    return Pruning(PrunedModel(base, method, ApproximateNetwork(base, 4)), base, settings.sparsity, task)


@pytest.mark.parametrize("stage", ["base", "prune"])
def test_two_processes_train_as_one(stage: str, splits: Splits, tmp_path: Path) -> None:
    # The mask's weight is off: it is that of a batch's mean, which differs from the mean of two batches' losses.
    common = ("hardware.batch_size=8", "sparsity.lambda_mask=0", "sparsity.ema=0.9", "sparsity.training.epochs=2")
    common += ("sparsity.training.warmup_epochs=0", "sparsity.training.learning_rate=1e-3")
    alone, together = _settings(*common, "hardware.accumulate_grad_batches=2"), _settings("hardware=ddp_cpu", *common)
    one, two = _module(stage, alone), _module(stage, together)
    start = {name: value.clone() for name, value in two.trained.state_dict().items()}
    expected = fit(one, splits, alone, tmp_path / "one", [])
    found = fit(two, splits, together, tmp_path / "two", [])
    for name, value in one.trained.state_dict().items():
        torch.testing.assert_close(two.trained.state_dict()[name], value, atol=2e-6, rtol=1e-4)
    changed = sum(not torch.equal(value, start[name]) for name, value in two.trained.state_dict().items())
    assert changed > len(start) / 2
    key = f"{stage}/validation_accuracy"
    assert found.metrics[key] == pytest.approx(expected.metrics[key])
    assert (found.metrics[key] * 15) % 1 == pytest.approx(0, abs=1e-5), "of 15 images, none twice"


def test_several_processes_that_train_nothing_are_not_started(splits: Splits, tmp_path: Path) -> None:
    settings = _settings("hardware=ddp_cpu", "model.training.epochs=0")
    module = _module("base", settings)
    before = {name: value.clone() for name, value in module.trained.state_dict().items()}
    fit(module, splits, settings, tmp_path, [])
    assert all(torch.equal(before[name], value) for name, value in module.trained.state_dict().items())


def test_copies_of_images_share_what_is_broken_with_their_loaders(splits: Splits) -> None:
    copied = pickle.loads(pickle.dumps(splits.train))
    assert copied.broken.is_shared() and copied.broken.data_ptr() != splits.train.broken.data_ptr()  # type: ignore[attr-defined]


def test_a_mistake_in_a_process_is_one_here(splits: Splits, tmp_path: Path) -> None:
    settings = _settings("hardware=ddp_cpu", "hardware.batch_size=8", "model.training.learning_rate=1e30")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match=r"^training diverged in stage base, .*: lower model\.training\.learning_rate"):
        fit(_module("base", settings), splits, settings, tmp_path, [])
    assert signal.getsignal(signal.SIGTERM) == before


# --- commands

COMMAND = ("experiment=debug", "hardware.batch_size=16", "stages=[base]", "fast_dev_run=0", "model.training.epochs=4")


def _start(log: str, *overrides: str, **variables: str) -> subprocess.Popen:
    """The command in the background, with one thread a process; it writes what it says to a file."""
    paths = {"PYTHONPATH": str(Path(sttabt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sttabt.run", *COMMAND, *overrides]
    with Path(log).open("w") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **paths, **variables}
        )


def _weights(root: str) -> dict[str, Tensor]:
    (path,) = Path(root).glob("base/*/model.safetensors")
    return load_file(path)


def test_after_sigterm_it_resumes_to_the_weights_that_two_nodes_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = _start("first", "hardware=ddp_cpu", "paths.artifacts=one_node")
    deadline = time.monotonic() + PATIENCE
    while not list(Path("one_node").glob("base/*/last.ckpt")):
        assert first.poll() is None and time.monotonic() < deadline, Path("first").read_text()
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE) == 143, Path("first").read_text()
    assert "stage base was interrupted by SIGTERM: the same command resumes it" in Path("first").read_text()
    again = _start(
        "again", "logger=wandb_offline", "hardware=ddp_cpu", "hardware.batch_size=16", "paths.artifacts=one_node"
    )
    assert again.wait(PATIENCE) == 0, Path("again").read_text()
    assert "stage base resumes from" in Path("again").read_text()
    logged = [path.read_bytes() for path in Path("runs").rglob("*.wandb")]
    assert any(b"base/validation_accuracy" in content for content in logged), (
        "the processes log into the main one's run"
    )

    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    several = ("hardware.nodes=2", "paths.artifacts=two_nodes")
    nodes = [_start(f"node{number}", *several, **where, NODE_RANK=str(number)) for number in (0, 1)]
    for number, node in enumerate(nodes):
        assert node.wait(PATIENCE) == 0, Path(f"node{number}").read_text()
    expected, found = _weights("one_node"), _weights("two_nodes")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], value) for name, value in found.items())


# --- who is who


def test_a_node_finds_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NODEID", "SLURM_NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"hardware\.nodes=2 needs to know its nodes \('NODE_RANK' is missing"):
        Place.found(2)
    monkeypatch.setenv("MASTER_ADDR", "host")
    monkeypatch.setenv("MASTER_PORT", "7")
    monkeypatch.setenv("NODE_RANK", "2")
    with pytest.raises(UserError, match=r"NODE_RANK=2 is not among hardware\.nodes=2: they count from 0"):
        Place.found(2)
    assert Place.found(3) == Place(2, "host", 7)
    for name, value in {"SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "gpu[07-09]", "SLURM_JOB_ID": "20003"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.delenv("MASTER_PORT")
    monkeypatch.setenv("SLURM_NNODES", "4")
    with pytest.raises(UserError, match=r"hardware\.nodes=2 is not the 4 nodes of this SLURM job: set 4"):
        Place.found(2)
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert Place.found(2) == Place(1, "gpu07", 15_003)


def test_a_single_node_agrees_with_itself() -> None:
    nodes = Nodes(HardwareSettings(), "job")
    assert nodes.first and nodes.agree("what", "value") == "value"
    with nodes.making("it", True) as needed:
        assert needed
    with nodes.making("it", False) as needed:
        assert not needed


def test_what_fails_on_one_node_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    stores = [TCPStore("127.0.0.1", port, 2, number == 0, wait_for_workers=False) for number in (0, 1)]

    def node(number: int, job: str) -> Nodes:
        place = Place(number, "127.0.0.1", port)
        monkeypatch.setattr("sttabt.lit.launch._connected", lambda _: (place, stores[number]))
        return Nodes(HardwareSettings(nodes=2), job)

    with pytest.raises(OSError, match="full"), node(0, "a"):
        raise OSError("the disk is full")
    with pytest.raises(UserError, match="node 0 failed: its log says why"), node(1, "a") as second:
        second.agree("anything")
    with pytest.raises(OSError, match="full"), node(1, "b"):
        raise OSError("the disk is full")
    with pytest.raises(UserError, match="node 1 failed: its log says why"), node(0, "b") as first:
        assert first.agree("anything", "value") == "value"
    with node(1, "c"):
        pass
    with node(0, "c"):
        pass


def test_more_gpus_than_there_are_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoGpus:
        def __init__(self, **_: object) -> None:
            self.device = torch.device("cuda")

    monkeypatch.setattr("sttabt.pipeline.evaluation.Fabric", TwoGpus)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("gpu", 2).type == "cuda"
    with pytest.raises(UserError, match=r"hardware\.devices=8 is more than this machine's 2 GPUs: set 2 or fewer"):
        find_device("gpu", 8)
