"""Files and folders: whether they are there, and hold what is expected."""

from __future__ import annotations

from pathlib import Path

from sttabt.cli.checks.ranges import check_choice
from sttabt.errors import UserError
from sttabt.pretrained.hub import find_pretrained
from sttabt.settings import GLUE_TASKS, IDX_REMEDY, DatasetSettings, Settings


def check_files(settings: Settings) -> None:
    checkpoint, dataset = settings.model.checkpoint, settings.dataset
    for key, file in (("model.checkpoint", checkpoint), ("approx.checkpoint", settings.approx.checkpoint)):
        if file and not Path(file).is_file():
            raise UserError(f"{key}={file} is no file: give a weights file")
    find_pretrained(settings.model.huggingface)
    if dataset.source == "glue":
        check_choice("dataset.task_name", dataset.task_name, GLUE_TASKS)
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
