"""Checks that need all settings at once or a range: run once, before anything is built. Imports no torch."""

from __future__ import annotations

import codecs
import importlib.util
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from sttabt.errors import UserError, nearest
from sttabt.hub import find_pretrained
from sttabt.settings import (
    CHOICES,
    GLUE_TASKS,
    IDX_REMEDY,
    LVVIT_SIZES,
    METRICS,
    SOURCES,
    STAGES,
    TRAININGS,
    DatasetSettings,
    ModelSettings,
    Settings,
    TrainingSettings,
    processes_of,
    steps_of,
    training_of,
    update_size,
)

GIVEN_BY_DATASET = {"img_size": "image_size", "in_chans": "channels", "num_classes": "classes"}
TEXT_SETTINGS = ("columns", "max_tokens")
IMAGE_SETTINGS = ("augment", "augmentation", "channels", "mean", "deviation", "broken_share")
TABLE_SETTINGS = ("hub_id", "configuration", "train_split", "test_split", "image_column")
DIGITS = "digits have their own preparation"
DIGITS_HAVE = ("augmentation", "mean", "deviation", "broken_share")
APPROXIMATIONS = ("approx.training", "approx.corpus_training")
FILE_SETTINGS = ("header", "encoding", "positive_above", "test_share")
OF_WANDB = ("project", "entity", "upload_weights")
STATED_BY_MODEL = {"embed_dim": "width", "depth": "depth", "num_heads": "heads", "patch_size": "patch_size"}

Rule = tuple[str, Callable[[float], bool]]


def at_least(low: float) -> Rule:
    return f"at least {low}", lambda value: value >= low


ABOVE_ZERO: Rule = ("above 0", lambda value: value > 0)
SHARE: Rule = ("between 0 and 1", lambda value: 0 <= value <= 1)
SHARE_ABOVE_ZERO: Rule = ("above 0 and at most 1", lambda value: 0 < value <= 1)
SHARE_BELOW_ONE: Rule = ("at least 0 and below 1", lambda value: 0 <= value < 1)
INNER_SHARE: Rule = ("above 0 and below 1", lambda value: 0 < value < 1)

TRAINING: dict[str, Rule] = {
    "epochs": at_least(0),
    "epoch_share": SHARE_ABOVE_ZERO,
    "learning_rate": ABOVE_ZERO,
    "final_learning_rate": at_least(0),
    "weight_decay": at_least(0),
    "warmup_epochs": at_least(0),
    "clip": at_least(0),
    "label_smoothing": SHARE_BELOW_ONE,
    "batch": at_least(0),
    "mixup": at_least(0),
    "cutmix": at_least(0),
    "mix_share": SHARE_ABOVE_ZERO,
}
RANGES: dict[str, Rule] = {
    "model.width": at_least(1),
    "model.depth": at_least(1),
    "model.heads": at_least(1),
    "model.patch_size": at_least(0),
    "model.crop": SHARE_ABOVE_ZERO,
    "dataset.image_size": at_least(0),
    "dataset.channels": at_least(1),
    "dataset.classes": at_least(1),
    "dataset.max_tokens": at_least(0),
    "dataset.validation_share": INNER_SHARE,
    "dataset.test_share": INNER_SHARE,
    "dataset.split_seed": at_least(0),
    "dataset.broken_share": SHARE_BELOW_ONE,
    "dataset.augmentation.scale": SHARE_ABOVE_ZERO,
    "dataset.augmentation.flip": SHARE,
    "dataset.augmentation.erasing": SHARE,
    "approx.factor": at_least(1),
    "approx.attention_weight": at_least(0),
    "approx.hidden_weight": at_least(0),
    "approx.embedding_weight": at_least(0),
    "approx.prediction_weight": at_least(0),
    "sparsity.keep_ratio": SHARE_ABOVE_ZERO,
    "sparsity.merged": at_least(0),
    "sparsity.seed": at_least(0),
    "sparsity.propagation": SHARE,
    "sparsity.temperature": ABOVE_ZERO,
    "sparsity.lambda_p": at_least(0),
    "sparsity.lambda_mask": at_least(0),
    "sparsity.mask_weight": at_least(0),
    "sparsity.threshold_rate": at_least(0),
    "sparsity.distillation": at_least(0),
    "sparsity.hard_from": SHARE,
    "sparsity.p_logit_rate": at_least(0),
    "sparsity.ema": SHARE_BELOW_ONE,
    "hardware.devices": at_least(1),
    "hardware.nodes": at_least(1),
    "hardware.batch_size": at_least(1),
    "hardware.accumulate": at_least(1),
    "hardware.workers": at_least(0),
    "hardware.threads": at_least(0),
    "evaluation.batch_size": at_least(1),
    "evaluation.timing_batch": at_least(1),
    "evaluation.timing_rounds": at_least(0),
    "evaluation.gallery": at_least(0),
    "seed": at_least(0),
    "fast_dev_run": at_least(0),
    **{f"{node}.{name}": rule for node in TRAININGS.values() for name, rule in TRAINING.items()},
}


def check(settings: Settings) -> None:
    """Raises UserError for the first setting that cannot work, naming it, its value and what it may be."""
    values = dict(leaves(asdict(settings)))
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value} is not a finite number: give one")
    for key, (text, holds) in RANGES.items():
        if key in values and not holds(values[key]):
            raise UserError(f"{key}={values[key]} is out of range: it must be {text}")
    for key, choices in CHOICES.items():
        if key in values:
            _choose(key, values[key], choices)
    if not settings.stages:
        raise UserError(f"stages=[] leaves nothing to do: name some of {', '.join(STAGES)}")
    for stage in settings.stages:
        _choose("stages", stage, STAGES)
    if "report" in settings.stages and "evaluate" not in settings.stages:
        raise UserError(f"stages={settings.stages} reports on nothing: add evaluate, or leave report out")
    for node, training in _trainings(settings):
        if 0 < training.epochs <= training.warmup_epochs:
            raise UserError(
                f"{node}.warmup_epochs={training.warmup_epochs} leaves nothing of"
                f" {node}.epochs={training.epochs}: warm up for less, or train for longer"
            )
    _check_kinds(settings.model, settings.dataset)
    _check_task(settings.dataset)
    if SOURCES[settings.dataset.source] == "text":
        _check_text(settings.dataset)
    _check_images(settings)
    _check_model(settings)
    check_counts(getattr(settings.sparsity, "counts", []), settings.model.depth)
    _check_batch(settings)
    _check_weights(settings)
    _check_files(settings)
    if settings.logger.kind == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UserError("logger.kind=tensorboard needs the package tensorboard: pip install tensorboard, or logger=csv")


def without_effect(settings: Settings, overrides: Iterable[str]) -> Iterator[str]:
    """One line for every override of the command line (`key=value`) that changes nothing in this job."""
    sparsity, training = settings.sparsity, settings.model.training
    method = sparsity.method
    approximate = method == "concrete" or getattr(sparsity, "attention", None) == "approximate"
    model, source = settings.model, settings.dataset.source
    given = bool(model.pretrained or model.checkpoint)
    trained = model.fine_tune or not given
    text = SOURCES[source] == "text"
    classes = settings.dataset.task == "classification"
    named = source in ("image_table", *(name for name, kind in SOURCES.items() if kind == "text"))
    transformed = not text and source != "digits"
    general = approximate and settings.approx.start == "general"
    # (a key or a node, whether it has an effect, why not)
    uses = (
        ("approx", approximate, f"{method} uses no approximate network here"),
        ("skip_approx", approximate, f"{method} uses no approximate network here"),
        ("approx.stem", bool(model.lvvit), "the model has no convolutional stem"),
        ("approx.start", not settings.approx.checkpoint, "approx.checkpoint gives the network"),
        ("approx.training", not settings.approx.checkpoint, "approx.checkpoint gives the network"),
        ("model.auxiliary", bool(model.lvvit), "it is for LV-ViT"),
        ("model.sha256", bool(model.checkpoint), "there is no model.checkpoint to check"),
        ("model.training.label_smoothing", classes, "a score has no classes to smooth"),
        ("sparsity.training.label_smoothing", classes, "a score has no classes to smooth"),
        *((f"{node}.label_smoothing", False, "an approximation has no labels to smooth") for node in APPROXIMATIONS),
        *((f"{node}.mix_share", mixed, f"{node} mixes no images") for node, mixed in _mixing(settings)),
        ("approx.corpus", general, f"approx.start={settings.approx.start} reads no corpus"),
        ("approx.corpus_training", general, f"approx.start={settings.approx.start} reads no corpus"),
        ("model.training", trained, "the base model's weights are given, so the base stage trains nothing"),
        ("sparsity.keep_ratio", not getattr(sparsity, "dynamic", False), "sparsity.dynamic=true chooses the count"),
        ("sparsity.keep_ratio", not getattr(sparsity, "counts", []), "sparsity.counts gives the tokens of each layer"),
        ("sparsity.dynamic", not getattr(sparsity, "counts", []), "sparsity.counts gives the tokens of each layer"),
        ("dataset.path", source != "digits", "digits come with scikit-learn"),
        *((f"dataset.{name}", text, "it is a setting of text") for name in TEXT_SETTINGS),
        *((f"dataset.{name}", source == "text_file", "it is for source text_file") for name in FILE_SETTINGS),
        *((f"dataset.{name}", not text, "it is a setting of images") for name in IMAGE_SETTINGS),
        *((f"model.{name}", not text, "it is a setting of images") for name in ("crop", "mean", "deviation")),
        *((f"dataset.{name}", text or transformed, DIGITS) for name in DIGITS_HAVE),
        *((f"model.{name}", text or transformed, DIGITS) for name in ("crop", "mean", "deviation")),
        ("dataset.augmentation", text or settings.dataset.augment, "dataset.augment=false leaves images as they are"),
        ("dataset.mean", text or not model.mean, "model.mean is set, which comes first"),
        ("dataset.deviation", text or not model.deviation, "model.deviation is set, which comes first"),
        *((f"dataset.{name}", source == "image_table", "it is for source image_table") for name in TABLE_SETTINGS),
        ("dataset.hub_id", source != "image_table" or not settings.dataset.path, "dataset.path gives a local copy"),
        ("dataset.label_column", named, f"source {source} has none"),
        ("dataset.class_names", text or source == "idx", f"source {source} has its own"),
        ("dataset.task_name", source == "glue", "it is for source glue"),
        ("dataset.test_share", not Path(settings.dataset.path).is_dir(), "the folder has a test split"),
        ("evaluation.timing_batch", settings.evaluation.timing_rounds > 0, "evaluation.timing_rounds=0 times nothing"),
        *((f"logger.{name}", settings.logger.kind.startswith("wandb"), "it is a setting of W&B") for name in OF_WANDB),
        ("model.training.warmup_epochs", training.epochs > 0, "model.training.epochs=0 trains nothing"),
    )
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        for node, effective, reason in uses:
            if not effective and (key == node or key.startswith(f"{node}.")) and override != "skip_approx=false":
                yield f"{override} has no effect: {reason}"


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of nested nodes, each with its full key."""
    for key, value in values.items():
        full = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{full}.")
        else:
            yield full, value


def check_counts(counts: list[int], depth: int) -> None:
    """Raises UserError for `sparsity.counts` that a model of so many layers cannot keep; [] is none."""
    if not counts:
        return
    if len(counts) != depth:
        raise UserError(f"sparsity.counts={counts} has {len(counts)} entries: give one for each of {depth} layers")
    if counts[-1] < 1 or any(above > below for below, above in pairwise(counts)):
        raise UserError(f"sparsity.counts={counts} must not rise from layer to layer, and hold 1 token at the least")


def _check_model(settings: Settings) -> None:
    model, dataset, factor = settings.model, settings.dataset, settings.approx.factor
    for name, value in model.arguments.items():
        key = f"model.arguments.{name}"
        if name in GIVEN_BY_DATASET:
            raise UserError(f"{key}={value}: set dataset.{GIVEN_BY_DATASET[name]} instead, which the model follows")
        stated = STATED_BY_MODEL.get(name)
        if stated and value != getattr(model, stated):
            raise UserError(f"{key}={value} contradicts model.{stated}={getattr(model, stated)}: change both")
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


def _check_batch(settings: Settings) -> None:
    """Every weight update is made of equal steps, and of images in pairs where they are mixed."""
    hardware = settings.hardware
    for stage, node in TRAININGS.items():
        training = training_of(settings, stage)
        if training is None:
            continue
        update = update_size(settings, stage)
        size, steps = steps_of(update, hardware)
        unit = steps * processes_of(hardware)
        if size * unit != update:
            lower = f"{size * unit} or " if size else ""
            processes = processes_of(hardware)
            devices = f" on {processes} devices" if processes > 1 else ""
            raise UserError(
                f"{node}.batch={update} does not make {steps} equal steps{devices} of at most"
                f" hardware.batch_size={hardware.batch_size}: set {lower}{(size + 1) * unit}"
            )
        if (training.mixup or training.cutmix) and size % 2:
            setting = f"{node}.batch={update}" if training.batch else f"hardware.batch_size={hardware.batch_size}"
            raise UserError(
                f"{setting} makes {size} images a step, but {node}.mixup and cutmix blend pairs: choose one that makes"
                " an even number"
            )


def _check_weights(settings: Settings) -> None:
    model, approx = settings.model, settings.approx
    given = model.pretrained or bool(model.checkpoint)
    if model.pretrained and model.checkpoint:
        raise UserError(f"model.checkpoint={model.checkpoint} needs model.pretrained=false: one of them gives weights")
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
    if SOURCES[settings.dataset.source] != "text":
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


def _check_kinds(model: ModelSettings, dataset: DatasetSettings) -> None:
    """Text goes to a model of text, images to one of images."""
    named = {name: getattr(model, name) for name in ("timm", "lvvit", "huggingface")}
    if sum(map(bool, named.values())) != 1:
        given = ", ".join(f"model.{name}='{value}'" for name, value in named.items())
        raise UserError(f"{given}: give exactly one of them, timm or lvvit for images, huggingface for text or images")
    if model.lvvit:
        _choose("model.lvvit", model.lvvit, LVVIT_SIZES)
    text = SOURCES[dataset.source] == "text"
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


def _check_task(dataset: DatasetSettings) -> None:
    if dataset.task == "regression" and SOURCES[dataset.source] == "images":
        raise UserError("dataset.task=regression is for text: set dataset.task=classification for images")
    if dataset.metric not in METRICS[dataset.task]:
        fitting = " or ".join(METRICS[dataset.task])
        raise UserError(f"dataset.metric={dataset.metric} is not for dataset.task={dataset.task}: set it to {fitting}")
    if dataset.task == "regression" and dataset.classes != 1:
        raise UserError(f"dataset.classes={dataset.classes}: a score is one number, set dataset.classes=1")
    if dataset.task == "classification" and dataset.classes < 2:
        raise UserError(f"dataset.classes={dataset.classes} is out of range: it must be at least 2")
    if dataset.metric == "top5" and dataset.classes <= 5:
        raise UserError(f"dataset.metric=top5 says nothing of dataset.classes={dataset.classes}: set accuracy")
    if dataset.metric == "f1" and dataset.classes != 2:
        raise UserError(f"dataset.metric=f1 is for two classes, not dataset.classes={dataset.classes}: set accuracy")


def _check_text(dataset: DatasetSettings) -> None:
    if len(dataset.columns) not in (1, 2):
        raise UserError(f"dataset.columns={dataset.columns}: name one column of text, or two that are read together")
    if not dataset.label_column:
        raise UserError("dataset.label_column is missing: give dataset.label_column=NAME, the column of labels")
    named = [*dataset.columns, dataset.label_column]
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"dataset.columns, dataset.label_column: '{name}' is named twice: name each column once")
        if not dataset.header and not name.isdecimal():
            raise UserError(
                f"dataset.columns, dataset.label_column: '{name}' is no number, but dataset.header=false:"
                " name columns 0, 1, ..."
            )
    if dataset.max_tokens < 1:
        raise UserError(f"dataset.max_tokens={dataset.max_tokens} is out of range: it must be at least 1 for text")
    if dataset.class_names and len(dataset.class_names) != dataset.classes:
        raise UserError(
            f"dataset.class_names={dataset.class_names} are {len(dataset.class_names)} names for"
            f" dataset.classes={dataset.classes}: give as many"
        )
    if dataset.positive_above is not None and (dataset.task, dataset.classes) != ("classification", 2):
        raise UserError(
            f"dataset.positive_above={dataset.positive_above} makes two classes: set dataset.task=classification and"
            " dataset.classes=2, or dataset.positive_above=null"
        )
    try:
        codecs.lookup(dataset.encoding)
    except LookupError as error:
        raise UserError(f"dataset.encoding={dataset.encoding} is unknown: set utf-8, latin-1, cp1252, ...") from error


def _check_images(settings: Settings) -> None:
    """Settings of images fit the channels; text has none of them."""
    dataset, model = settings.dataset, settings.model
    text = SOURCES[dataset.source] == "text"
    for node, mixed in _mixing(settings):
        if mixed and text:
            training = next(training for name, training in _trainings(settings) if name == node)
            setting = "mixup" if training.mixup else "cutmix"
            raise UserError(
                f"{node}.{setting}={getattr(training, setting)} blends images, which texts cannot be:"
                f" set {node}.{setting}=0"
            )
    if text:
        return
    if dataset.channels not in (1, 3):
        raise UserError(f"dataset.channels={dataset.channels} is out of range: images are grey (1) or coloured (3)")
    if dataset.source == "digits":
        return
    for name in ("mean", "deviation"):
        key = f"model.{name}" if getattr(model, name) else f"dataset.{name}"
        values = getattr(model, name) or getattr(dataset, name)
        if len(values) != dataset.channels:
            raise UserError(
                f"{key}={values} has {len(values)} numbers: give one for each of {dataset.channels} channels"
            )
        if not all(math.isfinite(value) and (name == "mean" or value > 0) for value in values):
            raise UserError(f"{key}={values} is out of range: give finite numbers, deviations above 0")


def _mixing(settings: Settings) -> list[tuple[str, bool]]:
    """Of every training its node, and whether it mixes images."""
    return [(node, bool(training.mixup or training.cutmix)) for node, training in _trainings(settings)]


def _check_files(settings: Settings) -> None:
    checkpoint, dataset = settings.model.checkpoint, settings.dataset
    for key, file in (("model.checkpoint", checkpoint), ("approx.checkpoint", settings.approx.checkpoint)):
        if file and not Path(file).is_file():
            raise UserError(f"{key}={file} is no file: give a weights file")
    find_pretrained(settings.model.huggingface)
    if dataset.source == "glue":
        _choose("dataset.task_name", dataset.task_name, GLUE_TASKS)
        if dataset.path and not Path(dataset.path).is_dir():
            raise UserError(f"dataset.path={dataset.path} is no folder: give a local copy of GLUE, or none for the hub")
    if dataset.source == "text_file":
        if not dataset.path:
            raise UserError("dataset.path is missing: give dataset.path=FILE, or a folder with train and test files")
        if not Path(dataset.path).exists():
            how = " (`make movie-reviews` fetches it)" if dataset.name.startswith("movie_review") else ""
            raise UserError(f"dataset.path={dataset.path} is not there: give a file, or a folder{how}")
    if dataset.source == "idx":
        _check_idx(dataset)
    if dataset.source == "image_table":
        _check_table(dataset)
    if dataset.source == "image_folder":
        _check_folder(dataset)


def _check_idx(dataset: DatasetSettings) -> None:
    if not dataset.path:
        raise UserError("dataset.path is missing: give dataset.path=FOLDER, one with train-images-idx3-ubyte(.gz), ...")
    if not Path(dataset.path).is_dir():
        raise UserError(f"dataset.path={dataset.path} is no folder: {IDX_REMEDY}")
    if dataset.class_names and len(dataset.class_names) != dataset.classes:
        raise UserError(
            f"dataset.class_names={dataset.class_names} are {len(dataset.class_names)} names for"
            f" dataset.classes={dataset.classes}: give as many"
        )


def _check_table(dataset: DatasetSettings) -> None:
    if not (dataset.path or dataset.hub_id):
        raise UserError(
            "dataset.hub_id is missing: give the id of a data set on the hub, or a copy, dataset.path=FOLDER"
        )
    if dataset.path and not Path(dataset.path).is_dir():
        raise UserError(f"dataset.path={dataset.path} is no folder: give a local copy, or none for the hub")
    if not dataset.label_column:
        raise UserError("dataset.label_column is missing: give dataset.label_column=NAME, the column of labels")


def _check_folder(dataset: DatasetSettings) -> None:
    if not dataset.path:
        raise UserError("dataset.path is missing: give dataset.path=FOLDER, one with train/ and val/")
    for folder in (Path(dataset.path), Path(dataset.path) / "train", Path(dataset.path) / "val"):
        if not folder.is_dir():
            raise UserError(f"dataset.path={dataset.path}: {folder} is no folder: give one with train/ and val/")
    for part in ("train", "val"):
        if not any((Path(dataset.path) / part).iterdir()):
            raise UserError(f"dataset.path={dataset.path}: {part}/ is empty: it must hold one folder of images a class")


def _trainings(settings: Settings) -> Iterator[tuple[str, TrainingSettings]]:
    for stage, node in TRAININGS.items():
        training = training_of(settings, stage)
        if training is not None:
            yield node, training


def _choose(key: str, value: str, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    if value not in choices:
        raise UserError(f"{key}={value} is unknown: {nearest(value, choices)}")
