"""What training does: learning rates, which weights move, and that no failure passes for a result."""

from __future__ import annotations

import io
import logging
import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Subset

from sttabt.backbones.vit import ViT
from sttabt.cli.composition import compose_settings
from sttabt.data import load_splits
from sttabt.data.base import Batch, Splits
from sttabt.data.images import AugmentedImages
from sttabt.data.task import Task
from sttabt.errors import UserError
from sttabt.lit.checkpoint import BEFORE, LAST, AtomicCheckpointIO, newest
from sttabt.lit.fit import fit
from sttabt.lit.modules import Approximation, BaseTraining, Pruning
from sttabt.lit.stage import TrainingStage, warmup_cosine
from sttabt.methods import find_method
from sttabt.methods.base import TunedMethod
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.pruned import PrunedModel
from sttabt.pretrained.timm_model import build_timm
from sttabt.settings import Settings, TunedSettings, method_names, method_settings

ARCHITECTURE = {"patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
RATE = "training.learning_rate=0.01"
TASK = Task("accuracy", 10)


def _settings(*overrides: str) -> Settings:
    common = ["name=test", "dataset=digits", "hardware.batch_size=16", "logger=none", "sparsity.training.epochs=1"]
    return compose_settings([*common, "sparsity.training.warmup_epochs=0", f"sparsity.{RATE}", *overrides])


@pytest.fixture(scope="module")
def splits() -> Splits:
    """32 images to train on, augmented, and 16 to validate."""
    whole = load_splits(_settings().dataset)
    train: Any = whole.train
    few = AugmentedImages(train.source, train.indices[:32], train.transform, seed=0)
    return replace(whole, train=few, validation=Subset(whole.validation, range(16)))


def _base() -> ViT:
    torch.manual_seed(1)
    base = build_timm("test_vit", ARCHITECTURE, classes=10, channels=1, image_size=28)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return base


def _stage(stage: str, settings: Settings) -> TrainingStage:
    base = _base()
    if stage == "base":
        return BaseTraining(base, settings.model.training, TASK)
    network = ApproximateNetwork(base, settings.approx.factor)
    network.start_from(base)
    if stage == "approx":
        return Approximation(network, base, settings.approx, TASK)
    method = find_method(settings.sparsity.method)(settings.sparsity, 2, 1)
    return Pruning(PrunedModel(base, method, network), base, settings.sparsity, TASK)


def _batch() -> Batch:
    torch.manual_seed(2)
    return Batch(torch.randn(6, 1, 28, 28), torch.arange(6))


def _values(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _moved(module: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


# --- learning rates and weight decay


@pytest.mark.parametrize(
    ("step", "warmup", "final", "expected"),
    [
        (0, 4, 0.0, 0.25),
        (3, 4, 0.0, 1.0),
        (4, 4, 0.0, 1.0),
        (7, 4, 0.0, 0.5),
        (7, 4, 0.1, 0.55),
        (6, 4, 0.0, 0.75),  # (1 + cos 60 degrees) / 2
        (10, 4, 0.1, 0.1),
        (12, 4, 0.1, 0.1),
        (0, 0, 0.0, 1.0),
        (5, 0, 0.2, 0.6),
        (9, 10, 0.0, 1.0),
    ],
)
def test_warmup_and_cosine_of_ten_steps(step: int, warmup: int, final: float, expected: float) -> None:
    assert warmup_cosine(step, 10, warmup, final) == pytest.approx(expected)


def test_compiled_steps_have_the_same_losses(splits: Splits, tmp_path: Path) -> None:
    losses = []
    for compiled in ("false", "true"):
        settings = _settings("model.training.epochs=6", f"hardware.compile={compiled}")
        settings.fast_dev_run = 1  # one step: from the second on, Adam makes small differences as large as the rate
        module = _stage("base", settings)
        before = _values(module.trained)
        fit(module, splits, settings, tmp_path / compiled, [])
        assert hasattr(module.terms, "_torchdynamo_orig_callable") == (compiled == "true")
        assert _moved(module.trained, before)
        losses.append(float(module.trainer.callback_metrics["base/loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("stage", ["base", "approx", "prune"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_steps_on_a_cpu_attend_by_products_in_bf16_alone(
    stage: str, precision: str, splits: Splits, tmp_path: Path
) -> None:
    settings = _settings("sparsity=concrete", f"hardware.precision={precision}", "hardware.accelerator=cpu")
    settings.fast_dev_run = 1
    module = _stage(stage, settings)
    with profile(activities=[ProfilerActivity.CPU]) as traced:
        fit(module, splits, settings, tmp_path, [])
    fused = {event.key for event in traced.key_averages() if "flash_attention_for_cpu_backward" in event.key}
    assert bool(fused) == (precision == "32-true")


def test_optimiser_groups(splits: Splits, tmp_path: Path) -> None:
    overrides = ("sparsity.training.weight_decay=0.3", "sparsity.training.final_learning_rate=0.001")
    settings = _settings(*overrides, "sparsity.p_logit_rate=10", "sparsity.training.epochs=2")
    module = _stage("prune", settings)
    fit(module, splits, settings, tmp_path, [])
    groups = module.trainer.optimizers[0].param_groups
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed, plain, logits = ([names[id(parameter)] for parameter in group["params"]] for group in groups)
    assert logits == ["trained.method.p_logit"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0, 0.0]
    assert [group["initial_lr"] for group in groups] == pytest.approx([0.01, 0.01, 0.1])
    assert [group["lr"] for group in groups] == pytest.approx([0.001, 0.001, 0.01]), "the cosine ends at the final rate"
    assert not [name for name in decayed if "bias" in name or "norm" in name]
    embeddings = {f"trained.approx.backbone.model.{name}" for name in ("cls_token", "pos_embed")}
    assert embeddings == {name for name in plain if "bias" not in name and "norm" not in name}
    grouped = [*decayed, *plain, *logits]
    assert len(set(grouped)) == len(grouped)
    frozen = {"trained.base.model.cls_token", "trained.base.model.pos_embed"}
    assert set(grouped) == {name for name in names.values() if name.startswith("trained.")} - frozen, (
        "everything but the teacher and the embeddings"
    )


# --- what moves


def _gradients(hard_from: float) -> tuple[dict[str, Tensor], Pruning]:
    """Gradients by name where there is any that is not zero."""
    settings = _settings(f"sparsity.hard_from={hard_from}")
    module = _stage("prune", settings).train()
    assert isinstance(module, Pruning)
    terms = module.terms(_batch())
    torch.stack(list(terms.values())).sum().backward()
    named = module.named_parameters()
    gradients = {name: one.grad for name, one in named if one.grad is not None and one.grad.abs().max() > 0}
    return gradients, module


def test_soft_masks_send_gradients_to_logits_base_and_approximate_network() -> None:
    gradients, module = _gradients(hard_from=1)
    assert (gradients["trained.method.p_logit"] != 0).all()
    assert "trained.base.model.blocks.0.attn.qkv.weight" in gradients
    assert "trained.base.model.head.weight" in gradients
    assert "trained.approx.backbone.model.patch_embed.proj.weight" in gradients
    assert "trained.approx.backbone.model.blocks.1.attn.qkv.weight" in gradients
    assert not [name for name in gradients if name.startswith("teacher")]
    assert set(module.terms(_batch())) == {"task", "p_logit", "keep", "distillation"}


def test_hard_masks_send_gradients_to_the_base_model_alone() -> None:
    gradients, module = _gradients(hard_from=0)
    assert all(name.startswith("trained.base.") for name in gradients)
    assert "trained.base.model.blocks.0.attn.qkv.weight" in gradients
    assert set(module.terms(_batch())) == {"task", "distillation"}


TUNED = {
    "random": [], "forward_topk": [], "backtracking": [], "backtracking_actual": [], "tome": ["sparsity.merged=2"],
    "pitome": ["sparsity.keep_ratio=0.6"], "class_attention": [], "evit": [], "ats": [], "cascade": [],
}  # fmt: skip


def test_all_that_can_be_tuned_are_known() -> None:
    kinds = {name for name in method_names() if issubclass(method_settings(name), TunedSettings)}
    assert kinds == set(TUNED) - {"backtracking_actual"}
    assert all(issubclass(find_method(name), TunedMethod) for name in kinds)


@pytest.mark.parametrize("method", TUNED)
def test_tuning_sends_gradients_to_the_base_model_alone(method: str) -> None:
    """The same as those of finite differences, where the choice does not change: of one weight of each layer."""
    settings = _settings(f"sparsity={method}", *TUNED[method], "sparsity.distillation=0.5")
    module = _stage("prune", settings).double().train()
    batch = _batch()
    batch = batch._replace(inputs=batch.inputs.double())

    def loss() -> Tensor:
        return torch.stack(list(module.terms(batch).values())).sum()

    loss().backward()
    weights = {name: weight for name, weight in module.named_parameters() if weight.grad is not None}
    assert all(name.startswith("trained.base.") for name in weights)
    for layer in (0, 1):
        weight = weights[f"trained.base.model.blocks.{layer}.mlp.fc2.weight"]
        assert weight.grad is not None
        place = divmod(int(weight.grad.abs().argmax()), weight.shape[1])
        with torch.no_grad():
            weight[place] += 1e-6
            above = loss()
            weight[place] -= 2e-6
            below = loss()
            weight[place] += 1e-6
        assert float(weight.grad[place]) == pytest.approx(float(above - below) / 2e-6, rel=1e-4)


def _terms(*overrides: str) -> dict[str, float]:
    terms = _stage("prune", _settings("sparsity.p_logit=1", *overrides)).terms(_batch())
    return {name: float(term.detach()) for name, term in terms.items()}


def test_terms_are_weighted_as_the_settings_say() -> None:
    single = _terms("sparsity.lambda_mask=100", "sparsity.distillation=0.5")
    double = _terms("sparsity.lambda_mask=200", "sparsity.distillation=2")
    assert single["distillation"] > 0, "masks change the prediction"
    assert double == pytest.approx(single | {"keep": 2 * single["keep"], "distillation": 4 * single["distillation"]})
    assert "distillation" not in _terms("sparsity.distillation=0")


def test_distilling_leaves_the_base_model_as_it_is(splits: Splits, tmp_path: Path) -> None:
    settings = _settings("approx.training.epochs=1", f"approx.{RATE}")
    base = _base()
    network = ApproximateNetwork(base, 4)
    before, start = _values(base), _values(network)
    module = Approximation(network, base, settings.approx, TASK)
    module.train()
    assert not any(each.training for each in module.base.modules())
    assert not any(parameter.requires_grad for parameter in module.base.parameters())
    fit(module, splits, settings, tmp_path, [])
    assert not _moved(module.base.module, before)
    assert not _moved(base, before)
    assert all(parameter.requires_grad for parameter in base.parameters()), "a later stage trains it"
    assert {"transfer_hidden.0.weight", "transfer_embedding.weight"} <= _moved(network, start)
    assert "backbone.model.blocks.1.attn.qkv.weight" in _moved(network, start)


@pytest.mark.parametrize("hard_from", [1, 0])
def test_pruning_moves_everything_but_the_teacher(hard_from: int, splits: Splits, tmp_path: Path) -> None:
    settings = _settings(f"sparsity.hard_from={hard_from}")
    module = _stage("prune", settings)
    assert isinstance(module, Pruning)
    teacher, trained = _values(module.teacher), _values(module.trained)
    fit(module, splits, settings, tmp_path, [])
    assert not _moved(module.teacher, teacher)
    assert not module.teacher.module.training
    moved = _moved(module.trained, trained)
    assert "base.model.blocks.0.attn.qkv.weight" in moved
    assert ("method.p_logit" in moved) == (hard_from == 1)
    assert any(name.startswith("approx.") for name in moved) == (hard_from == 1)


def test_thresholds_learn_on_the_soft_run_and_then_stay(splits: Splits, tmp_path: Path) -> None:
    overrides = ("sparsity=ltp", "sparsity.hard_from=0.5", "sparsity.threshold_rate=0.1", "sparsity.temperature=0.05")
    settings = _settings(*overrides, "sparsity.training.epochs=4")
    module = _stage("prune", settings)
    assert isinstance(module, Pruning) and module.teacher is None, "nothing is distilled unless asked for"
    start = module.trained.method.threshold.detach().clone()
    seen: list[tuple[Tensor, Tensor]] = []

    def look(*_: object) -> None:
        weight = module.trained.base.model.blocks[0].attn.qkv.weight
        seen.append((module.trained.method.threshold.detach().clone(), weight.detach().clone()))

    module.on_train_epoch_end = look
    fit(module, splits, settings, tmp_path, [])
    thresholds, weights = zip(*seen, strict=True)
    assert thresholds[0][0] > start[0], "the loss raises it"
    assert not torch.equal(thresholds[1][0], thresholds[0][0])
    assert torch.equal(thresholds[2], thresholds[1]) and torch.equal(thresholds[3], thresholds[1])
    assert not torch.equal(weights[3], weights[2]), "the weights go on"
    assert set(module.terms(_batch())) == {"task"}


# --- failures


@pytest.mark.parametrize(
    ("steps", "where"),
    [(2, r"epoch 0, step 1 \(task=nan\)"), (1, r"the end of step 1 \(model\.\S+ is not finite\)")],
)
def test_a_training_that_diverges_ends_the_stage(steps: int, where: str, splits: Splits, tmp_path: Path) -> None:
    rates = ("model.training.learning_rate=3e37", "model.training.weight_decay=10", "model.training.warmup_epochs=0")
    settings = _settings(*rates, f"fast_dev_run={steps}")
    module = _stage("base", settings)
    with torch.no_grad():
        module.trained.model.head.weight.fill_(5)  # 5 * 3e37 * 10 is no number of 32 bits
    expected = rf"training diverged in stage base, {where}: lower model.training\.learning_rate=3e\+37 or set model"
    with pytest.raises(UserError, match=expected):
        fit(module, splits, settings, tmp_path, [])


class _StopsInEpoch(Pruning):
    """Ends as a full disk or a lost machine would end it."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 2:
            raise OSError("the machine is gone")


@pytest.mark.parametrize("method", ["concrete", "ltp"])
def test_an_interrupted_pruning_ends_as_if_it_had_not_been(
    method: str, splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    epochs = ("sparsity.training.epochs=4", "sparsity.hard_from=0.75", "sparsity.training.warmup_epochs=1")
    settings = _settings(f"sparsity={method}", *epochs)
    whole = _stage("prune", settings)
    fit(whole, splits, settings, tmp_path / "whole", [])
    interrupted = _stage("prune", settings)
    interrupted.__class__ = _StopsInEpoch
    with pytest.raises(OSError, match="the machine is gone"):
        fit(interrupted, splits, settings, tmp_path / "halved", [])
    torch.manual_seed(99)  # another process would have another state
    again = _stage("prune", settings)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        fit(again, splits, settings, tmp_path / "halved", [])
    assert "resumes from" in caplog.messages[0]
    assert [message.split()[1] for message in caplog.messages[1:]] == ["3/4", "4/4"]
    assert not _moved(again.trained, _values(whole.trained))


def test_resume_never_begins_again(splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = _settings("model.training.epochs=2", "model.training.warmup_epochs=0")
    first, second, third = (_stage("base", settings) for _ in range(3))
    fit(first, splits, settings, tmp_path, [])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        fit(second, splits, settings, tmp_path, [])
    assert ["resumes" in message for message in caplog.messages] == [True], "there is nothing left to train"
    caplog.clear()
    settings.resume = "never"
    with caplog.at_level(logging.INFO):
        fit(third, splits, settings, tmp_path, [])
    assert [message.split()[1] for message in caplog.messages] == ["1/2", "2/2"]
    assert not _moved(second.trained, _values(first.trained))
    assert not _moved(third.trained, _values(first.trained))


def test_a_checkpoint_truncated_or_changed_anywhere_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = tmp_path / LAST
    AtomicCheckpointIO().save_checkpoint({"epoch": 1, "weights": torch.rand(50_000)}, checkpoint)
    whole = checkpoint.read_bytes()
    for size in (0, 1, 5, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        checkpoint.write_bytes(whole[:size])
        assert newest(tmp_path) is None and f"{LAST} is damaged and is set aside" in caplog.messages[-1]
    generator = random.Random(0)
    found = 0
    for _ in range(200):
        content = bytearray(whole)
        content[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        checkpoint.write_bytes(content)
        if newest(tmp_path) is None:
            found += 1
        else:  # a byte that pads: nothing that is read
            assert _equal_checkpoints(torch.load(checkpoint, weights_only=True), whole)
    assert found > 150
    checkpoint.write_bytes(whole)
    assert newest(tmp_path) == checkpoint


def _equal_checkpoints(found: dict[str, Any], whole: bytes) -> bool:
    expected = torch.load(io.BytesIO(whole), weights_only=True)
    return found["epoch"] == expected["epoch"] and torch.equal(found["weights"], expected["weights"])


@contextmanager
def _full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    writer, path = AtomicCheckpointIO(), tmp_path / LAST
    writer.save_checkpoint({"epoch": 1, "weights": torch.ones(50_000)}, path)
    old = path.read_bytes()
    with _full_disk(100_000), pytest.raises(UserError, match=r"last\.ckpt: there is no room for it \(File too large\)"):
        writer.save_checkpoint({"epoch": 2, "weights": torch.zeros(50_000)}, path)
    assert path.read_bytes() == old
    assert torch.load(path, weights_only=True)["epoch"] == 1
    writer.save_checkpoint({"epoch": 3, "weights": torch.zeros(50_000)}, path)
    assert torch.load(path, weights_only=True)["epoch"] == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == [BEFORE, LAST], "no half of a file stays"
    assert torch.load(tmp_path / BEFORE, weights_only=True)["epoch"] == 1


def test_the_bar_stays_in_one_line_of_80_columns(tmp_path: Path) -> None:
    size, small = "stty cols 80 rows 24", "fast_dev_run=3 sparsity=dense evaluation.timing_rounds=1 hydra.mode=RUN"
    command = f"{size}; {sys.executable} -m sttabt.run experiment=demo stages=[base] {small}"
    source = Path(__file__).parents[1] / "src"
    shown = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(source), "TERM": "xterm"},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=600,
    )
    assert shown.returncode == 0, shown.stdout
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.stdout))
    bars = [line for line in lines if "━" in line]
    assert any("accuracy: 0." in line for line in bars)
    assert any(line.startswith("Validation") for line in bars)
    assert all(len(line) <= 80 for line in bars)
    assert not any("…" in line for line in lines)
