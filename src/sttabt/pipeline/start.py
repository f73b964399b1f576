"""Models as a stage starts with them: built from the settings, with given weights that were checked."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
from torch import nn

from sttabt.backbones.base import Backbone
from sttabt.errors import UserError
from sttabt.models.approximate import ApproximateNetwork
from sttabt.pipeline.stage import Context
from sttabt.pretrained.build import build_base
from sttabt.pretrained.built import Built
from sttabt.pretrained.weights import load_weights
from sttabt.settings import Settings
from sttabt.store.artifacts import first_not_finite

log = logging.getLogger(__name__)


def new_base(context: Context, classes: int) -> Built:
    """The encoder and head that `model` describes, the same for the same seed, or with pretrained weights."""
    settings = context.settings
    L.seed_everything(settings.seed, verbose=False)
    model, data = settings.model, settings.dataset
    built = build_base(model, classes, data.channels, data.image_size, model.pretrained)
    if model.pretrained:
        check_given(built.base, f"model.pretrained=true of {model.timm or model.lvvit or model.huggingface}")
    if built.normalised_by:
        _check_normalisation(context, *built.normalised_by)
    return built


def load_given(base: Backbone, settings: Settings, new_head: bool) -> bool:
    """The weights of `model.checkpoint`, where there is one, into `base`; new_head: where the file has no head of these
    classes, `base` keeps its own, and True is given back.

    Raises UserError for a file that does not fit, or that holds numbers that are not finite.
    """
    path = settings.model.checkpoint
    if not path:
        return False
    kept = load_weights(base, Path(path), "model.checkpoint", new_head)
    check_given(base, f"model.checkpoint={path}")
    return kept


def new_approx(settings: Settings, base: Backbone, interpolated: bool) -> ApproximateNetwork:
    """The approximate network of `base`, the same for the same seed; interpolated: from the base model's weights."""
    L.seed_everything(settings.seed, verbose=False)
    network = ApproximateNetwork(base, settings.approx.factor, settings.approx.stem == "shared")
    if interpolated:
        network.start_from(base)
    return network


def check_given(model: nn.Module, source: str) -> None:
    """Raises UserError, naming the source and the weight, when one is infinite or no number."""
    if (name := first_not_finite(model.state_dict())) is not None:
        raise UserError(f"{source} gives weights that are not finite ({name}): give other weights")


def _check_normalisation(context: Context, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Pretrained weights know images normalised as when they were trained; fine-tuned ones may learn another."""
    model, splits, wanted = context.settings.model, context.splits, (mean, std)
    if wanted == (splits.mean, splits.std):
        return
    remedy = f"set model.mean={list(mean)} model.std={list(std)}".replace(", ", ",")
    if len(splits.mean) != len(mean):
        remedy = f"they are for {len(mean)} channels: set dataset.channels={len(mean)}, and {remedy}"
    line = (
        f"model.name={model.name} was trained on images normalised by mean and std {wanted}, not by"
        f" {splits.mean, splits.std} as here: {remedy}"
    )
    if not model.fine_tune:
        raise UserError(line)
    log.warning(line)
