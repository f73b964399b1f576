"""A run goes through stages: base, general, approx, prune, evaluate, report. Each hands files to the next.

What a stage makes is found by what made it: a hash of every setting that influences it (`descriptions`). A finished
artifact is used again, by this run or by any job of a sweep; jobs that want the same one at the same time make it once
(`making`).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sttabt.backbones.base import Backbone
from sttabt.data import load_splits
from sttabt.data.sources import find_source
from sttabt.data.task import Task
from sttabt.errors import UserError
from sttabt.lit.launch import ALONE, Nodes, prepare_process
from sttabt.lit.loggers import JobLoggers
from sttabt.lit.modules import Approximation, BaseTraining, GeneralApproximation, Pruning
from sttabt.methods import find_method
from sttabt.methods.base import Method
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.card import last_stage, write_card
from sttabt.pipeline.descriptions import (
    describe_approx,
    describe_base,
    describe_general,
    describe_prune,
    describe_result,
    describe_timing,
)
from sttabt.pipeline.evaluation import attention_error, find_device, gallery
from sttabt.pipeline.making import Artifact, Maker
from sttabt.pipeline.result import device_name, make_row, measure_time
from sttabt.pretrained.build import build_base
from sttabt.pretrained.weights import load_approx, load_weights
from sttabt.report.build import make_report
from sttabt.report.files import write_atomically
from sttabt.report.gallery import GALLERY_FILE, read_gallery
from sttabt.report.predictions import PREDICTIONS_FILE
from sttabt.report.rows import ROW_FILE, Row
from sttabt.settings import LoggerSettings, Settings, TrainedSettings
from sttabt.store.artifacts import AVERAGED, fingerprint
from sttabt.store.job import Job

ENCODER_CLASSES = 2  # of a pretrained encoder, whose head nobody reads; the same for all tasks

log = logging.getLogger(__name__)


def run_stages(settings: Settings, job: Job) -> None:
    """Everything that `settings.stages` names. Artifacts go to paths.artifacts, the row to paths.output.

    Raises UserError when a stage that is left out has not been run with these settings before.
    """
    prepare_process(settings.hardware)
    wanted = set(settings.stages)
    with Nodes(settings.hardware, job.command) as nodes:
        stages = Stages(settings, job, nodes)
        logged = settings if nodes.first else replace(settings, logger=LoggerSettings(kind="none"))
        with JobLoggers(logged, job) as stages.maker.loggers:
            if "evaluate" in wanted and nodes.first:
                stages.evaluate()
            elif wanted & {"evaluate", "prune"}:
                stages.pruned()
            elif "approx" in wanted:
                stages.approx()
            else:
                if "base" in wanted:
                    stages.base()
                if "general" in wanted and settings.approx.start == "general":
                    stages.general()
    if "report" in wanted and nodes.first and not job.multirun:
        output = Path(settings.paths.output)
        log.info("report: %s", make_report([output], output / "report").page)


class Stages:
    """The stages of one job; each asks for the one before it, and makes only what is not there."""

    def __init__(self, settings: Settings, job: Job, nodes: Nodes = ALONE) -> None:
        self.settings, self.job, self.nodes = settings, job, nodes
        self.maker = Maker(settings, job, nodes)
        self.device = find_device(settings.hardware.accelerator, settings.hardware.devices)
        self.splits = load_splits(settings.dataset, settings.model)
        self.task = Task.of(settings.dataset)

    def base(self) -> tuple[Backbone, Artifact]:
        """The dense base model: trained here, from its start or from given weights, or given weights as they are."""
        model, classes = self.settings.model, self.settings.dataset.classes
        trained = model.fine_tune or not (model.checkpoint or model.pretrained)
        base, new_head = self._build(classes)
        if new_head and not model.fine_tune:
            raise UserError(
                f"model.pretrained=true gives no head for dataset.classes={classes}, so that it would guess:"
                " set model.fine_tune=true"
            )

        def make(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
            self._load_checkpoint(base, new_head=model.fine_tune)
            notes: dict[str, Any] = {}
            if trained:
                notes = self.maker.fit(BaseTraining(base, model.training, self.task), self.splits, folder)
            return base.state_dict(), notes

        artifact = self.maker.obtain("base", describe_base(self.settings, trained), make)
        base.load_state_dict(artifact.tensors, strict=True)
        return base.eval(), artifact

    def general(self) -> Artifact:
        """The approximate network of the encoder before it is fine-tuned, distilled on a corpus, without its head."""
        settings = self.settings.approx

        def make(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
            from sttabt.data.corpus import load_corpus  # transformers takes seconds to import

            encoder, _ = self._build(ENCODER_CLASSES)
            self._load_checkpoint(encoder, new_head=True)
            network = self._new_approx(encoder, interpolated=True)
            module = GeneralApproximation(network, encoder, settings, Task("accuracy", ENCODER_CLASSES))
            corpus = load_corpus(settings.corpus, self.settings.model, self.settings.dataset.max_tokens)
            self.maker.fit(module, corpus, folder)
            return {name: value for name, value in network.state_dict().items() if not network.is_head(name)}, {}

        return self.maker.obtain("general", describe_general(self.settings), make)

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
            notes: dict[str, Any] = {}
            if settings.checkpoint:
                load_approx(network, Path(settings.checkpoint), "approx.checkpoint")
            else:
                notes = self.maker.fit(Approximation(network, base, settings, self.task), self.splits, folder)
            if not self.nodes.first:
                return {}, {}
            networks = {"distilled": network.eval(), **controls}
            errors = attention_error(
                {name: each.to(self.device) for name, each in networks.items()},
                base.to(self.device),
                self.splits.validation,
                self.settings.evaluation.batch_size,
                self.settings.fast_dev_run,
                self.settings.hardware.workers,
            )
            return network.state_dict(), {"errors": errors, **notes}

        artifacts["approx"] = self.maker.obtain("approx", describe_approx(self.settings, self._keys(artifacts)), make)
        network.load_state_dict(artifacts["approx"].tensors, strict=True)
        return base, network.eval(), artifacts

    def pruned(self) -> tuple[PrunedModel, PrunedModel | None, dict[str, Artifact]]:
        """The model under `sparsity`, trained where the method trains; the same with averaged weights, where
        `sparsity.ema` asks for them; and the artifacts it is made of.
        """
        sparsity = self.settings.sparsity
        kind = find_method(sparsity.method)
        artifacts: dict[str, Artifact] = {}
        if self._needs_approx(kind):
            base, network, artifacts = self.approx()
        else:
            (base, artifacts["base"]), network = self.base(), None
        model = PrunedModel(base, kind(sparsity, base.layers, base.outputs), network)
        if isinstance(sparsity, TrainedSettings):

            def make(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
                module = Pruning(model, base, sparsity, self.task)
                notes = self.maker.fit(module, self.splits, folder)
                averaged = {} if module.averaged is None else module.averaged.module.state_dict()
                return model.state_dict() | {AVERAGED + name: value for name, value in averaged.items()}, notes

            artifacts["prune"] = self.maker.obtain("prune", describe_prune(self.settings, self._keys(artifacts)), make)
            tensors = artifacts["prune"].tensors
            model.load_state_dict(
                {name: t for name, t in tensors.items() if not name.startswith(AVERAGED)}, strict=True
            )
            if sparsity.ema:
                averaged = copy.deepcopy(model).eval()
                own = {name.removeprefix(AVERAGED): t for name, t in tensors.items() if name.startswith(AVERAGED)}
                averaged.load_state_dict(own, strict=True)
                return model.eval(), averaged, artifacts
        return model.eval(), None, artifacts

    def evaluate(self) -> None:
        """The result row of this job, its predictions, and the images of its gallery, in paths.output."""
        model, averaged, artifacts = self.pruned()
        settings = self.settings
        hardware = {"device": device_name(self.device), "threads": torch.get_num_threads()}
        described = describe_result(settings, self._keys(artifacts), hardware, self.job.commit)

        def make(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
            model.to(self.device)
            if averaged is not None:
                averaged.to(self.device)
            notes = self._notes(artifacts)
            key = fingerprint(described)
            row, predictions = make_row(model, averaged, self.splits, settings, self.job, key, notes)
            predictions.write(folder / PREDICTIONS_FILE)
            if settings.evaluation.gallery:
                gallery(model, self.splits, self.task, settings.evaluation.gallery, self._words()).write(
                    folder / GALLERY_FILE
                )
            row.write(folder / ROW_FILE)
            return {}, {}

        folder = self.maker.claim("evaluate", described, make)
        row = Row.read(folder / ROW_FILE)
        if settings.evaluation.timing_rounds:
            row = self._timed(row, model, described)
        made_of = {stage: artifact.folder for stage, artifact in artifacts.items()}
        tokens = folder / GALLERY_FILE
        self.maker.loggers.result(row, read_gallery(tokens) if tokens.exists() else None, made_of)
        write_card(made_of[last_stage(made_of)])  # which this result belongs to
        output = Path(settings.paths.output)
        output.mkdir(parents=True, exist_ok=True)
        row.write(output / ROW_FILE)
        for name in (GALLERY_FILE, PREDICTIONS_FILE):  # results of older versions have no predictions
            if (folder / name).exists():
                write_atomically(output / name, (folder / name).read_bytes())

    def _timed(self, row: Row, model: PrunedModel, described: dict[str, Any]) -> Row:
        """The row with its times, which are kept apart from its scores: a quieter hour asks for them alone."""
        evaluation = self.settings.evaluation

        def make(folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
            sizes = evaluation.timing_batch, evaluation.timing_rounds
            times, baseline = measure_time(model.to(self.device), self.splits.test, *sizes)
            return {}, {"time": times, "baseline": baseline}

        notes = self.maker.obtain("timing", describe_timing(self.settings, described), make).notes
        return replace(row, time=notes["time"], time_baseline=notes["baseline"])

    def _build(self, classes: int) -> tuple[Backbone, bool]:
        """The base model, and whether its head is new though its weights are pretrained."""
        L.seed_everything(self.settings.seed, verbose=False)
        model, data = self.settings.model, self.settings.dataset
        built = build_base(model, classes, data.channels, data.image_size, model.pretrained)
        if built.normalised_by:
            self._check_normalisation(*built.normalised_by)
        return built.base, built.new_head

    def _check_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Pretrained weights know images normalised as when they were trained; fine-tuned ones may learn another."""
        model, wanted = self.settings.model, (mean, std)
        if wanted == (self.splits.mean, self.splits.std):
            return
        remedy = f"set model.mean={list(wanted[0])} model.std={list(wanted[1])}".replace(", ", ",")
        if len(self.splits.mean) != len(wanted[0]):
            remedy = f"they are for {len(wanted[0])} channels: set dataset.channels={len(wanted[0])}, and {remedy}"
        line = (
            f"model.name={model.name} was trained on images normalised by mean and std {wanted}, not by"
            f" {self.splits.mean, self.splits.std} as here: {remedy}"
        )
        if not model.fine_tune:
            raise UserError(line)
        log.warning(line)

    def _load_checkpoint(self, base: Backbone, new_head: bool) -> None:
        path = self.settings.model.checkpoint
        if path:
            load_weights(base, Path(path), "model.checkpoint", new_head)

    def _words(self) -> Callable[[Tensor], list[str]] | None:
        """What turns a text's vocabulary places into words; None for images."""
        if find_source(self.settings.dataset.source).holds != "text":
            return None
        from sttabt.data.text import load_tokenizer  # transformers takes seconds to import

        tokenizer = load_tokenizer(self.settings.model, self.settings.dataset.max_tokens)
        return lambda ids: tokenizer.convert_ids_to_tokens(ids.tolist())

    def _keys(self, artifacts: Mapping[str, Artifact]) -> dict[str, str]:
        return {stage: artifact.key for stage, artifact in artifacts.items()}

    def _new_approx(self, base: Backbone, interpolated: bool) -> ApproximateNetwork:
        L.seed_everything(self.settings.seed, verbose=False)
        settings = self.settings.approx
        network = ApproximateNetwork(base, settings.factor, settings.stem == "shared")
        if interpolated:
            network.start_from(base)
        return network

    def _needs_approx(self, kind: type[Method]) -> bool:
        probe = kind(self.settings.sparsity, layers=1, outputs=1)
        return probe.attention == "approximate"

    def _notes(self, artifacts: dict[str, Artifact]) -> dict[str, dict[str, Any]]:
        return {stage: artifact.notes for stage, artifact in artifacts.items()}
