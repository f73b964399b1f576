"""A run goes through stages: base, approx, prune, evaluate, report. Each hands files to the next.

What a stage makes is found by what made it: a hash of every setting that influences it. A finished artifact is
used again, by this run or by any job of a sweep; jobs that want the same one at the same time make it once.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from sttabt import __version__
from sttabt.approx import ApproximateNetwork
from sttabt.artifacts import Store, checksum, fingerprint
from sttabt.backbones.base import Backbone
from sttabt.building import build_base
from sttabt.data import load_splits
from sttabt.errors import UserError
from sttabt.evaluation import attention_error, find_device, gallery
from sttabt.job import Job
from sttabt.lit.fit import CHECKPOINT, fit
from sttabt.lit.loggers import JobLoggers
from sttabt.lit.modules import Approximation, BaseClassifier, Pruning
from sttabt.lit.stage import TrainingStage
from sttabt.methods import find_method
from sttabt.methods.base import Method
from sttabt.pruned import PrunedModel
from sttabt.report.build import make_report
from sttabt.report.gallery import GALLERY_FILE
from sttabt.report.rows import ROW_FILE, Row
from sttabt.result import device_name, make_row
from sttabt.settings import Settings
from sttabt.weights import load_weights

log = logging.getLogger(__name__)


def run_stages(settings: Settings, job: Job) -> None:
    """Everything that `settings.stages` names. Artifacts go to paths.artifacts, the row to paths.output.

    Raises UserError when a stage that is left out has not been run with these settings before.
    """
    if settings.hardware.threads:
        torch.set_num_threads(settings.hardware.threads)
    stages = Stages(settings, job)
    wanted = set(settings.stages)
    with JobLoggers(settings, job.sweep, asdict(settings)) as stages.loggers:
        if "evaluate" in wanted:
            stages.evaluate()
        elif "prune" in wanted:
            stages.pruned()
        elif "approx" in wanted:
            stages.approx()
        elif "base" in wanted:
            stages.base()
    if "report" in wanted and not job.multirun:
        output = Path(settings.paths.output)
        log.info("report: %s", make_report([output], output / "report").page)


@dataclass(frozen=True)
class Artifact:
    """What a stage made: its weights, what it is made of, and notes (seconds, approximation errors)."""

    tensors: dict[str, torch.Tensor]
    key: str
    notes: dict[str, Any]


class Stages:
    """The stages of one job; each asks for the one before it, and makes only what is not there."""

    loggers: JobLoggers

    def __init__(self, settings: Settings, job: Job) -> None:
        self.settings, self.job = settings, job
        self.store = Store(Path(settings.paths.artifacts))
        self.device = find_device(settings.hardware.accelerator)
        self.splits = load_splits(settings.dataset, settings.model)

    def base(self) -> tuple[Backbone, Artifact]:
        """The dense base model, trained here or loaded from pretrained weights."""
        settings, model = self.settings, self.settings.model
        base = self._build()

        def make(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
            if model.checkpoint:
                load_weights(base.model, Path(model.checkpoint), "model.checkpoint")
            elif not model.pretrained:
                self._fit(BaseClassifier(base, model.training), folder)
            return base, {}

        described: dict[str, Any] = {"model": asdict(model), "dataset": asdict(settings.dataset)}
        described |= self._training_context()
        if model.checkpoint or model.pretrained:
            described["model"].pop("training")
        if model.checkpoint:
            described["model"]["checkpoint"] = checksum(Path(model.checkpoint))  # the same name may hold other weights
        artifact = self._obtain("base", described, make)
        base.load_state_dict(artifact.tensors, strict=True)
        return base.eval(), artifact

    def approx(self) -> tuple[Backbone, ApproximateNetwork, Artifact, Artifact]:
        """The base model and its approximate attention network: (base, network, both artifacts)."""
        base, base_artifact = self.base()
        settings = self.settings.approx
        network = self._new_approx(base, settings.start == "interpolated")

        def make(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
            controls = {
                "random": self._new_approx(base, interpolated=False),
                "interpolated": self._new_approx(base, interpolated=True),
            }
            self._fit(Approximation(network, base, settings), folder)
            networks = {"distilled": network.eval(), **controls}
            errors = attention_error(
                {name: each.to(self.device) for name, each in networks.items()},
                base.to(self.device),
                self.splits.validation,
                self.settings.evaluation.batch_size,
                self.settings.fast_dev_run,
            )
            return network, {"errors": errors}

        described = {"base": base_artifact.key, "approx": asdict(settings), **self._training_context()}
        artifact = self._obtain("approx", described, make)
        network.load_state_dict(artifact.tensors, strict=True)
        return base, network.eval(), base_artifact, artifact

    def pruned(self) -> tuple[PrunedModel, dict[str, Artifact]]:
        """The model under `sparsity`, trained where the method trains, and the artifacts it is made of."""
        sparsity = self.settings.sparsity
        kind = find_method(sparsity.method)
        artifacts: dict[str, Artifact] = {}
        if self._needs_approx(kind):
            base, network, artifacts["base"], artifacts["approx"] = self.approx()
        else:
            (base, artifacts["base"]), network = self.base(), None
        model = PrunedModel(base, kind(sparsity, base.layers, base.outputs), network)
        if kind.card.trained:

            def make(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
                self._fit(Pruning(model, base, sparsity), folder)
                return model, {}

            keys = {stage: artifact.key for stage, artifact in artifacts.items()}
            described = {**keys, "sparsity": asdict(sparsity), **self._training_context()}
            artifacts["prune"] = self._obtain("prune", described, make)
            model.load_state_dict(artifacts["prune"].tensors, strict=True)
        return model.eval(), artifacts

    def evaluate(self) -> None:
        """The result row of this job, and the images of its gallery, in paths.output."""
        model, artifacts = self.pruned()
        settings = self.settings
        described = {
            **{stage: artifact.key for stage, artifact in artifacts.items()},
            "sparsity": asdict(settings.sparsity),
            "evaluation": asdict(settings.evaluation),
            "experiment": settings.name,
            "hardware": {"device": device_name(self.device), "threads": torch.get_num_threads()},
            "commit": self.job.commit,  # other code may score differently
            "seed": settings.seed,
            "fast_dev_run": settings.fast_dev_run,
        }

        def make(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
            model.to(self.device)
            row = make_row(model, self.splits, settings, self.job, fingerprint(described), self._notes(artifacts))
            if settings.evaluation.gallery:
                gallery(model, self.splits, settings.evaluation.gallery).write(folder / GALLERY_FILE)
            row.write(folder / ROW_FILE)
            return nn.Module(), {}

        folder = self._claim("evaluate", described, make)
        self.loggers.summarise(Row.read(folder / ROW_FILE).to_dict())
        output = Path(settings.paths.output)
        output.mkdir(parents=True, exist_ok=True)
        for file in (ROW_FILE, GALLERY_FILE):
            if (folder / file).exists():
                shutil.copyfile(folder / file, output / file)

    def _build(self) -> Backbone:
        L.seed_everything(self.settings.seed, verbose=False)
        model, data = self.settings.model, self.settings.dataset
        base = build_base(model, data.classes, data.channels, data.image_size, model.pretrained)
        expected = base.model.pretrained_cfg["mean"], base.model.pretrained_cfg["std"]
        if model.pretrained and expected != (self.splits.mean, self.splits.deviation):
            raise UserError(
                f"model.timm={model.timm} was trained on images normalised by mean and deviation {expected}, but"
                f" dataset.source={data.source} gives {self.splits.mean, self.splits.deviation}: choose other weights"
            )
        return base

    def _new_approx(self, base: Backbone, interpolated: bool) -> ApproximateNetwork:
        L.seed_everything(self.settings.seed, verbose=False)
        network = ApproximateNetwork(base, self.settings.approx.factor)
        if interpolated:
            network.start_from(base)
        return network

    def _needs_approx(self, kind: type[Method]) -> bool:
        probe = kind(self.settings.sparsity, layers=1, outputs=1)
        return probe.attention == "approximate"

    def _training_context(self) -> dict[str, Any]:
        hardware = self.settings.hardware
        return {
            "seed": self.settings.seed,
            "version": __version__,
            "batch": hardware.batch_size * hardware.accumulate * hardware.devices,
            "precision": hardware.precision,
            "fast_dev_run": self.settings.fast_dev_run,
        }

    def _fit(self, module: TrainingStage, folder: Path) -> None:
        fit(module, self.splits, self.settings, folder, self.loggers.of_stage(module.stage))

    def _obtain(
        self, stage: str, described: dict[str, Any], make: Callable[[Path], tuple[nn.Module, dict]]
    ) -> Artifact:
        self._claim(stage, described, make)
        tensors, artifact = self.store.load(stage, described)
        return Artifact(tensors, fingerprint(described), artifact["notes"])

    def _claim(self, stage: str, described: dict[str, Any], make: Callable[[Path], tuple[nn.Module, dict]]) -> Path:
        """The folder of a finished artifact, made now if it is not there and its stage is asked for."""
        left_out = stage not in self.settings.stages or (stage == "approx" and self.settings.skip_approx)
        if left_out and self.store.find(stage, described) is None:
            remedy = "skip_approx=false" if stage in self.settings.stages else f"{stage} in stages"
            raise UserError(f"{self.store.missing_message(stage, described)}: make it with {remedy}")
        with self.store.claim(stage, described) as claim:
            if not claim.finished:
                started = time.perf_counter()
                made, notes = make(claim.folder)
                claim.finish(made.state_dict(), {"seconds": time.perf_counter() - started, **notes})
                (claim.folder / CHECKPOINT).unlink(missing_ok=True)
            else:
                log.info("stage %s is done already: %s", stage, claim.folder)
            return claim.folder

    def _notes(self, artifacts: dict[str, Artifact]) -> dict[str, dict[str, Any]]:
        return {stage: artifact.notes for stage, artifact in artifacts.items()}
