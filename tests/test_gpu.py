"""On one GPU: the contract in single precision and in bfloat16, agreement with the official implementation, training.

`make gpu` runs these; DEVICE=cpu rehearses them without one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import SkipTest

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import Subset

from sttabt.cli.composition import compose_settings
from sttabt.core.plan import TokenPlan
from sttabt.data import load_splits
from sttabt.data.base import Splits
from sttabt.data.images import AugmentedImages
from sttabt.data.task import Task
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.lit.data import StageData
from sttabt.lit.fit import _together, fit
from sttabt.lit.launch import ALONE, launch
from sttabt.lit.modules import Approximation, BaseTraining, Pruning
from sttabt.lit.stage import TrainingStage
from sttabt.methods import find_method
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.fixed import FixedModel
from sttabt.models.pruned import PrunedModel
from sttabt.parity.__main__ import check_folder
from sttabt.pipeline.evaluation import evaluate
from sttabt.pretrained.timm_model import build_timm
from sttabt.settings import Settings
from sttabt.testing import contract
from sttabt.testing.models import make_example, make_pruned

pytestmark = pytest.mark.gpu

HALF = 0.05  # of the largest logit: bfloat16 has 8 bits, and layers add up what each rounds
# Two backbones a family, as a card is there for minutes: those that every example of a method's settings runs on, and
# those that the first one of each method does.
WHOLLY = ("digits", "bert")
ONCE = ("distilled", "lvvit", "lvvit_auxiliary", "siglip", "mean_of_patches", "transformers_deit", "clip", "electra")
GOLDEN = Path(__file__).parent / "golden"
ARCHITECTURE = {"patch_size": 7, "embed_dim": 64, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
TASK = Task("accuracy", 10)
STAGES = ("base", "approx", "prune")
FITTED = [
    *("name=test", "dataset=digits", "hardware.batch_size=16", "logger=none", "model.training.epochs=2"),
    *("approx.training.epochs=2", "sparsity.training.epochs=2", "model.training.warmup_epochs=0"),
    *("approx.training.warmup_epochs=0", "sparsity.training.warmup_epochs=0"),
]


def _near(found: Tensor, expected: Tensor, share: float) -> None:
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= share, f"{float(error):.1e} of the largest"


# --- the contract


def _cases() -> list[contract.Case]:
    found = contract.cases()
    first = {case.method: case.settings for case in reversed(found)}
    once = [case for case in found if case.backbone in ONCE and case.settings == first[case.method]]
    return [case for case in found if case.backbone in WHOLLY] + once


@pytest.mark.parametrize(
    "check", [check for check in contract.CHECKS if "frozen" not in check.__name__], ids=lambda check: check.__name__
)
@pytest.mark.parametrize("case", _cases(), ids=str)
def test_every_method_keeps_the_contract(case: contract.Case, check: Any, device: torch.device) -> None:
    there = replace(case, device=device.type)
    if refusal := there.refusal():
        pytest.skip(refusal)
    check(there)


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", _cases(), ids=str)
@torch.inference_mode()
def test_half_precision_is_near_single_precision(case: contract.Case, weights: str, device: torch.device) -> None:
    """Under the plan that the run in bfloat16 chose; by autocast, or with weights that were cast."""
    there = replace(case, device=device.type)
    if refusal := there.refusal():
        pytest.skip(refusal)
    model, example = there.make()
    if "masked" not in model.forms():
        raise SkipTest(f"{model.method.title} has no masked form to compare with")
    exact, inputs = model.base, example.inputs
    if weights == "bfloat16":
        model, other = there.make()
        model, inputs = model.to(torch.bfloat16), _half(other.inputs)
    with torch.autocast(device.type, torch.bfloat16, enabled=weights == "float32"):
        run = model.run(inputs)
        masked = run_masked(model.base, inputs, run.plan)
    assert isinstance(run.plan, TokenPlan) and run.logits.isfinite().all()
    expected = run_masked(exact, example.inputs, run.plan)
    _near(run.logits, expected, HALF)
    _near(masked, expected, HALF)


def _half(inputs: Any) -> Any:
    return inputs.to(torch.bfloat16) if isinstance(inputs, Tensor) else inputs


def test_every_quantity_agrees_with_the_official_implementation(device: torch.device) -> None:
    checks = list(check_folder(GOLDEN, device.type))
    assert len(checks) > 400
    assert [str(check) for check in checks if check.failed] == []


@torch.inference_mode()
def test_logits_are_those_of_the_cpu(backbone_name: str, device: torch.device) -> None:
    example = make_example(backbone_name)
    model = make_pruned(example, "concrete")
    run = model.run(example.inputs)
    there, moved = contract.Case("concrete", backbone_name, device=device.type).make()
    expected = run_dropped(there.base, moved.inputs, replace(run.plan, lifetime=run.plan.lifetime.to(device)))
    _near(expected.cpu(), run.logits, contract.NEAR_ELSEWHERE)


@torch.inference_mode()
def test_a_stem_has_channels_side_by_side_on_a_gpu(device: torch.device) -> None:
    example = make_example("lvvit")
    features = example.model.to(device).prepare(example.inputs.to(device)).features
    last = device.type == "cuda"
    assert features.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    _near(features.cpu(), make_example("lvvit").model.prepare(example.inputs).features, contract.NEAR_ELSEWHERE)


# --- compiled


@torch.inference_mode()
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_fixed_counts_are_one_compiled_graph(precision: torch.dtype, device: torch.device) -> None:
    """On a GPU replayed as a CUDA graph: three times, since the first two passes warm up and capture."""
    example = make_example("digits")
    model = FixedModel(make_pruned(example, "backtracking", counts=[50, 40, 20])).to(device, precision)
    images = example.inputs.to(device, precision)
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    compiled: Any = torch.compile(model, fullgraph=True, dynamic=False, mode=mode)
    expected = model(images)
    for _ in range(3):
        _near(compiled(images).clone(), expected, contract.NEAR_ELSEWHERE if precision == torch.float32 else HALF)


# --- training


@pytest.fixture(scope="module")
def splits() -> Splits:
    """64 images to train on, augmented, and 32 to validate."""
    whole = load_splits(compose_settings(FITTED).dataset)
    train: Any = whole.train
    few = AugmentedImages(train.source, train.indices[:64], train.transform, seed=0)
    return replace(whole, train=few, validation=Subset(whole.validation, range(32)))


def _settings(device: torch.device, *overrides: str) -> Settings:
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    return compose_settings([*FITTED, f"hardware.accelerator={accelerator}", *overrides])


def _stage(stage: str, settings: Settings) -> TrainingStage:
    torch.manual_seed(1)
    base = build_timm("test_vit", ARCHITECTURE, classes=10, channels=1, image_size=28)
    if stage == "base":
        return BaseTraining(base, settings.model.training, TASK)
    network = ApproximateNetwork(base, settings.approx.factor)
    network.start_from(base)
    if stage == "approx":
        return Approximation(network, base, settings.approx, TASK)
    method = find_method(settings.sparsity.method)(settings.sparsity, 3, 1)
    return Pruning(PrunedModel(base, method, network), base, settings.sparsity, TASK)


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_of_a_step_are_those_of_the_cpu(stage: str, splits: Splits, device: torch.device) -> None:
    settings = _settings(device)
    batch = next(iter(StageData(splits, settings, stage).train))
    gradients = []
    for place in (torch.device("cpu"), device):
        module = _stage(stage, settings).to(place)
        torch.manual_seed(0)
        moved = move_data_to_device(batch, place)
        module.eval()  # without dropout, as two devices draw different numbers from one seed
        sum(module.terms(moved).values()).backward()
        own = {name: value.grad.cpu() for name, value in module.trained.named_parameters() if value.grad is not None}
        gradients.append(own)
    expected, found = gradients
    assert expected.keys() == found.keys() and expected
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-3 * largest, name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains(stage: str, precision: str, splits: Splits, tmp_path: Path, device: torch.device) -> None:
    settings = _settings(device, f"hardware.precision={precision}", "hardware.workers=2")
    module = _stage(stage, settings)
    before = {name: value.clone() for name, value in module.trained.state_dict().items()}
    fitted = fit(module, splits, settings, tmp_path, [])
    assert fitted.epochs == 2 and fitted.metrics[f"{stage}/samples_per_second"] > 0
    after = module.trained.state_dict()
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    assert any(not torch.equal(before[name], value.cpu()) for name, value in after.items())


def test_compiled_steps_train(splits: Splits, tmp_path: Path, device: torch.device) -> None:
    settings = _settings(device, "hardware.compile=true")
    losses = {}
    for compiled in ("true", "false"):
        settings = _settings(device, f"hardware.compile={compiled}")
        fitted = fit(_stage("base", settings), splits, settings, tmp_path / compiled, [])
        losses[compiled] = fitted.metrics["base/loss"]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_ddp_of_one_process_is_training_alone(stage: str, splits: Splits, tmp_path: Path, device: torch.device) -> None:
    """Over NCCL on a GPU: its set-up, weights that are broadcast and gradients that are reduced, by one process."""
    settings = _settings(device)
    alone = _stage(stage, settings)
    fit(alone, splits, settings, tmp_path, [])
    found = launch(_train_together, (stage, splits, settings), settings.hardware, ALONE, f"one-{stage}")
    start, expected = _weights(_stage(stage, settings)), _weights(alone)
    assert found.keys() == expected.keys()
    moved = sum((expected[name] - value).square().sum() for name, value in start.items())
    apart = sum((found[name] - value).square().sum() for name, value in expected.items())
    assert moved > 0 and apart <= 1e-2 * moved  # AdamW makes a step of what rounding makes of a gradient near 0


class _Wrapped(L.Callback):
    """Whether the training was one by DDP."""

    seen = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen = isinstance(trainer.strategy.model, nn.parallel.DistributedDataParallel)


def _train_together(stage: str, splits: Splits, settings: Settings) -> dict[str, Tensor]:
    """What `fit` does in each of several processes, in one. Lightning's own choice for one would be no DDP."""
    module, data = _stage(stage, settings), StageData(splits, settings, stage)
    L.seed_everything(settings.seed, workers=True, verbose=False)
    training, wrapped = module.training_settings, _Wrapped()
    trainer = L.Trainer(
        accelerator=settings.hardware.accelerator,
        devices=1,
        strategy=_together(module),
        max_epochs=training.epochs,
        gradient_clip_val=training.grad_clip_norm or None,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[wrapped],
        plugins=[TorchElasticEnvironment()],
        logger=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=data)
    assert wrapped.seen
    return _weights(module)


def _weights(module: TrainingStage) -> dict[str, Tensor]:
    return {name: value.detach().double().cpu() for name, value in module.trained.named_parameters()}


# --- evaluation


@pytest.mark.parametrize("method", ["concrete", "forward_topk", "tome"])
def test_scores_are_those_of_the_cpu(method: str, splits: Splits, device: torch.device) -> None:
    torch.manual_seed(1)
    base = build_timm("test_vit", ARCHITECTURE, classes=10, channels=1, image_size=28)
    found = []
    for place in ("cpu", device):
        model = make_pruned(make_example("digits")._replace(model=base), method).to(place)
        found.append(evaluate(model, splits.validation, TASK, batch_size=20))
    expected, there = found
    assert there.samples == expected.samples == 32
    assert there.macs == pytest.approx(expected.macs, rel=0.05)
    assert there.occupancy == pytest.approx(expected.occupancy, abs=0.02)
