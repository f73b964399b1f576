"""What all training stages share: AdamW, warm-up and cosine, mixed images, the validation metric, and an error when the
training diverges.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from sttabt.data.base import Batch, same_draws
from sttabt.data.task import Task
from sttabt.errors import UserError
from sttabt.lit.attention import AttentionByProducts
from sttabt.lit.decay import undecayed
from sttabt.settings import TRAININGS, TrainingSettings
from sttabt.store.artifacts import first_not_finite


class TrainingStage(L.LightningModule, ABC):
    """Subclasses give `terms` (named losses of a batch) and `predict` (logits of a batch's inputs).

    stage: the prefix of its metrics; trained: the module whose parameters the optimiser gets; leaves_unused: the losses
    of a batch do not read all of them, which processes that train together must know.
    """

    stage: str
    leaves_unused: bool = False
    mode: str = "max"  # whether a higher or a lower validation metric is better
    seed: int = 0

    def __init__(self, trained: nn.Module, training: TrainingSettings, task: Task) -> None:
        super().__init__()
        self.trained: Any = trained.train()  # loaded models come in evaluation mode, where nothing is dropped out
        self.training_settings = training
        self.task = task
        self.metric = task.new_metric(task.metric)
        self.mix = _mixing(training, task)

    @abstractmethod
    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name; their sum is minimised."""

    @abstractmethod
    def predict(self, inputs: Any) -> Tensor:
        """Logits (B, classes) for validation; one column for a score."""

    @property
    def validated(self) -> str:
        """The full name of its validation metric."""
        return f"{self.stage}/validation_{self.task.metric}"

    def own_state(self) -> dict[str, Tensor]:
        """The state of what it trains, and of averages of that, without frozen teachers."""
        own = ("trained.", "averaged.")
        return {name: value for name, value in self.state_dict().items() if name.startswith(own)}

    def own_rates(self) -> list[dict[str, Any]]:
        """Optimiser groups beside the usual two, as torch takes them; their parameters are left out of those."""
        return []

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """A step's noise depends on the seed and the step alone, so that a resumed run repeats it."""
        torch.manual_seed(hash((self.seed, self.global_step, self.global_rank, index)))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if self.mix is not None:
            with same_draws(self.seed, self.global_step, self.global_rank, index):
                batch = Batch(*self.mix(batch.inputs, batch.labels))
        with AttentionByProducts():
            terms = self.terms(batch)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            values = ", ".join(f"{name}={float(term.detach()):g}" for name, term in terms.items())
            raise self._diverged(f"epoch {self.current_epoch}, step {index} ({values})")
        logged = {f"{self.stage}/{name}": term.detach() for name, term in terms.items()}
        # Several processes exchange each value twice: values that are not logged are not exchanged.
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        if alone or self._is_logged():
            self.log_dict(logged | {f"{self.stage}/loss": loss.detach()}, sync_dist=True)
        return loss

    def _is_logged(self) -> bool:
        """Whether the loggers, or the end of an epoch, read what this step logs."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return self.trainer.is_last_batch or (every > 0 and (self.global_step + 1) % every == 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """No file ever holds weights that training could not go on from. No loss follows the last step, to show it."""
        where = f"the end of step {self.global_step}"
        self.check_finite(where)
        states = [state for each in checkpoint.get("optimizer_states", []) for state in each["state"].values()]
        for value in (value for state in states for value in state.values()):
            if isinstance(value, Tensor) and not torch.isfinite(value).all():
                raise self._diverged(f"{where} (moments of its gradients are not finite)")

    def check_finite(self, where: str) -> None:
        """Raises UserError when a weight is infinite or no number; `where` says after which step."""
        if (name := first_not_finite(self.trained.state_dict())) is not None:
            raise self._diverged(f"{where} ({name} is not finite)")

    def on_validation_start(self) -> None:
        """Statistics of batches, which each process gathers by itself, are the first one's."""
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def validation_step(self, batch: Batch, index: int) -> None:
        self.metric.update(self.task.readings(self.task.metric, self.predict(batch.inputs)), batch.labels)
        self.log(self.validated, self.metric, prog_bar=True, on_epoch=True)

    def configure_optimizers(self) -> Any:
        settings = self.training_settings
        own = self.own_rates()
        grouped = {id(parameter) for group in own for parameter in group["params"]}
        rest = {n: p for n, p in self.trained.named_parameters() if p.requires_grad and id(p) not in grouped}
        plain = undecayed(self.trained)
        groups = [
            {"params": [p for name, p in rest.items() if name not in plain], "weight_decay": settings.weight_decay},
            {"params": [p for name, p in rest.items() if name in plain], "weight_decay": 0.0},
            *own,
        ]
        # Fused is a third of the step faster on a CPU; under autocast Lightning cannot clip its gradients.
        fused = self.trainer.precision == "32-true"
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(settings.warmup_epochs / max(settings.epochs, 1) * steps)
        final = settings.final_learning_rate / settings.learning_rate
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, warmup, final))
        named = {"scheduler": schedule, "interval": "step", "name": f"{self.stage}/lr"}  # for LearningRateMonitor
        return {"optimizer": optimizer, "lr_scheduler": named}

    def _diverged(self, where: str) -> UserError:
        return UserError(
            f"training diverged in stage {self.stage}, {where}:"
            f" lower {TRAININGS[self.stage]}.learning_rate={self.training_settings.learning_rate:g}"
            f" or set {TRAININGS[self.stage]}.grad_clip_norm"
        )


def warmup_cosine(step: int, steps: int, warmup: int, final: float) -> float:
    """The learning rate's factor: linear to 1 over `warmup` steps, then a half cosine down to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def _mixing(training: TrainingSettings, task: Task) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """What blends each image of a batch with another, and their labels into shares of the classes (B, classes)."""
    if not (training.mixup or training.cutmix):
        return None
    from timm.data import Mixup  # text does without timm, which takes seconds to import

    return Mixup(
        training.mixup, training.cutmix, prob=training.mix_share, label_smoothing=0.0, num_classes=task.classes
    )  # the loss smooths
