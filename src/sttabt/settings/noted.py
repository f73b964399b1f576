"""Settings as an artifact notes them, plain, with their types again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sttabt.settings.dataset import AugmentationSettings, DatasetSettings
from sttabt.settings.model import ModelSettings
from sttabt.settings.training import TrainingSettings


def noted_dataset(settings: Mapping[str, Any]) -> DatasetSettings:
    """`dataset` of a run's settings. Raises KeyError or TypeError for those of another version."""
    data = settings["dataset"]
    return DatasetSettings(**{**data, "augmentation": AugmentationSettings(**data["augmentation"])})


def noted_model(settings: Mapping[str, Any]) -> ModelSettings:
    """As `noted_dataset`, of `model`."""
    model = settings["model"]
    return ModelSettings(**{**model, "training": TrainingSettings(**model["training"])})
