"""The result row of a job."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from sttabt.data.base import Splits
from sttabt.data.task import Task
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.evaluation import DenseComparison, Scores, evaluate, time_against_dense, validate
from sttabt.pipeline.samples import BATCHES_RANKED, ranked_by_cost
from sttabt.report.predictions import Predictions
from sttabt.report.rows import BUDGET_KEYS, FOUND, Row
from sttabt.settings import Settings, update_size
from sttabt.store.job import Job
from sttabt.version import __version__

SINGLES = 8  # samples that are timed one at a time, so many times as many of ranked ones: texts of as many lengths


def make_row(
    model: PrunedModel,
    averaged: PrunedModel | None,
    splits: Splits,
    settings: Settings,
    job: Job,
    config_hash: str,
    notes: dict[str, dict[str, Any]],
) -> tuple[Row, Predictions]:
    """Evaluate `model` on the split that is asked for, once: the row, and what was predicted of each item.

    averaged: the same with averaged weights, where training kept them; it is evaluated beside. A model that was
    trained under its method is measured on the validation split too: choices go by that alone. notes: of the artifacts
    it is made of, by stage.
    """
    sparsity, task = settings.sparsity, Task.of(settings.dataset)
    how = (task, settings.evaluation.batch_size, settings.fast_dev_run, settings.hardware.workers)
    split = settings.evaluation.split
    tested = getattr(splits, split)
    scores = evaluate(model, tested, *how)
    beside = None if averaged is None else evaluate(averaged, tested, *how)
    trained = sparsity.trains
    validation = validate(model, splits.validation, *how) if trained else None
    row = Row(
        experiment=written(settings.name),
        sweep=job.sweep,
        config_hash=config_hash,
        command=written(job.command),
        commit=job.commit,
        version=__version__,
        seed=settings.seed,
        device=device_name(next(model.base.parameters()).device),
        threads=torch.get_num_threads(),
        precision=settings.evaluation.precision,
        dataset=written(settings.dataset.name),
        split=split,
        samples=scores.samples,
        model=written(settings.model.name),
        method=sparsity.method,
        label=sparsity.label,
        knob=sparsity.knob and sparsity.knob[0],
        factor=None if model.approx is None else model.approx.factor,
        settings=settings_of_row(settings),
        **_budget(notes.get("budget")),
        parameters=sum(parameter.numel() for parameter in model.base.parameters()),
        metric=task.metric,
        score=scores.dropped,
        score_soft=scores.soft,
        score_masked=scores.masked,
        score_ema=None if beside is None else beside.dropped,
        other_scores=scores.others,
        loss=scores.loss,
        validation_loss=None if validation is None else validation.loss,
        validation=None if validation is None else {"score": validation.score, "macs_share": validation.macs_share},
        occupancy=sum(scores.occupancy) / len(scores.occupancy),
        occupancy_by_boundary=scores.occupancy,
        occupancy_padded=scores.occupancy_padded,
        macs=scores.macs,
        ema=_averages(beside),
        macs_dense=sum(scores.dense_macs.values()),
        time=None,  # `measure_time` gives it
        time_baseline=None,
        left_to_torch=scores.left_to_torch,
        approx=_approximation(notes.get("approx")),
        seconds={stage: note["seconds"] for stage, note in notes.items()},
    )
    return row, Predictions.of(scores.indices, scores.labels, scores.predictions, scores.logits)


def written(text: str) -> str:
    """The text as files and figures can have it: a path's bytes that are no letters become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def measure_time(model: PrunedModel, dataset: Dataset, batch_size: int, rounds: int) -> tuple[dict[str, float], str]:
    """What a row says of time, and which dense forward a batch is compared with.

    `single_...` are of samples that come one at a time, and each of them is compared with the faster dense forward of
    its own kind.
    """
    ranked = ranked_by_cost(model, dataset, batch_size)
    batches = BATCHES_RANKED if ranked else 1
    batch = time_against_dense(model, dataset, batch_size, rounds, batches, ranked)
    single = time_against_dense(model, dataset, 1, rounds, SINGLES * batches, ranked)
    singles = {f"single_{name}": value for name, value in _times(single).items()}
    return {"batch_size": batch_size, "rounds": rounds, **_times(batch), **singles}, batch.baseline


def _budget(notes: dict[str, Any] | None) -> dict[str, Any]:
    if notes is None:
        return {"budget": None, "budget_of": None}
    calibration = notes["calibration"]
    budget = {name: calibration[name] for name in BUDGET_KEYS}
    found = {name: value for name, value in notes["found"].items() if not isinstance(value, bool)}
    return {
        "budget": budget | {f"{FOUND}{name}": float(value) for name, value in found.items()},
        "budget_of": calibration["of"],
    }


def _averages(scores: Scores | None) -> dict[str, float] | None:
    if scores is None or scores.soft is None:
        return None
    occupancy = sum(scores.occupancy) / len(scores.occupancy)
    return {"score_soft": scores.soft, "occupancy": occupancy, "macs": sum(scores.macs.values())}


def settings_of_row(settings: Settings) -> dict[str, Any]:
    """The settings of the method, flat; where it trains, those of training, too, with the samples of an update on this
    hardware.
    """
    sparsity = settings.sparsity
    used = sparsity.said(asdict(sparsity))
    if not sparsity.trains:
        used = {name: used[name] for name in sparsity.own_names()}
    if "schedules" in used:  # each in words, as one value of a curve's name
        used["schedules"] = {name: str(each) for name, each in sparsity.schedules.items()}
    own = dict(_flat(used))
    own.pop("method", None)
    size = "training.global_batch_size"
    return own | ({size: update_size(settings, "prune")} if size in own else {})


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", " ".join(map(str, value)) if isinstance(value, list) else value


def _times(found: DenseComparison) -> dict[str, float]:
    low, high = found.pruned.quartiles
    times = {"dense_ms": found.dense[found.baseline].median, "ms": found.pruned.median}
    if len(found.dense) > 1:
        times |= {f"dense_{name}_ms": timing.median for name, timing in found.dense.items()}
    if found.frozen is not None:
        times["dense_frozen_ms"] = found.frozen.median
    times = {name: seconds * 1e3 / found.batches for name, seconds in times.items()}
    if beside := found.against_frozen():
        first, third = beside.quartiles
        times |= {"ratio_frozen": beside.ratio, "ratio_frozen_low": first, "ratio_frozen_high": third}
    parts = {f"{part}_ratio": timing.ratio for part, timing in found.parts.items()}
    return times | {"ratio": found.pruned.ratio, "ratio_low": low, "ratio_high": high} | parts


def _approximation(notes: dict[str, Any] | None) -> dict[str, float] | None:
    if notes is None:
        return None
    names = {"distilled": "", "random": "_random", "interpolated": "_interpolated", "general": "_general"}
    return {f"{kind}{names[who]}": value for who, errors in notes["errors"].items() for kind, value in errors.items()}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor() or platform.processor() or platform.machine()


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return ""  # not Linux
