"""The batches of a training stage, as Lightning asks for them."""

from __future__ import annotations

from typing import Any

import lightning as L

from sttabt.data.base import Loader, Splits, evaluation_loader, train_loader
from sttabt.settings import Settings, steps_of, training_of, update_size


class StageData(L.LightningDataModule):
    """Training and validation batches of `splits` for one stage.

    accumulate: steps a weight update. ranks: processes that train together, each of which gets its own batches. The
    order of an epoch depends on (settings.seed, epoch) alone, so a resumed run needs no state of this.
    Raises UserError when there are too few samples for one update, or to validate on.
    """

    def __init__(self, splits: Splits, settings: Settings, stage: str, ranks: int = 1) -> None:
        super().__init__()
        hardware, training = settings.hardware, training_of(settings, stage)
        share = 1.0 if training is None else training.epoch_share
        size, self.accumulate = steps_of(update_size(settings, stage), hardware)
        pin = hardware.accelerator != "cpu"
        common: dict[str, Any] = {"workers": hardware.workers, "ranks": ranks, "pin_memory": pin}
        self.train = train_loader(splits.train, size, seed=settings.seed, steps=self.accumulate, share=share, **common)
        self.validation = evaluation_loader(splits.validation, hardware.batch_size, **common)

    def train_dataloader(self) -> Loader:
        return self.train

    def val_dataloader(self) -> Loader:
        return self.validation
