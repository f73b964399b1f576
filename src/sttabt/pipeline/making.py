"""How a job comes to an artifact: it is there already, or it is made now, once, by all nodes together."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sttabt.data.base import Splits
from sttabt.errors import UserError
from sttabt.lit.fit import CHECKPOINT, fit
from sttabt.lit.launch import Nodes
from sttabt.lit.loggers import JobLoggers
from sttabt.lit.stage import TrainingStage
from sttabt.pipeline.card import CARD, write_card
from sttabt.settings import Settings
from sttabt.store.artifacts import MODEL_STAGES, Store
from sttabt.store.job import Job

Make = Callable[[Path], tuple[Mapping[str, Tensor], dict[str, Any]]]  # works in a folder; gives weights and notes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """What a stage made: its weights, where it is, and notes (seconds, approximation errors)."""

    tensors: dict[str, Tensor]
    folder: Path
    notes: dict[str, Any]

    @property
    def key(self) -> str:
        """The fingerprint of what it is made of."""
        return self.folder.name


class Maker:
    """Gives a job its artifacts, and makes those that are not there. Its `loggers` are set before it makes any."""

    loggers: JobLoggers

    def __init__(self, settings: Settings, job: Job, nodes: Nodes) -> None:
        self.settings, self.job, self.nodes = settings, job, nodes
        self.store = Store(Path(settings.paths.artifacts))
        self.fitted: dict[str, dict[str, Any]] = {}  # by stage that trained: on how much, to which validation metrics

    def obtain(self, stage: str, described: dict[str, Any], make: Make) -> Artifact:
        """As `claim`; what is in the folder."""
        folder = self.claim(stage, described, make)
        if stage in MODEL_STAGES and self.nodes.first and not (folder / CARD).exists():
            write_card(folder)
        tensors, artifact = self.store.load(stage, described)
        return Artifact(tensors, folder, artifact["notes"])

    def claim(self, stage: str, described: dict[str, Any], make: Make) -> Path:
        """The folder of a finished artifact, made now if it is not there and its stage is asked for.

        Raises UserError when it is not there and its stage is left out.
        """
        asked = "evaluate" if stage == "timing" else stage  # a part of that stage
        left_out = asked not in self.settings.stages or (stage == "approx" and self.settings.skip_approx)
        if left_out and self.store.find(stage, described) is None:
            remedy = "skip_approx=false" if stage in self.settings.stages else f"{stage} in stages"
            raise UserError(f"{self.store.missing_message(stage, described)}: make it with {remedy}")
        if not self.nodes.first:
            return self._follow(stage, described, make)
        with (
            self.store.claim(stage, described) as claim,
            self.nodes.making(f"{stage}/{claim.folder.name}", not claim.finished) as needed,
        ):
            if needed:
                started = time.perf_counter()
                with self.loggers.making(stage, claim.folder):
                    tensors, notes = make(claim.folder)
                    claim.finish(tensors, {"seconds": time.perf_counter() - started, **self._about(stage), **notes})
                (claim.folder / CHECKPOINT).unlink(missing_ok=True)
            else:
                log.info("stage %s is done already: %s", stage, claim.folder)
            return claim.folder

    def fit(self, module: TrainingStage, splits: Splits, folder: Path) -> dict[str, Any]:
        """Train `module` in place, as a part of making the artifact in `folder`; notes of it."""
        fitted = fit(module, splits, self.settings, folder, self.loggers.of_stage(module.stage), self.nodes)
        measured = {name.rpartition("/validation_"): value for name, value in fitted.metrics.items()}
        self.fitted[module.stage] = {
            "samples": {"train": len(splits.train), "validation": len(splits.validation)},  # type: ignore[arg-type]
            "validation": {name: v for (_, found, name), v in measured.items() if found and math.isfinite(v)},
        }
        return {"broken_images": fitted.broken_images} if fitted.broken_images else {}

    def _follow(self, stage: str, described: dict[str, Any], make: Make) -> Path:
        """What a further node does where the first one claims: it trains with it, and finds its files."""
        folder = self.store.folder(stage, described)
        with self.nodes.making(f"{stage}/{folder.name}", False) as needed:
            if needed:
                make(folder)
        return folder

    def _about(self, stage: str) -> dict[str, Any]:
        """Notes of an artifact for its card and for whoever loads it; nothing depends on them."""
        job = {"command": self.job.command, "commit": self.job.commit}
        return {"settings": asdict(self.settings), **job, **self.fitted.get(stage, {})}
