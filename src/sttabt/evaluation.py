"""What a pruned model is worth on held-out data: accuracy, tokens, multiply-adds, time, and images to look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from sttabt.approx import ApproximateNetwork
from sttabt.backbones.base import Backbone
from sttabt.core.distill import attention_divergence
from sttabt.data.base import Batch, Splits, evaluation_loader
from sttabt.engine.dense import run_dense
from sttabt.engine.masked import run_masked
from sttabt.errors import UserError
from sttabt.methods.base import MergingMethod
from sttabt.methods.concrete import Concrete
from sttabt.methods.dense import Dense
from sttabt.pruned import PrunedModel
from sttabt.report.gallery import Gallery
from sttabt.timing import Timing, time_interleaved


@dataclass(frozen=True)
class Scores:
    """Shares of right predictions on `samples` items: dropped (as deployed), and masked and soft where they exist.

    occupancy: (L+1,) share of real tokens by boundary; macs: multiply-adds of a sample, part by part; dense_macs: of
    the base model's own forward on it, without padding.
    """

    samples: int
    dropped: float
    masked: float | None
    soft: float | None
    loss: float
    occupancy: list[float]
    macs: dict[str, float]
    dense_macs: dict[str, float]


@torch.inference_mode()
def evaluate(model: PrunedModel, dataset: Dataset, batch_size: int, batches: int = 0) -> Scores:
    """Every item of `dataset` once, in its order; `batches` > 0 stops after so many."""
    device = next(model.base.parameters()).device
    total: dict[str, Any] = {}
    samples = 0
    for batch in _progress(evaluation_loader(dataset, batch_size), batches, f"evaluate {model.method.card.title}"):
        batch = Batch(batch.inputs.to(device), batch.labels.to(device))
        size = len(batch.labels)
        run = model(batch.inputs)
        found = {
            "dropped": _right(run.logits, batch.labels),
            "loss": F.cross_entropy(run.logits, batch.labels, reduction="sum").double(),
            "occupancy": run.plan.occupancy(run.real).double().sum(0),
            **_totals("macs", model.macs(run.plan, run.real), size),
            **_totals("dense_macs", model.dense_macs(run.real), size),
        }
        if not isinstance(model.method, MergingMethod):
            found["masked"] = _right(model(batch.inputs, masked=True).logits, batch.labels)
        soft = _soft_logits(model, batch.inputs)
        if soft is not None:
            found["soft"] = _right(soft, batch.labels)
        total = {name: total.get(name, 0) + value for name, value in found.items()}
        samples += size
    mean = {name: (value / samples).tolist() for name, value in total.items()}
    macs, dense_macs = (
        {name.removeprefix(prefix): value for name, value in mean.items() if name.startswith(prefix)}
        for prefix in ("macs.", "dense_macs.")
    )
    scores = mean["dropped"], mean.get("masked"), mean.get("soft"), mean["loss"], mean["occupancy"]
    return Scores(samples, *scores, macs, dense_macs)


@torch.inference_mode()
def time_against_dense(model: PrunedModel, dataset: Dataset, batch_size: int, rounds: int) -> dict[str, Timing]:
    """Whole forwards of one batch, planning included, beside the base model's own dense forward.

    The method `dense` is timed as that forward itself.
    """
    inputs = next(iter(evaluation_loader(dataset, batch_size))).inputs.to(next(model.base.parameters()).device)
    pruned = model.base if isinstance(model.method, Dense) else model
    return time_interleaved({"dense": lambda: model.base(inputs), "pruned": lambda: pruned(inputs)}, "dense", rounds)


@torch.inference_mode()
def attention_error(
    networks: dict[str, ApproximateNetwork], base: Backbone, dataset: Dataset, batch_size: int, batches: int = 0
) -> dict[str, dict[str, float]]:
    """Divergence (kl) and squared error (mse) of each network's attention from the base model's, by name."""
    device = next(base.parameters()).device
    total = {name: {"kl": 0.0, "mse": 0.0} for name in networks}
    samples = 0
    for batch in _progress(evaluation_loader(dataset, batch_size), batches, "approximation error"):
        inputs = batch.inputs.to(device)
        target = run_dense(base, inputs).trace
        layers = range(target.layers)
        actual = [target.probabilities(layer) for layer in layers]
        for name, network in networks.items():
            trace = network(inputs)
            found = [trace.probabilities(layer) for layer in layers]
            squared = torch.stack([F.mse_loss(a, b) for a, b in zip(found, actual, strict=True)]).mean()
            total[name]["kl"] += float(attention_divergence(actual, found, target.real)) * len(batch.labels)
            total[name]["mse"] += float(squared) * len(batch.labels)
        samples += len(batch.labels)
    return {name: {kind: value / samples for kind, value in errors.items()} for name, errors in total.items()}


@torch.inference_mode()
def gallery(model: PrunedModel, splits: Splits, images: int) -> Gallery:
    """The first test images, one of each class in turn, with the tokens that each layer reads."""
    picked = _one_of_each_class(splits.test, images)
    batch = next(iter(evaluation_loader(torch.utils.data.Subset(splits.test, picked), images)))
    run = model(batch.inputs.to(next(model.base.parameters()).device))
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (splits.mean, splits.deviation))
    pixels = ((batch.inputs * deviation + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return Gallery(
        images=pixels.permute(0, 2, 3, 1).numpy(),
        depth=run.plan.depth().cpu().numpy(),
        alive=run.plan.alive.cpu().numpy(),
        prefix=np.array(model.base.outputs),
        layers=np.array(model.base.layers),
        grid=np.array(model.base.grid),
        labels=batch.labels.numpy(),
        predictions=run.logits.argmax(-1).cpu().numpy(),
        class_names=np.array(splits.class_names),
    )


def find_device(accelerator: str) -> torch.device:
    """Where a model is evaluated; raises UserError when this machine has no such `hardware.accelerator`."""
    try:
        return Fabric(accelerator=accelerator, devices=1).device
    except RuntimeError as error:
        raise UserError(
            f"hardware.accelerator={accelerator} is not on this machine: set hardware=cpu ({error})"
        ) from error


def _one_of_each_class(dataset: Dataset, images: int) -> list[int]:
    by_class: dict[int, list[int]] = {}
    for index in range(min(len(dataset), 50 * images)):  # type: ignore[arg-type]
        by_class.setdefault(int(dataset[index].labels), []).append(index)
    turns = max(map(len, by_class.values()))
    order = [found[turn] for turn in range(turns) for _, found in sorted(by_class.items()) if turn < len(found)]
    return order[:images]


def _soft_logits(model: PrunedModel, inputs: Any) -> Tensor | None:
    if not isinstance(model.method, Concrete):
        return None
    trace = model.trace(inputs)
    assert trace is not None, "concrete masks read a trace"
    return run_masked(model.base, inputs, model.method.soft_plan(trace))


def _totals(name: str, parts: dict[str, float], size: int) -> dict[str, Tensor]:
    return {f"{name}.{part}": torch.tensor(value).double() * size for part, value in parts.items()}


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(-1) == labels).double().sum()


def _progress(loader: Iterable[Batch], batches: int, title: str) -> Iterable[Batch]:
    length = len(loader)  # type: ignore[arg-type]
    for index, batch in enumerate(track(loader, title, total=min(batches, length) or length, transient=True)):
        if batches and index == batches:
            return
        yield batch
