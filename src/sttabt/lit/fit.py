"""One training stage from its start, or from its last whole epoch, to its end."""

from __future__ import annotations

import logging
import pickle
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from sttabt.data.base import Splits, evaluation_loader, train_loader
from sttabt.errors import TERMINATED, UserError
from sttabt.lit.checkpoint import AtomicCheckpointIO
from sttabt.lit.launch import ALONE, Nodes, launch
from sttabt.lit.stage import LOGGED, TrainingStage
from sttabt.settings import TRAININGS, Settings, processes_of, steps_of, update_size

log = logging.getLogger(__name__)

CHECKPOINT = "last.ckpt"
NAMED = 10  # broken images that a line names

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
):
    warnings.filterwarnings("ignore", message=f".*{noise}")


@dataclass(frozen=True)
class Fitted:
    """What a training tells beside its weights: its last metrics by name, and how many images could not be read."""

    metrics: dict[str, float]
    broken_images: int


def fit(
    module: TrainingStage, splits: Splits, settings: Settings, folder: Path, loggers: list[Any], nodes: Nodes = ALONE
) -> Fitted:
    """Train `module` in place; its checkpoint CHECKPOINT in `folder` is written after every epoch.

    With resume=auto one found there is gone on from; the result is that of an uninterrupted run.
    Raises SystemExit(143) when the process was told to end, after which the stage can be resumed.
    """
    last = folder / CHECKPOINT
    if settings.resume == "never" and nodes.first:
        last.unlink(missing_ok=True)
    if last.exists():
        _check_readable(last)
        log.info("stage %s goes on from %s", module.stage, last)
    name = f"{module.stage}-{folder.name}"
    resume = nodes.agree(f"resume/{name}", str(last.exists())) == str(True)  # whatever another node's disk shows
    arguments = (module, splits, settings, folder, loggers, resume)
    if processes_of(settings.hardware) == 1 or not module.training_settings.epochs:
        return _train(*arguments, ranks=1)
    module.cpu()  # else each process would put its copy onto this one's GPU first
    torch.cuda.empty_cache()
    fitted = launch(_train, (*arguments, processes_of(settings.hardware)), settings.hardware, nodes, name)
    if nodes.first:  # the others have no use for them
        module.load_state_dict(torch.load(last, map_location="cpu", weights_only=True)["state_dict"])
    return fitted


def _train(
    module: TrainingStage,
    splits: Splits,
    settings: Settings,
    folder: Path,
    loggers: list[Any],
    resume: bool,
    ranks: int,
) -> Fitted:
    """The training, in this process or in each of `ranks` that train together."""
    hardware, training = settings.hardware, module.training_settings
    batch_size, accumulate = steps_of(update_size(settings, module.stage), hardware)
    terminal = sys.stdout.isatty()
    train = train_loader(
        splits.train, batch_size, hardware.workers, settings.seed, accumulate, training.epoch_share, ranks
    )
    if module.mix is not None and train.batch_size and train.batch_size % 2:
        raise UserError(
            f"{TRAININGS[module.stage]}.mixup and cutmix blend pairs, but there are {train.batch_size} images a step:"
            f" choose an even hardware.batch_size that is no more than the {len(splits.train)} images to train on"  # type: ignore[arg-type]
        )
    broken = BrokenImages(splits.train)
    L.seed_everything(settings.seed, workers=True, verbose=False)
    trainer = L.Trainer(
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
        callbacks=[
            ModelCheckpoint(
                dirpath=folder,
                filename=Path(CHECKPOINT).stem,
                enable_version_counter=False,
                save_on_train_epoch_end=True,
            ),
            RichProgressBar() if terminal else EpochLines(),
            broken,
        ],
        # Named, as Lightning would take SLURM's environment for its own, and start or requeue processes itself.
        plugins=[AtomicCheckpointIO(), TorchElasticEnvironment() if ranks > 1 else LightningEnvironment()],
        logger=loggers,
        log_every_n_steps=LOGGED,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=terminal,
        default_root_dir=folder,
    )
    module.seed = settings.seed
    if hardware.compile:
        module.terms = torch.compile(module.terms)  # type: ignore[method-assign]
    terminated = False
    try:
        trainer.fit(
            module,
            train,
            evaluation_loader(splits.validation, hardware.batch_size, hardware.workers, ranks),
            ckpt_path=folder / CHECKPOINT if resume else None,
            weights_only=True,
        )
    except SIGTERMException:
        terminated = True
    except RuntimeError:  # processes that load data are told to end as well, and may be gone first
        if not trainer.received_sigterm:
            raise
        terminated = True
    if terminated or trainer.received_sigterm:
        log.warning("stage %s was told to end; the same command goes on with it", module.stage)
        raise SystemExit(TERMINATED)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return Fitted(metrics, len(broken.known))


def _together(module: TrainingStage) -> DDPStrategy:
    return DDPStrategy(
        find_unused_parameters=module.leaves_unused,
        forward_sync_buffers=False,  # in evaluation, too, where processes have different numbers of batches
    )


class EpochLines(Callback):
    """Progress where there is no terminal for a bar: some ten lines a stage."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        if epoch == epochs or epoch % -(-epochs // 10) == 0:
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


def _check_readable(checkpoint: Path) -> None:
    try:
        torch.load(checkpoint, map_location="meta", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{checkpoint} is damaged, it may be truncated: delete it, or begin the stage again with resume=never"
        ) from error
