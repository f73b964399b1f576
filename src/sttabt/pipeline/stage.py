"""What a stage is: what its artifact is found by, how that is made, and how it is read."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from sttabt.data import counted, load_splits
from sttabt.data.base import Splits
from sttabt.data.task import Task
from sttabt.lit.fit import fit
from sttabt.lit.launch import ALONE, Nodes
from sttabt.lit.loggers import JobLoggers
from sttabt.lit.stage import TrainingStage
from sttabt.pipeline.descriptions import data_of
from sttabt.pipeline.evaluation import find_device
from sttabt.settings import MethodSettings, Settings
from sttabt.store.artifacts import Store
from sttabt.store.contents import digest
from sttabt.store.job import Job


class Context:
    """What the stages of one job share: its settings, where artifacts are, the data, the device.

    loggers: where trainings and the result are logged. nodes: this one among those that run the same command.
    Raises UserError when the data or the accelerator is not there.
    """

    def __init__(self, settings: Settings, job: Job, loggers: JobLoggers, nodes: Nodes = ALONE) -> None:
        self.job, self.loggers, self.nodes = job, loggers, nodes
        self.store = Store(Path(settings.paths.artifacts))
        self.device = find_device(settings.hardware.accelerator, settings.hardware.devices)
        self.splits = load_splits(settings.dataset, settings.model)
        self.settings = replace(settings, dataset=counted(settings.dataset, self.splits))
        self.task = Task.of(self.settings.dataset)

    def under(self, sparsity: MethodSettings) -> Context:
        """The same with other settings of the method."""
        other = copy.copy(self)
        other.settings = replace(self.settings, sparsity=sparsity)
        return other

    @cached_property
    def contents(self) -> dict[str, str]:
        """A hash of what each split holds, by its name; {} of a source that cannot say it."""
        return {
            split: each if isinstance(each, str) else digest(each, self.store.root)
            for split, each in self.splits.contents.items()
        }


@dataclass(frozen=True)
class Artifact:
    """What a stage made: its weights and their checksum, where it is, and notes (seconds, approximation errors)."""

    tensors: dict[str, Tensor]
    sha256: str
    folder: Path
    notes: dict[str, Any]

    @property
    def key(self) -> str:
        """The fingerprint of what it is made of."""
        return self.folder.name


@dataclass(frozen=True)
class Made:
    """What `Stage.make` gives to be kept: weights by name, and notes that JSON can say."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Stage(ABC):
    """One step of a run. Its artifact is found by `description`; `obtain` makes it if it is not there.

    name: the folder of its artifacts; asked_by: the name in `settings.stages` that asks for it. computation: the
    version of what it computes, which rises when the same settings and data give other numbers: artifacts are made
    again then, and not when code is merely written anew. made_of: the artifacts that it is made of, by stage.
    """

    name: ClassVar[str]
    asked_by: ClassVar[str]
    computation: ClassVar[int]

    def __init__(self, context: Context, made_of: Mapping[str, Artifact] | None = None) -> None:
        self.context, self.made_of = context, dict(made_of or {})

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.asked_by = cls.__dict__.get("asked_by", cls.name)

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Every setting that influences what is made, in a form that JSON keeps; its hash is the fingerprint."""

    @abstractmethod
    def make(self, folder: Path, loggers: list[Any]) -> Made:
        """The work, in the artifact's folder, where files may be left; `loggers` are Lightning's, for a training."""

    @property
    def settings(self) -> Settings:
        return self.context.settings

    @property
    def data(self) -> dict[str, Any]:
        """What a description says of the data that a training sees."""
        return data_of(self.settings, self.context.contents)

    @property
    def keys(self) -> dict[str, str]:
        """The fingerprints of what it is made of, by stage."""
        return {stage: artifact.key for stage, artifact in self.made_of.items()}

    def train(self, module: TrainingStage, splits: Splits, folder: Path, loggers: list[Any]) -> dict[str, Any]:
        """Train `module` in place, as a part of `make`; notes of it: on how much, which weights, how well."""
        fitted = fit(module, splits, self.settings, folder, loggers, self.context.nodes)
        measured = {name.rpartition("/validation_"): value for name, value in fitted.metrics.items()}
        notes: dict[str, Any] = {
            "samples": {"train": len(splits.train), "validation": len(splits.validation)},  # type: ignore[arg-type]
            "validation": {name: v for (_, found, name), v in measured.items() if found and math.isfinite(v)},
            "epochs": fitted.epochs,
            "weights": fitted.weights,
        }
        some = {"broken_images": fitted.broken_images, "seconds_before": fitted.seconds_before}
        return notes | {name: value for name, value in some.items() if value}
