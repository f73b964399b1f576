"""Settings of one training stage. Four nodes have them: model, approx (twice) and the methods that train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sttabt.settings.fields import ABOVE_ZERO, MISSING, SHARE_ABOVE_ZERO, SHARE_BELOW_ONE, at, at_least, setting


def _trains(settings: Any, path: str) -> str | None:
    node, _, _ = path.rpartition(".")
    return f"{node}.epochs=0 trains nothing" if at(settings, node).epochs == 0 else None


def _has_labels(settings: Any, path: str) -> str | None:
    if path.startswith("approx."):
        return "an approximation has no labels to smooth"
    if settings.dataset.task != "classification":
        return "a score has no classes to smooth"
    return _trains(settings, path)


def _mixes(settings: Any, path: str) -> str | None:
    node, _, _ = path.rpartition(".")
    training = at(settings, node)
    return None if training.mixup or training.cutmix else f"{node} mixes no images"


@dataclass
class TrainingSettings:
    """One training stage: AdamW with linear warm-up and cosine decay."""

    epochs: int = setting(MISSING, "epochs of training", at_least(0))
    epoch_share: float = setting(
        1.0, "share of the training samples that an epoch sees, others in each", SHARE_ABOVE_ZERO, when=_trains
    )
    learning_rate: float = setting(MISSING, "learning rate after the warm-up", ABOVE_ZERO, when=_trains)
    weight_decay: float = setting(0.05, "AdamW's weight decay", at_least(0), when=_trains)
    final_learning_rate: float = setting(0.0, "learning rate at the end of the cosine decay", at_least(0), when=_trains)
    warmup_epochs: float = setting(0.0, "epochs in which the learning rate rises linearly", at_least(0), when=_trains)
    grad_clip_norm: float = setting(0.0, "largest gradient norm; 0: no clipping", at_least(0), when=_trains)
    label_smoothing: float = setting(
        0.0, "share of a label that is spread over all classes", SHARE_BELOW_ONE, when=_has_labels
    )
    global_batch_size: int = setting(
        0,
        "samples a weight update; 0: hardware.batch_size * accumulate_grad_batches * devices * nodes",
        at_least(0),
        when=_trains,
    )
    mixup: float = setting(
        0.0,
        "images only: alpha of the Beta(alpha, alpha) that two images are blended by; 0: off. With cutmix on too, half"
        " of the mixed batches get the one, half the other",
        at_least(0),
        when=_trains,
    )
    cutmix: float = setting(
        0.0,
        "images only: alpha of the Beta(alpha, alpha) that gives the area pasted from another image; 0: off",
        at_least(0),
        when=_trains,
    )
    mix_share: float = setting(1.0, "share of the batches that are mixed", SHARE_ABOVE_ZERO, when=_mixes)
