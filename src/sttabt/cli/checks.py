"""Checks that need all settings at once or a range: run once, before anything is built. Imports no torch."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sttabt.errors import UserError, nearest
from sttabt.settings import CHOICES, STAGES, Settings, TrainingSettings

GIVEN_BY_DATASET = {"img_size": "image_size", "in_chans": "channels", "num_classes": "classes"}
STATED_BY_MODEL = {"embed_dim": "width", "depth": "depth", "num_heads": "heads", "patch_size": "patch_size"}

Rule = tuple[str, Callable[[float], bool]]


def at_least(low: float) -> Rule:
    return f"at least {low}", lambda value: value >= low


ABOVE_ZERO: Rule = ("above 0", lambda value: value > 0)
SHARE: Rule = ("between 0 and 1", lambda value: 0 <= value <= 1)
SHARE_ABOVE_ZERO: Rule = ("above 0 and at most 1", lambda value: 0 < value <= 1)
SHARE_BELOW_ONE: Rule = ("at least 0 and below 1", lambda value: 0 <= value < 1)
INNER_SHARE: Rule = ("above 0 and below 1", lambda value: 0 < value < 1)

TRAINING: dict[str, Rule] = {
    "epochs": at_least(0),
    "learning_rate": ABOVE_ZERO,
    "final_learning_rate": at_least(0),
    "weight_decay": at_least(0),
    "warmup_epochs": at_least(0),
    "clip": at_least(0),
    "label_smoothing": SHARE_BELOW_ONE,
}
RANGES: dict[str, Rule] = {
    "model.width": at_least(1),
    "model.depth": at_least(1),
    "model.heads": at_least(1),
    "model.patch_size": at_least(1),
    "dataset.image_size": at_least(1),
    "dataset.channels": at_least(1),
    "dataset.classes": at_least(2),
    "dataset.validation_share": INNER_SHARE,
    "dataset.split_seed": at_least(0),
    "approx.factor": at_least(1),
    "approx.attention_weight": at_least(0),
    "approx.hidden_weight": at_least(0),
    "approx.embedding_weight": at_least(0),
    "approx.prediction_weight": at_least(0),
    "sparsity.keep_ratio": SHARE_ABOVE_ZERO,
    "sparsity.merged": at_least(0),
    "sparsity.seed": at_least(0),
    "sparsity.propagation": SHARE,
    "sparsity.temperature": ABOVE_ZERO,
    "sparsity.lambda_p": at_least(0),
    "sparsity.lambda_mask": at_least(0),
    "sparsity.mask_weight": at_least(0),
    "sparsity.threshold_rate": at_least(0),
    "sparsity.distillation": at_least(0),
    "sparsity.hard_from": SHARE,
    "sparsity.p_logit_rate": at_least(0),
    "hardware.devices": ("1, as training on several devices is not supported yet", lambda value: value == 1),
    "hardware.batch_size": at_least(1),
    "hardware.accumulate": at_least(1),
    "hardware.workers": at_least(0),
    "hardware.threads": at_least(0),
    "evaluation.batch_size": at_least(1),
    "evaluation.timing_batch": at_least(1),
    "evaluation.timing_rounds": at_least(0),
    "evaluation.gallery": at_least(0),
    "seed": at_least(0),
    "fast_dev_run": at_least(0),
    **{f"{node}.training.{name}": rule for node in ("model", "approx", "sparsity") for name, rule in TRAINING.items()},
}


def check(settings: Settings) -> None:
    """Raises UserError for the first setting that cannot work, naming it, its value and what it may be."""
    values = dict(_leaves(asdict(settings)))
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value} is not a finite number: give one")
    for key, (text, holds) in RANGES.items():
        if key in values and not holds(values[key]):
            raise UserError(f"{key}={values[key]} is out of range: it must be {text}")
    for key, choices in CHOICES.items():
        if key in values:
            _choose(key, values[key], choices)
    _choose("dataset.source", settings.dataset.source, _sources())
    if not settings.stages:
        raise UserError(f"stages=[] leaves nothing to do: name some of {', '.join(STAGES)}")
    for stage in settings.stages:
        _choose("stages", stage, STAGES)
    if "report" in settings.stages and "evaluate" not in settings.stages:
        raise UserError(f"stages={settings.stages} reports on nothing: add evaluate, or leave report out")
    for node, training in _trainings(settings):
        if 0 < training.epochs <= training.warmup_epochs:
            raise UserError(
                f"{node}.training.warmup_epochs={training.warmup_epochs} leaves nothing of"
                f" {node}.training.epochs={training.epochs}: warm up for less, or train for longer"
            )
    _check_model(settings)
    _check_files(settings)


def without_effect(settings: Settings, overrides: Iterable[str]) -> Iterator[str]:
    """One line for every override of the command line (`key=value`) that changes nothing in this job."""
    sparsity, training = settings.sparsity, settings.model.training
    method = sparsity.method
    approximate = method == "concrete" or getattr(sparsity, "attention", None) == "approximate"
    trained = not (settings.model.pretrained or settings.model.checkpoint)
    # (a key or a node, whether it has an effect, why not)
    uses = (
        ("approx", approximate, f"{method} uses no approximate network here"),
        ("skip_approx", approximate, f"{method} uses no approximate network here"),
        ("model.training", trained, "the base model's weights are given, so the base stage trains nothing"),
        ("sparsity.keep_ratio", not getattr(sparsity, "dynamic", False), "sparsity.dynamic=true chooses the count"),
        ("dataset.path", settings.dataset.source != "digits", "digits come with scikit-learn"),
        ("evaluation.timing_batch", settings.evaluation.timing_rounds > 0, "evaluation.timing_rounds=0 times nothing"),
        ("logger.project", settings.logger.kind.startswith("wandb"), f"logger.kind={settings.logger.kind} has none"),
        ("model.training.warmup_epochs", training.epochs > 0, "model.training.epochs=0 trains nothing"),
    )
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        for node, effective, reason in uses:
            if not effective and (key == node or key.startswith(f"{node}.")) and override != "skip_approx=false":
                yield f"{override} has no effect: {reason}"


def _check_model(settings: Settings) -> None:
    model, dataset, factor = settings.model, settings.dataset, settings.approx.factor
    for name, value in model.arguments.items():
        key = f"model.arguments.{name}"
        if name in GIVEN_BY_DATASET:
            raise UserError(f"{key}={value}: set dataset.{GIVEN_BY_DATASET[name]} instead, which the model follows")
        stated = STATED_BY_MODEL.get(name)
        if stated and value != getattr(model, stated):
            raise UserError(f"{key}={value} contradicts model.{stated}={getattr(model, stated)}: change both")
    if model.width % model.heads:
        raise UserError(f"model.width={model.width} is no multiple of model.heads={model.heads}: choose one that is")
    if dataset.image_size % model.patch_size:
        raise UserError(
            f"model.patch_size={model.patch_size} does not divide dataset.image_size={dataset.image_size}:"
            " choose one that does"
        )
    head_width = model.width // model.heads
    if head_width % factor:
        valid = ", ".join(str(f) for f in range(1, head_width + 1) if head_width % f == 0)
        raise UserError(
            f"approx.factor={factor} does not divide the head width {head_width}"
            f" (model.width={model.width}, model.heads={model.heads}): choose one of: {valid}"
        )
    if model.pretrained and model.checkpoint:
        raise UserError(f"model.checkpoint={model.checkpoint} needs model.pretrained=false: one of them gives weights")


def _check_files(settings: Settings) -> None:
    checkpoint, dataset = settings.model.checkpoint, settings.dataset
    if checkpoint and not Path(checkpoint).is_file():
        raise UserError(f"model.checkpoint={checkpoint} is no file: give a weights file")
    if dataset.source != "image_folder":
        return
    if not dataset.path:
        raise UserError("dataset.path is missing: give dataset.path=FOLDER, one with train/ and val/")
    for folder in (Path(dataset.path), Path(dataset.path) / "train", Path(dataset.path) / "val"):
        if not folder.is_dir():
            raise UserError(f"dataset.path={dataset.path}: {folder} is no folder: give one with train/ and val/")
    for part in ("train", "val"):
        if not any(entry.is_dir() for entry in (Path(dataset.path) / part).iterdir()):
            raise UserError(f"dataset.path={dataset.path}: {part}/ is empty: it must hold one folder of images a class")


def _trainings(settings: Settings) -> Iterator[tuple[str, TrainingSettings]]:
    for node in ("model", "approx", "sparsity"):
        training = getattr(getattr(settings, node), "training", None)
        if training is not None:
            yield node, training


def _choose(key: str, value: str, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    if value not in choices:
        raise UserError(f"{key}={value} is unknown: {nearest(value, choices)}")


def _sources() -> list[str]:
    folder = Path(__file__).parents[1] / "data"
    return [module.name for module in pkgutil.iter_modules([str(folder)]) if module.name != "base"]


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        full = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{full}.")
        else:
            yield full, value
