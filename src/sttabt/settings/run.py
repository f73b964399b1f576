"""The root of a run's settings, and the nodes that are small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sttabt.settings.approx import ApproxSettings
from sttabt.settings.budget import BudgetSettings
from sttabt.settings.dataset import DatasetSettings
from sttabt.settings.fields import MISSING, SEED, at_least, setting
from sttabt.settings.hardware import HardwareSettings, processes_of
from sttabt.settings.model import ModelSettings
from sttabt.settings.training import TrainingSettings

STAGES = ("base", "general", "approx", "prune", "evaluate", "report")

REMADE = STAGES[:-1]  # those that leave artifacts

PRECISIONS = ("float32", "tf32", "bf16")  # of evaluation
SPLITS = ("test", "validation")  # of `Splits`, that are evaluated

TRAININGS = {  # where a stage's training is set
    "base": "model.training",
    "general": "approx.corpus_training",
    "approx": "approx.training",
    "prune": "sparsity.training",
}


def _is_timed(settings: Any, _: str) -> str | None:
    return None if settings.evaluation.timing_rounds > 0 else "evaluation.timing_rounds=0 times nothing"


def _is_wandb(settings: Any, _: str) -> str | None:
    return None if settings.logger.kind.startswith("wandb") else "it is a setting of W&B"


def _is_approximated(settings: Any, path: str) -> str | None:
    sparsity = settings.sparsity
    if sparsity.reads_approximation or (path == "skip_approx" and not settings.skip_approx):
        return None
    return f"{sparsity.method} uses no approximate network here"


@dataclass
class EvaluationSettings:
    """What is measured, and on how much."""

    split: str = setting(
        SPLITS[0], "what rows are of: validation leaves the test split unread while choices are open", choices=SPLITS
    )
    batch_size: int = setting(64, "samples a forward", at_least(1))
    precision: str = setting(
        "float32",
        "of the numbers that are measured, times too; tf32 and bf16 (autocast) on a GPU alone",
        choices=PRECISIONS,
    )
    timing_batch: int = setting(
        32,
        "samples in the timed forward (of a cascade four forwards); a few samples are also timed one at a time",
        at_least(1),
        when=_is_timed,
    )
    timing_rounds: int = setting(15, "interleaved rounds; 0: no timing", at_least(0))
    gallery: int = setting(8, "images or texts of that split whose tokens are kept for drawing", at_least(0))


@dataclass
class LoggerSettings:
    """Where metrics go while a job runs."""

    kind: str = setting(
        "wandb_offline", "what is logged to", choices=("wandb_offline", "wandb_online", "tensorboard", "csv", "none")
    )
    project: str = setting("sttabt", "W&B's project", when=_is_wandb)
    entity: str = setting(
        "", "W&B's team or user that has the project; empty: the account's own default", when=_is_wandb
    )
    upload_weights: bool = setting(
        False, "put weights into W&B's artifacts; else their paths and checksums", when=_is_wandb
    )


@dataclass
class PathSettings:
    """Where files go."""

    artifacts: str = setting(MISSING, "shared by all jobs: weights, each found by what made it, and result rows")
    output: str = setting(MISSING, "this job's own folder")


@dataclass
class Settings:
    """The root node of a run."""

    name: str = setting(MISSING, "the experiment's name")
    model: ModelSettings = setting(ModelSettings, "the base model")
    dataset: DatasetSettings = setting(DatasetSettings, "the data set")
    sparsity: Any = setting(MISSING, "the pruning method; its settings are chosen with it")  # a MethodSettings
    budget: BudgetSettings = setting(BudgetSettings, "what the pruned model may cost, instead of the method's knob")
    approx: ApproxSettings = setting(ApproxSettings, "the approximate attention network", when=_is_approximated)
    hardware: HardwareSettings = setting(HardwareSettings, "where and how fast a job runs")
    evaluation: EvaluationSettings = setting(EvaluationSettings, "what is measured, and on how much")
    trainer: dict[str, Any] = setting({}, "arguments of Lightning's Trainer that no other setting gives")
    callbacks: dict[str, Any] = setting(
        {}, "Lightning Callbacks, each under a name of one's choice, with its `_target_` and arguments"
    )
    logger: LoggerSettings = setting(LoggerSettings, "where metrics go while a job runs")
    paths: PathSettings = setting(PathSettings, "where files go")
    stages: list[str] = setting(list(STAGES), "what is done", choices=STAGES)
    skip_approx: bool = setting(
        False, "use the approximate network that is there; an error if there is none", when=_is_approximated
    )
    resume: str = setting(
        "auto", "go on with an interrupted stage (auto), or begin it again (never)", choices=("auto", "never")
    )
    remake: list[str] = setting([], "stages that are made again though they are there", choices=REMADE)
    seed: int = setting(0, "of all that is random, except the splits", SEED)
    fast_dev_run: int = setting(0, "above 0: so many steps a stage, on as many batches; for tests", at_least(0))


def training_of(settings: Settings, stage: str) -> TrainingSettings | None:
    """The settings of a stage's training; None where the method trains nothing."""
    node, _, name = TRAININGS[stage].partition(".")
    return getattr(getattr(settings, node), name, None)


def update_size(settings: Settings, stage: str) -> int:
    """Samples a weight update of that training stage."""
    training, hardware = training_of(settings, stage), settings.hardware
    return (
        training and training.global_batch_size
    ) or hardware.batch_size * hardware.accumulate_grad_batches * processes_of(hardware)
