"""How stages train: for how long, and in which steps."""

from __future__ import annotations

from collections.abc import Iterator

from sttabt.errors import UserError
from sttabt.settings import TRAININGS, Settings, TrainingSettings, processes_of, steps_of, training_of, update_size


def check_warmup(settings: Settings) -> None:
    """Warming up leaves epochs to train."""
    for node, training in trainings(settings):
        if 0 < training.epochs <= training.warmup_epochs:
            raise UserError(
                f"{node}.warmup_epochs={training.warmup_epochs} leaves nothing of"
                f" {node}.epochs={training.epochs}: warm up for less, or train for longer"
            )


def check_batch(settings: Settings) -> None:
    """Every weight update is made of equal steps, and of images in pairs where they are mixed."""
    hardware = settings.hardware
    for stage, node in TRAININGS.items():
        training = training_of(settings, stage)
        if training is None:
            continue
        update = update_size(settings, stage)
        size, steps = steps_of(update, hardware)
        unit = steps * processes_of(hardware)
        if size * unit != update:
            lower = f"{size * unit} or " if size else ""
            processes = processes_of(hardware)
            devices = f" on {processes} devices" if processes > 1 else ""
            raise UserError(
                f"{node}.global_batch_size={update} does not make {steps} equal steps{devices} of at most"
                f" hardware.batch_size={hardware.batch_size}: set {lower}{(size + 1) * unit}"
            )
        if (training.mixup or training.cutmix) and size % 2:
            setting = (
                f"{node}.global_batch_size={update}"
                if training.global_batch_size
                else f"hardware.batch_size={hardware.batch_size}"
            )
            raise UserError(
                f"{setting} makes {size} images a step, but {node}.mixup and cutmix blend pairs: choose one that makes"
                " an even number"
            )


def trainings(settings: Settings) -> Iterator[tuple[str, TrainingSettings]]:
    """Of every training that the method has its node and its settings."""
    for stage, node in TRAININGS.items():
        training = training_of(settings, stage)
        if training is not None:
            yield node, training


def mixing(settings: Settings) -> list[tuple[str, bool]]:
    """Of every training its node, and whether it mixes images."""
    return [(node, bool(training.mixup or training.cutmix)) for node, training in trainings(settings)]
