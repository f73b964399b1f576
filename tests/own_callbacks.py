"""A user's own callback, found by `_target_`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback


class EpochFile(Callback):
    """Adds a line to a file after each epoch."""

    def __init__(self, file: str, stage: str) -> None:
        self.file, self.stage, self.epochs = file, stage, 0

    def on_train_epoch_end(self, *_: Any) -> None:
        self.epochs += 1
        with Path(self.file).open("a") as file:
            file.write(f"{self.stage} {self.epochs}\n")

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]


def not_one() -> str:
    return "text"
