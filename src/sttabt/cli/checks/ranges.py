"""What a setting may be by itself: a rule for each number, a list for each name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sttabt.errors import UserError, nearest
from sttabt.settings import METRICS, TRAININGS

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
    "epoch_share": SHARE_ABOVE_ZERO,
    "learning_rate": ABOVE_ZERO,
    "final_learning_rate": at_least(0),
    "weight_decay": at_least(0),
    "warmup_epochs": at_least(0),
    "grad_clip_norm": at_least(0),
    "label_smoothing": SHARE_BELOW_ONE,
    "global_batch_size": at_least(0),
    "mixup": at_least(0),
    "cutmix": at_least(0),
    "mix_share": SHARE_ABOVE_ZERO,
}
RANGES: dict[str, Rule] = {
    "model.width": at_least(1),
    "model.depth": at_least(1),
    "model.heads": at_least(1),
    "model.patch_size": at_least(0),
    "model.crop": SHARE_ABOVE_ZERO,
    "dataset.image_size": at_least(0),
    "dataset.channels": at_least(1),
    "dataset.classes": at_least(1),
    "dataset.max_tokens": at_least(0),
    "dataset.validation_share": INNER_SHARE,
    "dataset.test_share": INNER_SHARE,
    "dataset.split_seed": at_least(0),
    "dataset.broken_share": SHARE_BELOW_ONE,
    "dataset.augmentation.scale": SHARE_ABOVE_ZERO,
    "dataset.augmentation.flip": SHARE,
    "dataset.augmentation.erasing": SHARE,
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
    "sparsity.ema": SHARE_BELOW_ONE,
    "hardware.devices": at_least(1),
    "hardware.nodes": at_least(1),
    "hardware.batch_size": at_least(1),
    "hardware.accumulate_grad_batches": at_least(1),
    "hardware.workers": at_least(0),
    "hardware.threads": at_least(0),
    "evaluation.batch_size": at_least(1),
    "evaluation.timing_batch": at_least(1),
    "evaluation.timing_rounds": at_least(0),
    "evaluation.gallery": at_least(0),
    "seed": at_least(0),
    "fast_dev_run": at_least(0),
    **{f"{node}.{name}": rule for node in TRAININGS.values() for name, rule in TRAINING.items()},
}

CHOICES: dict[str, tuple[str, ...]] = {
    "dataset.task": tuple(METRICS),
    "dataset.metric": tuple(metric for metrics in METRICS.values() for metric in metrics),
    "dataset.augmentation.erasing_mode": ("const", "rand", "pixel"),
    "approx.attention_loss": ("kldiv", "tinybert"),
    "approx.start": ("interpolated", "random", "general"),
    "approx.stem": ("own", "shared"),
    "sparsity.attention": ("approximate", "actual"),
    "hardware.accelerator": ("cpu", "gpu", "cuda"),
    "hardware.precision": ("32-true", "16-mixed", "bf16-mixed"),
    "logger.kind": ("wandb_offline", "wandb_online", "tensorboard", "csv", "none"),
    "resume": ("auto", "never"),
}


def check_values(values: Mapping[str, Any]) -> None:
    """Every number is within its range, every name among its choices; `values` has them by full key."""
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value} is not a finite number: give one")
    for key, (text, holds) in RANGES.items():
        if key in values and not holds(values[key]):
            raise UserError(f"{key}={values[key]} is out of range: it must be {text}")
    for key, choices in CHOICES.items():
        if key in values:
            check_choice(key, values[key], choices)


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    if value not in choices:
        raise UserError(f"{key}={value} is unknown: {nearest(value, choices)}")
