"""The model: whether it can read the data, its sizes, and where its weights come from."""

from __future__ import annotations

import re

from sttabt.data.sources import find_source
from sttabt.errors import UserError
from sttabt.settings import LVVIT_SIZES, DatasetSettings, ModelSettings, Settings
from sttabt.settings.values import check_choice

GIVEN_BY_DATASET = {"img_size": "image_size", "in_chans": "channels", "num_classes": "classes"}
STATED_BY_MODEL = {"embed_dim": "width", "depth": "depth", "num_heads": "heads", "patch_size": "patch_size"}


def check_kinds(model: ModelSettings, dataset: DatasetSettings) -> None:
    """Text goes to a model of text, images to one of images."""
    named = {name: getattr(model, name) for name in ("timm", "lvvit", "huggingface")}
    if sum(map(bool, named.values())) != 1:
        given = ", ".join(f"model.{name}='{value}'" for name, value in named.items())
        raise UserError(f"{given}: give exactly one of them, timm or lvvit for images, huggingface for text or images")
    if model.lvvit:
        check_choice("model.lvvit", model.lvvit, LVVIT_SIZES)
    text = find_source(dataset.source).holds == "text"
    for name in ("timm", "lvvit"):
        if text and named[name]:
            raise UserError(
                f"dataset.source={dataset.source} gives text, which model.{name}={named[name]} cannot read:"
                " choose a model of text, e.g. model=minilm_l6, or a data set of images"
            )
    if not text and model.huggingface and not model.patch_size:
        raise UserError(
            f"dataset.source={dataset.source} gives images, which model.huggingface={model.huggingface} cannot read:"
            " choose a model of images, e.g. model=deit_small (or, of a vision transformer, set model.patch_size), or a"
            " data set of text"
        )
    for key, value in (("model.patch_size", model.patch_size), ("dataset.image_size", dataset.image_size)):
        if text and value:
            raise UserError(f"{key}={value}: text has no pixels, set {key}=0")
        if not text and value < 1:
            raise UserError(f"{key}={value} is out of range: it must be at least 1 for images")


def check_model(settings: Settings) -> None:
    model, dataset, factor = settings.model, settings.dataset, settings.approx.factor
    for name, value in model.arguments.items():
        key = f"model.arguments.{name}"
        if name in GIVEN_BY_DATASET:
            raise UserError(f"{key}={value}: set dataset.{GIVEN_BY_DATASET[name]} instead, which the model follows")
        stated = STATED_BY_MODEL.get(name)
        if stated and value != getattr(model, stated):
            raise UserError(f"{key}={value} contradicts model.{stated}={getattr(model, stated)}: change both")
    counts = getattr(settings.sparsity, "counts", None)
    if counts and find_source(dataset.source).holds == "text":
        raise UserError(
            f"sparsity.counts={counts} keeps as many tokens of every sample, which texts of unequal length do not have:"
            " set sparsity.keep_ratio instead"
        )
    if model.width % model.heads:
        raise UserError(f"model.width={model.width} is no multiple of model.heads={model.heads}: choose one that is")
    if model.patch_size and dataset.image_size % model.patch_size:
        raise UserError(
            f"model.patch_size={model.patch_size} does not divide dataset.image_size={dataset.image_size}:"
            " choose one that does"
        )
    head_width = model.width // model.heads
    if head_width % factor:
        valid = ", ".join(str(f) for f in range(1, head_width + 1) if head_width % f == 0)
        raise UserError(
            f"approx.factor={factor} does not divide the head width {head_width}"
            f" (model.width={model.width}, model.heads={model.heads}): choose one of: {valid}"
        )


def check_weights(settings: Settings) -> None:
    model, approx = settings.model, settings.approx
    given = model.pretrained or bool(model.checkpoint)
    if model.pretrained and model.checkpoint:
        raise UserError(f"model.checkpoint={model.checkpoint} needs model.pretrained=false: one of them gives weights")
    if model.class_names and settings.dataset.classes not in (0, len(model.class_names)):
        raise UserError(
            f"model.class_names={model.class_names} are {len(model.class_names)} names for"
            f" dataset.classes={settings.dataset.classes}: give as many"
        )
    if model.sha256 and not re.fullmatch("[0-9a-fA-F]{8,64}", model.sha256):
        raise UserError(
            f"model.sha256={model.sha256} is no checksum: give the 64 hex digits of SHA-256, or the first 8"
        )
    if approx.checkpoint and approx.start == "general":
        raise UserError(
            f"approx.checkpoint={approx.checkpoint} needs approx.start=interpolated: nothing is left to distil"
        )
    if model.fine_tune and not given:
        raise UserError("model.fine_tune=true has no weights to start from: set model.pretrained or model.checkpoint")
    if approx.start != "general":
        if settings.stages == ["general"]:
            raise UserError(
                f"stages=[general] leaves nothing to do with approx.start={approx.start}: set it to general"
            )
        return
    if find_source(settings.dataset.source).holds != "text":
        raise UserError("approx.start=general distils on a corpus of text: set approx.start=interpolated for images")
    if not approx.corpus:
        raise UserError(
            "approx.start=general needs unlabelled data: give approx.corpus, or set approx.start=interpolated"
        )
    if not given:
        raise UserError(
            "approx.start=general distils from weights that are there before the task: set model.pretrained or"
            " model.checkpoint"
        )
