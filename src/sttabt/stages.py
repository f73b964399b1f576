"""A run goes through stages: base, general, approx, prune, evaluate, report. Each hands files to the next.

What a stage makes is found by what made it: a hash of every setting that influences it. A finished artifact is
used again, by this run or by any job of a sweep; jobs that want the same one at the same time make it once.
"""

from __future__ import annotations

import copy
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sttabt import __version__
from sttabt.approx import ApproximateNetwork
from sttabt.artifacts import Store, checksum, fingerprint
from sttabt.backbones.base import Backbone
from sttabt.building import build_base
from sttabt.data import load_splits
from sttabt.data.base import Splits
from sttabt.errors import UserError
from sttabt.evaluation import attention_error, find_device, gallery
from sttabt.hub import find_pretrained
from sttabt.job import Job
from sttabt.lit.fit import CHECKPOINT, fit
from sttabt.lit.loggers import JobLoggers
from sttabt.lit.modules import Approximation, BaseTraining, GeneralApproximation, Pruning
from sttabt.lit.stage import TrainingStage
from sttabt.methods import find_method
from sttabt.methods.base import Method
from sttabt.pruned import PrunedModel
from sttabt.report.build import make_report
from sttabt.report.gallery import GALLERY_FILE
from sttabt.report.rows import ROW_FILE, Row
from sttabt.result import device_name, make_row, measure_time
from sttabt.settings import Settings, update_size
from sttabt.task import Task
from sttabt.weights import load_weights

Make = Callable[[Path], tuple[Mapping[str, Tensor], dict[str, Any]]]  # works in a folder; gives weights and notes

TIMING = ("timing_batch", "timing_rounds")  # the settings of `evaluation` that decide how times are measured
ENCODER_CLASSES = 2  # of a pretrained encoder, whose head nobody reads; the same for all tasks

log = logging.getLogger(__name__)


def run_stages(settings: Settings, job: Job) -> None:
    """Everything that `settings.stages` names. Artifacts go to paths.artifacts, the row to paths.output.

    Raises UserError when a stage that is left out has not been run with these settings before.
    """
    # Soft masks go down to 1e-25. Their products are numbers so small that a CPU takes many times as long for each: a
    # step of training at p_logit -2 took seven times that at 1. As 0 they are as good. Before threads start: each has
    # its own switch.
    torch.set_flush_denormal(True)
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
        else:
            if "base" in wanted:
                stages.base()
            if "general" in wanted and settings.approx.start == "general":
                stages.general()
    if "report" in wanted and not job.multirun:
        output = Path(settings.paths.output)
        log.info("report: %s", make_report([output], output / "report").page)


@dataclass(frozen=True)
class Artifact:
    """What a stage made: its weights, what it is made of, and notes (seconds, approximation errors)."""

    tensors: dict[str, Tensor]
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
        self.task = Task.of(settings.dataset)

    def base(self) -> tuple[Backbone, Artifact]:
        """The dense base model: trained here, from its start or from given weights, or given weights as they are."""
        model, classes = self.settings.model, self.settings.dataset.classes
        trained = model.fine_tune or not (model.checkpoint or model.pretrained)
        base = self._build(classes)
        if base.head_is_new and not model.fine_tune:
            raise UserError(
                f"model.pretrained=true gives no head for dataset.classes={classes}, so that it would guess:"
                " set model.fine_tune=true"
            )

        def make(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
            self._load_checkpoint(base, new_head=model.fine_tune)
            if trained:
                self._fit(BaseTraining(base, model.training, self.task), folder)
            return base.state_dict(), {}

        described = self._weights() | {"classes": classes}
        if trained:
            described |= {"training": asdict(model.training), "dataset": self._data(), **self._training_context("base")}
        artifact = self._obtain("base", described, make)
        base.load_state_dict(artifact.tensors, strict=True)
        return base.eval(), artifact

    def general(self) -> Artifact:
        """The approximate network of the encoder before it is fine-tuned, distilled on a corpus, without its head."""
        settings = self.settings.approx

        def make(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
            from sttabt.data.corpus import load_corpus  # transformers takes seconds to import

            encoder = self._build(ENCODER_CLASSES)
            self._load_checkpoint(encoder, new_head=True)
            network = self._new_approx(encoder, interpolated=True)
            module = GeneralApproximation(network, encoder, settings, Task("accuracy", ENCODER_CLASSES))
            self._fit(
                module, folder, load_corpus(settings.corpus, self.settings.model, self.settings.dataset.max_tokens)
            )
            return {name: value for name, value in network.state_dict().items() if not network.is_head(name)}, {}

        own = ("factor", "attention_loss", "attention_weight", "hidden_weight", "embedding_weight", "corpus_training")
        described = self._weights() | {name: value for name, value in asdict(settings).items() if name in own}
        corpus = Path(settings.corpus)
        described["corpus"] = checksum(corpus) if corpus.is_file() else settings.corpus
        return self._obtain("general", described | self._training_context("general"), make)

    def approx(self) -> tuple[Backbone, ApproximateNetwork, dict[str, Artifact]]:
        """The base model, its approximate attention network, and the artifacts that they are, by stage."""
        settings = self.settings.approx
        base, base_artifact = self.base()
        artifacts = {"base": base_artifact}
        network = self._new_approx(base, settings.start != "random")
        if settings.start == "general":
            artifacts["general"] = self.general()
            network.start_from_general(artifacts["general"].tensors)

        def make(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
            controls = {
                "random": self._new_approx(base, interpolated=False),
                "interpolated": self._new_approx(base, interpolated=True),
            }
            if settings.start == "general":
                controls["general"] = copy.deepcopy(network)
            self._fit(Approximation(network, base, settings, self.task), folder)
            networks = {"distilled": network.eval(), **controls}
            errors = attention_error(
                {name: each.to(self.device) for name, each in networks.items()},
                base.to(self.device),
                self.splits.validation,
                self.settings.evaluation.batch_size,
                self.settings.fast_dev_run,
            )
            return network.state_dict(), {"errors": errors}

        elsewhere = ("corpus", "corpus_training")  # the general network's own
        own = {name: value for name, value in asdict(settings).items() if name not in elsewhere}
        described = {**self._keys(artifacts), "approx": own, "dataset": self._data()}
        described |= self._training_context("approx")
        artifacts["approx"] = self._obtain("approx", described, make)
        network.load_state_dict(artifacts["approx"].tensors, strict=True)
        return base, network.eval(), artifacts

    def pruned(self) -> tuple[PrunedModel, dict[str, Artifact]]:
        """The model under `sparsity`, trained where the method trains, and the artifacts it is made of."""
        sparsity = self.settings.sparsity
        kind = find_method(sparsity.method)
        artifacts: dict[str, Artifact] = {}
        if self._needs_approx(kind):
            base, network, artifacts = self.approx()
        else:
            (base, artifacts["base"]), network = self.base(), None
        model = PrunedModel(base, kind(sparsity, base.layers, base.outputs), network)
        if kind.card.trained:

            def make(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
                self._fit(Pruning(model, base, sparsity, self.task), folder)
                return model.state_dict(), {}

            own = {name: value for name, value in asdict(sparsity).items() if name != "batch"}  # in the context
            described = {**self._keys(artifacts), "sparsity": own, "dataset": self._data()}
            described |= self._training_context("prune")
            artifacts["prune"] = self._obtain("prune", described, make)
            model.load_state_dict(artifacts["prune"].tensors, strict=True)
        return model.eval(), artifacts

    def evaluate(self) -> None:
        """The result row of this job, and the images of its gallery, in paths.output."""
        model, artifacts = self.pruned()
        settings = self.settings
        described = {
            **self._keys(artifacts),
            "model": settings.model.name,
            "dataset": asdict(settings.dataset),
            "sparsity": asdict(settings.sparsity),
            "evaluation": {name: value for name, value in asdict(settings.evaluation).items() if name not in TIMING},
            "experiment": settings.name,
            "hardware": {"device": device_name(self.device), "threads": torch.get_num_threads()},
            "commit": self.job.commit,  # other code may score differently
            "seed": settings.seed,
            "fast_dev_run": settings.fast_dev_run,
        }

        def make(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
            model.to(self.device)
            row = make_row(model, self.splits, settings, self.job, fingerprint(described), self._notes(artifacts))
            if settings.evaluation.gallery:
                gallery(model, self.splits, self.task, settings.evaluation.gallery, self._words()).write(
                    folder / GALLERY_FILE
                )
            row.write(folder / ROW_FILE)
            return {}, {}

        folder = self._claim("evaluate", described, make)
        row = Row.read(folder / ROW_FILE)
        if settings.evaluation.timing_rounds:
            row = self._timed(row, model, described)
        self.loggers.summarise(row.to_dict())
        output = Path(settings.paths.output)
        output.mkdir(parents=True, exist_ok=True)
        row.write(output / ROW_FILE)
        if (folder / GALLERY_FILE).exists():
            shutil.copyfile(folder / GALLERY_FILE, output / GALLERY_FILE)

    def _timed(self, row: Row, model: PrunedModel, described: dict[str, Any]) -> Row:
        """The row with its times, which are kept apart from its scores: a quieter hour asks for them alone."""
        evaluation = self.settings.evaluation

        def make(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
            sizes = evaluation.timing_batch, evaluation.timing_rounds
            times, baseline = measure_time(model.to(self.device), self.splits.test, *sizes)
            return {}, {"time": times, "baseline": baseline}

        own = {name: getattr(evaluation, name) for name in TIMING}
        notes = self._obtain("timing", {**described, "timing": own}, make).notes
        return replace(row, time=notes["time"], time_baseline=notes["baseline"])

    def _build(self, classes: int) -> Backbone:
        L.seed_everything(self.settings.seed, verbose=False)
        model, data = self.settings.model, self.settings.dataset
        base = build_base(model, classes, data.channels, data.image_size, model.pretrained)
        if not (model.timm and model.pretrained):
            return base
        expected = base.model.pretrained_cfg["mean"], base.model.pretrained_cfg["std"]
        if expected != (self.splits.mean, self.splits.deviation):
            raise UserError(
                f"model.timm={model.timm} was trained on images normalised by mean and deviation {expected}, but"
                f" dataset.source={data.source} gives {self.splits.mean, self.splits.deviation}: choose other weights"
            )
        return base

    def _load_checkpoint(self, base: Backbone, new_head: bool) -> None:
        path = self.settings.model.checkpoint
        if path:
            load_weights(base.model, Path(path), "model.checkpoint", base.head_prefixes if new_head else ())

    def _weights(self) -> dict[str, Any]:
        """What decides the weights that training starts from, but for the seed and the head."""
        model, data = asdict(self.settings.model), self.settings.dataset
        for name in ("name", "training", "fine_tune"):
            del model[name]
        if model["checkpoint"]:
            model["checkpoint"] = checksum(Path(model["checkpoint"]))  # the same name may hold other weights
        if model["huggingface"] and (folder := Path(find_pretrained(model["huggingface"]))).is_dir():
            weights = ("*.safetensors", "*.bin", "config.json")
            files = sorted(path for pattern in weights for path in folder.glob(pattern))
            model["huggingface"] = {path.name: checksum(path) for path in files}
        sizes = {"channels": data.channels, "image_size": data.image_size, "max_tokens": data.max_tokens}
        return {"model": model, **sizes, "version": __version__}

    def _data(self) -> dict[str, Any]:
        """What decides the batches of training, and the loss."""
        return {name: value for name, value in asdict(self.settings.dataset).items() if name != "metric"}

    def _words(self) -> Callable[[Tensor], list[str]] | None:
        """What turns a text's vocabulary places into words; None for images."""
        if not self.settings.model.huggingface:
            return None
        from sttabt.data.text import load_tokenizer  # transformers takes seconds to import

        tokenizer = load_tokenizer(self.settings.model, self.settings.dataset.max_tokens)
        return lambda ids: tokenizer.convert_ids_to_tokens(ids.tolist())

    def _keys(self, artifacts: Mapping[str, Artifact]) -> dict[str, str]:
        return {stage: artifact.key for stage, artifact in artifacts.items()}

    def _new_approx(self, base: Backbone, interpolated: bool) -> ApproximateNetwork:
        L.seed_everything(self.settings.seed, verbose=False)
        network = ApproximateNetwork(base, self.settings.approx.factor)
        if interpolated:
            network.start_from(base)
        return network

    def _needs_approx(self, kind: type[Method]) -> bool:
        probe = kind(self.settings.sparsity, layers=1, outputs=1)
        return probe.attention == "approximate"

    def _training_context(self, stage: str) -> dict[str, Any]:
        return {
            "seed": self.settings.seed,
            "version": __version__,
            "batch": update_size(self.settings, stage),
            "precision": self.settings.hardware.precision,
            "fast_dev_run": self.settings.fast_dev_run,
        }

    def _fit(self, module: TrainingStage, folder: Path, splits: Splits | None = None) -> None:
        fit(module, splits or self.splits, self.settings, folder, self.loggers.of_stage(module.stage))

    def _obtain(self, stage: str, described: dict[str, Any], make: Make) -> Artifact:
        self._claim(stage, described, make)
        tensors, artifact = self.store.load(stage, described)
        return Artifact(tensors, fingerprint(described), artifact["notes"])

    def _claim(self, stage: str, described: dict[str, Any], make: Make) -> Path:
        """The folder of a finished artifact, made now if it is not there and its stage is asked for."""
        asked = "evaluate" if stage == "timing" else stage  # a part of that stage
        left_out = asked not in self.settings.stages or (stage == "approx" and self.settings.skip_approx)
        if left_out and self.store.find(stage, described) is None:
            remedy = "skip_approx=false" if stage in self.settings.stages else f"{stage} in stages"
            raise UserError(f"{self.store.missing_message(stage, described)}: make it with {remedy}")
        with self.store.claim(stage, described) as claim:
            if not claim.finished:
                started = time.perf_counter()
                tensors, notes = make(claim.folder)
                claim.finish(tensors, {"seconds": time.perf_counter() - started, **notes})
                (claim.folder / CHECKPOINT).unlink(missing_ok=True)
            else:
                log.info("stage %s is done already: %s", stage, claim.folder)
            return claim.folder

    def _notes(self, artifacts: dict[str, Artifact]) -> dict[str, dict[str, Any]]:
        return {stage: artifact.notes for stage, artifact in artifacts.items()}
