"""Callbacks of every training (checkpoint, progress, measurements, unreadable images), and BestWeights, to choose."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, RichProgressBar
from torch import Tensor

from sttabt.errors import UserError, nearest
from sttabt.lit.loggers import ContinuedCSVLogger

NAMED = 10  # broken images that a line names
MEGABYTE = 2**20
WORD = 11  # characters of a metric's name in the bar
# In a checkpoint.
METRICS, STOPPED, SECONDS, BATCHES = "sttabt/metrics", "sttabt/stopped", "sttabt/seconds", "sttabt/batches"
TOGETHER = 10  # updates after which processes that train together ask each other whether a checkpoint is due

STATE = ("score", "epoch", "weights", "metrics")  # of BestWeights, in a checkpoint

log = logging.getLogger(__name__)


class BestWeights(Callback):
    """Keeps the weights of the epoch with the best `monitor`; the stage's artifact holds them instead of the last ones.

    Unlike Lightning's ModelCheckpoint they are a part of the checkpoint that a run resumes from, in one file, so that
    the best weights and the score that they won with cannot come from different interruptions.
    """

    state_key = "BestWeights"

    def __init__(self, monitor: str = "validation", mode: str = "max") -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode={mode} is unknown: choose max or min")
        self.monitor, self.mode = monitor, mode
        self.score, self.epoch = math.nan, 0
        self.weights: dict[str, Tensor] = {}
        self.metrics: dict[str, float] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            known = [name for name in trainer.callback_metrics if "/" in name]
            raise UserError(f"monitor={self.monitor} of BestWeights is not measured: {nearest(self.monitor, known)}")
        score = float(trainer.callback_metrics[self.monitor])
        better = score > self.score if self.mode == "max" else score < self.score
        if better or (math.isnan(self.score) and not math.isnan(score)):
            self.score, self.epoch = score, trainer.current_epoch + 1
            self.weights = {name: value.detach().cpu().clone() for name, value in pl_module.own_state().items()}
            self.metrics = {n: float(value) for n, value in trainer.callback_metrics.items() if "/validation_" in n}

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state_dict[name])

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weights that one kept, of a checkpoint that LastCheckpoint wrote; {} where there was none."""
        return checkpoint["callbacks"].get(cls.state_key, {}).get("weights", {})

    def describe(self) -> str:
        """`best by validation accuracy, epoch 3`: which weights these are."""
        return f"best by {self.monitor.rpartition('/')[2].replace('_', ' ')}, epoch {self.epoch}"


class LastCheckpoint(Checkpoint):
    """The checkpoint that a run resumes from: written at the end of each epoch, after every other callback, and every
    so many `minutes` between updates, where they are not 0.

    That of the last epoch is written when the training has ended, since a finished one is not resumed: Lightning then
    skips `on_train_end`, where a callback may still change weights. Beside what Lightning saves it holds the metrics so
    far, whether a callback has stopped the training, how many seconds it took, and how many batches of the epoch are
    done.

    metrics, seconds_before: of the checkpoint that was resumed from.
    """

    def __init__(self, file: Path, minutes: float = 0.0) -> None:
        self.file, self.minutes = file, minutes
        self.begun = self.saved = time.perf_counter()
        self.batches = 0
        self.metrics: dict[str, float] = {}
        self.seconds_before = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **named: Any) -> None:
        batches = self.batches = self.batches + 1
        if not self.minutes or batches % trainer.accumulate_grad_batches or trainer.is_last_batch:
            return
        due = time.perf_counter() - self.saved >= 60 * self.minutes
        if trainer.world_size > 1:
            if batches // trainer.accumulate_grad_batches % TOGETHER:
                return
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if due:
            trainer.save_checkpoint(self.file)
            self.saved = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.batches = 0
        if not trainer.should_stop and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            trainer.save_checkpoint(self.file)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.file)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[METRICS] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint[STOPPED] = trainer.should_stop
        checkpoint[BATCHES] = self.batches
        checkpoint[SECONDS] = self.seconds_before + time.perf_counter() - self.begun

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.metrics = checkpoint.get(METRICS, {})
        trainer.should_stop = checkpoint.get(STOPPED, False)
        self.seconds_before = checkpoint.get(SECONDS, 0.0)
        self.batches = checkpoint.get(BATCHES, 0)
        trainer.datamodule.train.skip(self.batches)  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, ContinuedCSVLogger):
                logger.continue_from(checkpoint["global_step"])


class Measurements(Callback):
    """Logs `<stage>/lr`, `<stage>/samples_per_second`, `<stage>/waiting_share` (of the epoch so far) and
    `<stage>/peak_memory_mb`.

    lr: of the first group of parameters. Samples are those of all processes; loading them counts, validation does not.
    The share is that of the time in which this process waited for its next batch: near 1 the processes that load decide
    how fast it goes, and a GPU is idle. Memory is that of the GPU, else of this process, in MiB. Lightning's own
    monitors give each its own prefix.
    """

    def __init__(self) -> None:
        self.begun, self.samples, self.rate = 0.0, 0, 0.0
        self.ended, self.waited = 0.0, 0.0  # of the last step; for batches of this epoch, in seconds

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = self.ended = time.perf_counter()  # of an epoch that goes on no start is told
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = self.ended = time.perf_counter()
        self.samples, self.waited = 0, 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun -= time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun += time.perf_counter()
        self.ended = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.waited += time.perf_counter() - self.ended
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.samples += len(batch.labels) * trainer.world_size
        passed = max(time.perf_counter() - self.begun, 1e-9)
        measured = {
            "lr": self.rate,
            "samples_per_second": self.samples / passed,
            "waiting_share": self.waited / passed,
            "peak_memory_mb": _peak_memory(pl_module.device) / MEGABYTE,
        }
        named = {f"{pl_module.stage}/{name}": float(value) for name, value in measured.items()}
        pl_module.log_dict(named, on_step=True, rank_zero_only=True, batch_size=len(batch.labels))
        self.ended = time.perf_counter()


class Bar(RichProgressBar):
    """Lightning's bar in one line of 80 columns: of the metrics the validation score alone, by its last word."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        scores = [name for name in shown if "/validation_" in name]
        return {name.rpartition("_")[2][:WORD]: shown[name] for name in scores[:1]}


class EpochLines(Callback):
    """Progress where there is no terminal for a bar: some ten lines a stage."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        if not trainer.sanity_checking and (epoch == epochs or epoch % -(-epochs // 10) == 0):
            metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
            shown = [
                f"{name}={value:.4g}"
                for name, value in metrics.items()
                if name.endswith("/loss") or "/validation_" in name
            ]
            log.info("epoch %d/%d %s", epoch, epochs, " ".join(shown))


class BrokenImages(Callback):
    """Names the images that could not be read, each once, after the epoch that met them."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.known = dataset, set[str]()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not hasattr(self.dataset, "where_broken"):
            return  # text
        if trainer.world_size > 1:
            own = self.dataset.broken.to(pl_module.device, torch.float32)
            self.dataset.broken[:] = trainer.strategy.reduce(own, reduce_op="sum").cpu() > 0
            self.dataset.check_broken((self.dataset.where_broken() or [""])[-1])
        new = [where for where in self.dataset.where_broken() if where not in self.known]
        self.known.update(new)
        if new:
            log.warning(
                "%d of %d training images cannot be read, others take their place: %s%s",
                *(len(self.known), len(self.dataset), ", ".join(new[:NAMED]), ", ..." if len(new) > NAMED else ""),
            )

    def state_dict(self) -> dict[str, Any]:
        """Those that were named, and those that were met, which count for `dataset.broken_share`."""
        broken = self.dataset.broken.nonzero().flatten().tolist() if hasattr(self.dataset, "broken") else []
        return {"known": sorted(self.known), "broken": broken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.known = set(state_dict["known"])
        if broken := state_dict["broken"]:
            self.dataset.broken[broken] = True


def _peak_memory(device: torch.device) -> float:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
