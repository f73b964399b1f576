"""One training stage from its start, or from the last epoch that its checkpoint holds, to its end."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelSummary, ProgressBar
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.nn.parallel import DistributedDataParallel

from sttabt.data.base import Splits
from sttabt.errors import TERMINATED, UserError
from sttabt.lit.callbacks import Bar, BestWeights, BrokenImages, EpochLines, LastCheckpoint, Measurements
from sttabt.lit.checkpoint import LAST, AtomicCheckpointIO, forget, newest
from sttabt.lit.configured import new_arguments, new_callbacks
from sttabt.lit.data import StageData
from sttabt.lit.launch import ALONE, Nodes, ParentDecides, launch
from sttabt.lit.stage import TrainingStage
from sttabt.settings import TRAININGS, Settings, processes_of
from sttabt.system.signals import Stopped

log = logging.getLogger(__name__)

UNKNOWN_MONITOR = "Early stopping conditioned on metric"  # how Lightning's RuntimeError begins, which has no own type
LOGGED = 10  # steps between those whose losses the loggers get, unless trainer.log_every_n_steps says otherwise

# What Lightning says at every start and a user of this suite can do nothing about.
for library in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(library).setLevel(logging.WARNING)
for noise in (
    "does not have many workers",
    "exists and is not empty",
    "in eval mode at the start of training",
    "LeafSpec",
    "to set TF32",
    "`srun` command is available",
    "is smaller than the logging interval",
    "ended before the epoch ended and your dataloader",  # LastCheckpoint says where it goes on
):
    warnings.filterwarnings("ignore", message=f".*{noise}")


@dataclass(frozen=True)
class Fitted:
    """What a training tells beside its weights.

    metrics: its last ones by name, those of validation for the weights that the module holds now; epochs: how many it
    took; weights: which ones these are, as `last epoch`; broken_images: how many could not be read; seconds_before: how
    long what was interrupted had taken.
    """

    metrics: dict[str, float]
    epochs: int
    weights: str
    broken_images: int
    seconds_before: float


def fit(
    module: TrainingStage, splits: Splits, settings: Settings, folder: Path, loggers: list[Any], nodes: Nodes = ALONE
) -> Fitted:
    """Train `module` in place; a checkpoint in `folder` is written after every epoch.

    With resume=auto the newest whole one that is found there is resumed from; the result is that of an uninterrupted
    run.
    Raises UserError when the training diverges, and SystemExit(143) after SIGTERM; the stage can be resumed then.
    """
    name = f"{module.stage}-{folder.name}"
    found = None
    if nodes.first:
        if settings.resume == "never":
            forget(folder)
        if (found := newest(folder)) is not None:
            log.info("stage %s resumes from %s", module.stage, found)
    chosen = nodes.agree(f"resume/{name}", found.name if found else "")  # whatever another node's disk shows
    arguments = (module, splits, settings, folder, loggers, folder / chosen if chosen else None)
    with _resumable(module.stage):
        if processes_of(settings.hardware) == 1 or not module.training_settings.epochs:
            fitted = _train(*arguments, ranks=1)
        else:
            module.cpu()  # else each process would put its copy onto this one's GPU first
            torch.cuda.empty_cache()
            fitted = launch(_train, (*arguments, processes_of(settings.hardware)), settings.hardware, nodes, name)
            if nodes.first:  # the others have no use for them
                checkpoint = torch.load(folder / LAST, map_location="cpu", weights_only=True)
                module.load_state_dict(checkpoint["state_dict"] | BestWeights.of(checkpoint))
    module.check_finite("the last step")  # whatever a checkpoint held
    return fitted


@contextmanager
def _resumable(stage: str) -> Iterator[None]:
    """Says so when a signal ends what is inside."""
    try:
        yield
    except Stopped as stop:
        log.warning("stage %s was interrupted by %s: the same command resumes it", stage, stop.signal)
        raise


def _train(
    module: TrainingStage,
    splits: Splits,
    settings: Settings,
    folder: Path,
    loggers: list[Any],
    resumed: Path | None,
    ranks: int,
) -> Fitted:
    """The training, in this process or in each of `ranks` that train together."""
    data = StageData(splits, settings, module.stage, ranks)
    if module.mix is not None and data.train.batch_size and data.train.batch_size % 2:
        raise UserError(
            f"{TRAININGS[module.stage]}.mixup and cutmix blend pairs, but there are {data.train.batch_size} images a"
            f" step: choose an even hardware.batch_size that is no more than the {len(splits.train)} images to train on"  # type: ignore[arg-type]
        )
    chosen = new_callbacks(settings, module.stage, module.validated, module.mode)
    broken, last = BrokenImages(splits.train), LastCheckpoint(folder / LAST, settings.hardware.checkpoint_minutes)
    L.seed_everything(settings.seed, workers=True, verbose=False)
    module.seed = settings.seed
    if settings.hardware.compile:
        module.terms = torch.compile(module.terms)  # type: ignore[method-assign]
    callbacks, terminated = [*chosen, *([ParentDecides()] if ranks > 1 else []), broken, last], False
    determinism = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with _users_mistakes(settings, MisconfigurationException, TypeError, ValueError):
            trainer = _new_trainer(module, settings, folder, loggers, callbacks, data.accumulate, ranks)
        with _users_mistakes(settings, MisconfigurationException):
            trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    except SIGTERMException:
        terminated = True
    except RuntimeError as error:  # SIGTERM also reaches the processes that load data, which may be gone first
        if str(error).startswith(UNKNOWN_MONITOR):
            raise UserError(f"callbacks: {error}") from error
        if not trainer.received_sigterm:
            raise
        terminated = True
    finally:  # trainer.deterministic is this training's, not that of the next job in this process
        torch.use_deterministic_algorithms(determinism[0], warn_only=determinism[1])
    if terminated or trainer.received_sigterm:
        log.warning("stage %s was interrupted by SIGTERM: the same command resumes it", module.stage)
        raise SystemExit(TERMINATED)
    metrics = last.metrics | {name: float(value) for name, value in trainer.callback_metrics.items()}
    best = next((callback for callback in chosen if isinstance(callback, BestWeights) and callback.weights), None)
    if best is not None:
        found = module.load_state_dict(best.weights, strict=False)  # all but frozen teachers
        left = [name for name in found.missing_keys if name in module.own_state()]
        assert not (found.unexpected_keys or left), "best weights are those of this module"
        metrics |= best.metrics
    epochs = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    weights = "last epoch" if best is None else best.describe()
    return Fitted(metrics, epochs, weights, len(broken.known), last.seconds_before)


def _new_trainer(
    module: TrainingStage,
    settings: Settings,
    folder: Path,
    loggers: list[Any],
    callbacks: list[Callback],
    accumulate: int,
    ranks: int,
) -> L.Trainer:
    """Lightning's trainer, with what `settings.trainer` gives it beside what the suite decides."""
    hardware, training = settings.hardware, module.training_settings
    bar, summary = (any(isinstance(each, kind) for each in callbacks) for kind in (ProgressBar, ModelSummary))
    free = {
        "log_every_n_steps": LOGGED,
        "num_sanity_val_steps": 0,
        "enable_model_summary": summary,
        "enable_progress_bar": bar or sys.stdout.isatty(),
        **new_arguments(settings),
    }
    progress: list[Callback] = [] if bar else [Bar() if free["enable_progress_bar"] else EpochLines()]
    return L.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices if ranks > 1 else 1,
        num_nodes=hardware.nodes if ranks > 1 else 1,
        strategy=_together(module) if ranks > 1 else "auto",
        precision=hardware.precision,  # type: ignore[arg-type]
        max_epochs=min(training.epochs, 1) if settings.fast_dev_run else training.epochs,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=training.grad_clip_norm or None,
        limit_train_batches=settings.fast_dev_run or None,
        limit_val_batches=settings.fast_dev_run or None,
        callbacks=[*progress, Measurements(), *callbacks],
        # Named, as Lightning would take SLURM's environment for its own, and start or requeue processes itself.
        plugins=[AtomicCheckpointIO(), TorchElasticEnvironment() if ranks > 1 else LightningEnvironment()],
        logger=loggers,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **free,
    )


@contextmanager
def _users_mistakes(settings: Settings, *kinds: type[Exception]) -> Iterator[None]:
    """Raises a UserError for what Lightning refuses, if any of that is a user's own."""
    try:
        yield
    except kinds as error:
        if not (settings.trainer or settings.callbacks):
            raise
        raise UserError(f"Lightning refuses what trainer or callbacks set: {error}") from error


def _together(module: TrainingStage) -> DDPStrategy:
    # Not in evaluation, too, where processes have different numbers of batches. By its name before torch 2.13 it leaves
    # buffers out at the start as well, where all processes have copies of the same.
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    named: dict[str, Any] = {buffers: False}
    return DDPStrategy(find_unused_parameters=module.leaves_unused, **named)
