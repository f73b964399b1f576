"""Every setting, once: type, default, meaning, and what it may be. Yaml files under conf/ give the values.

Imports no torch, so that `--help` and a typo answer at once. `Settings` is the root node of a run, `SpeedSettings` that
of the benchmark; `sparsity` has one class a method (`methods`), so a key that a method does not know stops at
composition.
"""

from __future__ import annotations

from sttabt.settings.approx import ApproxSettings
from sttabt.settings.bench import BenchSettings, SpeedSettings
from sttabt.settings.budget import BudgetSettings, check_budget, check_of_batches
from sttabt.settings.dataset import METRICS, AugmentationSettings, DatasetSettings
from sttabt.settings.hardware import HardwareSettings, processes_of, steps_of
from sttabt.settings.methods import method_names, method_settings
from sttabt.settings.methods.base import MethodSettings, TrainedSettings, TunedSettings
from sttabt.settings.model import LVVIT_SIZES, ModelSettings
from sttabt.settings.run import (
    STAGES,
    TRAININGS,
    EvaluationSettings,
    LoggerSettings,
    PathSettings,
    Settings,
    training_of,
    update_size,
)
from sttabt.settings.schedules import ScheduleSettings, check_schedules
from sttabt.settings.training import TrainingSettings

__all__ = [
    "LVVIT_SIZES",
    "METRICS",
    "STAGES",
    "TRAININGS",
    "ApproxSettings",
    "AugmentationSettings",
    "BenchSettings",
    "BudgetSettings",
    "DatasetSettings",
    "EvaluationSettings",
    "HardwareSettings",
    "LoggerSettings",
    "MethodSettings",
    "ModelSettings",
    "PathSettings",
    "ScheduleSettings",
    "Settings",
    "SpeedSettings",
    "TrainedSettings",
    "TrainingSettings",
    "TunedSettings",
    "check_budget",
    "check_of_batches",
    "check_schedules",
    "method_names",
    "method_settings",
    "processes_of",
    "steps_of",
    "training_of",
    "update_size",
]
