"""Settings of the data set: where it is, what it holds, how it is split and prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sttabt.settings.fields import (
    INNER_SHARE,
    MISSING,
    SEED,
    SHARE,
    SHARE_ABOVE_ZERO,
    SHARE_BELOW_ONE,
    at_least,
    setting,
)

PLACES = ("path", "hub_id")  # settings that say where the data are, not what
QUOTING = ("auto", "double", "none")
METRICS = {"classification": ("accuracy", "top5", "matthews", "f1"), "regression": ("pearson", "spearman")}


def _augments(settings: Any, _: str) -> str | None:
    return None if settings.dataset.augment else "dataset.augment=false leaves images as they are"


def _model_has_none(settings: Any, path: str) -> str | None:
    name = path.rpartition(".")[2]
    return f"model.{name} is set, which comes first" if getattr(settings.model, name) else None


@dataclass
class AugmentationSettings:
    """Of training images, through timm: random crop, flip, RandAugment, random erasing."""

    scale: float = setting(0.08, "the smallest share of an image that a crop keeps; 1: all of it", SHARE_ABOVE_ZERO)
    flip: float = setting(0.5, "probability of a horizontal flip", SHARE)
    rand_augment: str = setting("rand-m9-mmax9-mstd0.5-inc1", 'RandAugment in timm\'s notation; "": none')
    erasing: float = setting(0.25, "probability that a part is erased", SHARE)
    erasing_mode: str = setting(
        "pixel",
        "an erased part becomes the mean (const), one random colour (rand) or random pixels (pixel)",
        choices=("const", "rand", "pixel"),
    )


@dataclass
class DatasetSettings:
    """The data set."""

    name: str = setting(MISSING, "the name in result rows; empty: as the file, the folder or the hub id is called")
    source: str = setting(MISSING, "what reads the data: a module of sttabt.data.sources, or an installed package's")
    path: str = setting("", "where the files are, for sources that read files")
    image_size: int = setting(0, "side in pixels after resizing; 0 for text", at_least(0))
    channels: int = setting(3, "channels of images: 1 (grey) or 3 (coloured)", at_least(1))
    classes: int = setting(0, "number of classes, which the data must have; 0: counted; 1 for regression", at_least(0))
    task: str = setting("classification", "what is predicted; regression is for text", choices=METRICS)
    metric: str = setting(
        "accuracy",
        "is reported, and choices go by it",
        choices=[metric for metrics in METRICS.values() for metric in metrics],
    )
    validation_share: float = setting(
        0.1, "share of what is not for testing, stratified, split by split_seed", INNER_SHARE
    )
    split_seed: int = setting(0, "seed of the validation split; the test split does not depend on it", SEED)
    augment: bool = setting(True, "images only: change training images at random")
    augmentation: AugmentationSettings = setting(AugmentationSettings, "how; digits have their own", when=_augments)
    mean: list[float] = setting(
        [],
        "images only: a channel, of pixels in [0, 1], that images are normalised by where the model has none",
        when=_model_has_none,
    )
    std: list[float] = setting([], "images only: standard deviations, as mean", when=_model_has_none)
    broken_share: float = setting(
        0.001, "share of the training images that may be unreadable: others take their place", SHARE_BELOW_ONE
    )
    hub_id: str = setting("", "source image_table: a data set of the hub; path is a local copy instead")
    configuration: str = setting("", "source image_table: of the data set on the hub, where it has several")
    train_split: str = setting("train", "source image_table: the split for training and validation")
    test_split: str = setting("test", 'source image_table: the split for testing; "": test_share of train_split')
    image_column: str = setting("image", "source image_table: the column of images")
    label_column: str = setting(
        "", "image_table and text: the column of labels, a class 0, 1, ..., a name of class_names, or a score"
    )
    columns: list[str] = setting([], "text only: the column of the text, or of the two texts that are read together")
    class_names: list[str] = setting([], "names in the order of the classes; []: their numbers")
    max_tokens: int = setting(
        0, "text only: with the special ones; longer texts are truncated, counted and reported", at_least(0)
    )
    task_name: str = setting("", "source glue: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli")
    header: bool = setting(
        True, "source text_file: the first line names the columns; without one they are called 0, 1, ..."
    )
    encoding: str = setting("utf-8", "source text_file: of the files")
    separator: str = setting(
        "", 'source text_file: a character, comma, semicolon, tab or pipe; "": a comma in .csv, a tab in others'
    )
    quoting: str = setting(
        "auto",
        "source text_file: cells may stand in quotation marks (double), or these are text (none); auto: as it looks",
        choices=QUOTING,
    )
    positive_above: float | None = setting(
        None, "source text_file: makes two classes of a score; scores exactly there are left out"
    )
    test_share: float = setting(
        0.1, "share of data without a test split, stratified, the same for every seed", INNER_SHARE
    )
