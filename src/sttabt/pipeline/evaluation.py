"""What a pruned model is worth on held-out data: its metric, tokens, multiply-adds, time, and samples to look at."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities import move_data_to_device
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sttabt.backbones.base import Backbone
from sttabt.core.cost import PARTS
from sttabt.core.distill import attention_divergence
from sttabt.core.text import Text
from sttabt.data.base import Batch, Loader, Splits, evaluation_loader
from sttabt.data.task import Task, score_of
from sttabt.engine.dense import run_dense
from sttabt.engine.frozen import FrozenBackbone
from sttabt.errors import UserError
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.dense import library_forwards, over
from sttabt.models.frozen import FrozenModel, deployed, freeze
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.samples import dealt, first_of, one_of_each_class, typical
from sttabt.report.gallery import Gallery, ImageGallery, TextGallery
from sttabt.timing.interleaved import Timing, time_interleaved

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """The task's metric on `samples` items: dropped (as deployed), and masked and soft where they exist.

    others: further metrics of the dropped predictions, by name; occupancy: (L+1,) share of real tokens by boundary, a
    sample at a time; occupancy_padded: `padded_occupancy` of texts, None for images; macs: multiply-adds of a sample,
    part by part; dense_macs: those of the base model without padding; left_to_torch: parts of the frozen model that ran
    in plain torch. Of each item, in the order of the data set:
    indices (samples,) its place there, labels and predictions (samples,), logits (samples, classes), as deployed.
    """

    samples: int
    dropped: float
    masked: float | None
    soft: float | None
    others: dict[str, float]
    loss: float
    occupancy: list[float]
    occupancy_padded: float | None
    macs: dict[str, float]
    dense_macs: dict[str, float]
    left_to_torch: list[str]
    indices: np.ndarray = field(repr=False, compare=False)
    labels: np.ndarray = field(repr=False, compare=False)
    predictions: np.ndarray = field(repr=False, compare=False)
    logits: np.ndarray = field(repr=False, compare=False)


@torch.inference_mode()
def evaluate(
    model: PrunedModel, dataset: Dataset, task: Task, batch_size: int, batches: int = 0, workers: int = 0
) -> Scores:
    """Every item of `dataset` once, in the loader's order; `batches` > 0 stops after so many.

    workers: processes that load the data, here as below.
    """
    device = next(model.base.parameters()).device
    frozen, forms = deployed(model), model.forms()
    metrics = {(way, name): task.new_metric(name).to(device) for way in ("dropped", *forms) for name in task.metrics}
    total: dict[str, Any] = {}
    kept: list[Tensor] = []
    real: list[Tensor] = []
    said: dict[str, list[Tensor]] = {"labels": [], "predictions": [], "logits": []}
    samples = 0
    loader = _loader(dataset, batch_size, workers, device)
    for batch in _progress(loader, batches, f"evaluate {model.method.title}"):
        batch = move_data_to_device(batch, device)
        size = len(batch.labels)
        run = frozen.run(batch.inputs)
        predicted = {"dropped": run.logits} | {way: form(batch.inputs).logits for way, form in forms.items()}
        for way, name in metrics:
            metrics[way, name].update(task.readings(name, predicted[way]), batch.labels)
        found = {
            "loss": task.loss(run.logits, batch.labels, reduction="sum").double(),
            "occupancy": run.plan.occupancy(run.real).double().sum(0),
            "macs": _values(frozen.macs(run)) * size,
            "dense_macs": _values(model.dense_macs(run.real)) * size,
        }
        item_logits = run.logits.float().cpu()
        said["labels"].append(batch.labels.cpu())
        said["predictions"].append(task.read(item_logits))
        said["logits"].append(item_logits)
        if isinstance(batch.inputs, Text):
            kept.append(run.plan.counts.cpu())
            real.append(run.real.sum(-1).cpu())
        total = {name: total.get(name, 0) + value for name, value in found.items()}
        samples += size
    order = torch.tensor(list(loader.sampler)[:samples])  # texts come by length
    back = order.argsort()
    mean = {name: (value / samples).tolist() for name, value in total.items()}
    scores = {key: score_of(metric) for key, metric in metrics.items()}
    return Scores(
        samples=samples,
        dropped=scores["dropped", task.metric],
        masked=scores.get(("masked", task.metric)),
        soft=scores.get(("soft", task.metric)),
        others={name: scores["dropped", name] for name in task.metrics if name != task.metric},
        loss=mean["loss"],
        occupancy=mean["occupancy"],
        occupancy_padded=padded_occupancy(torch.cat(kept)[back], torch.cat(real)[back]) if kept else None,
        macs=dict(zip(PARTS, mean["macs"], strict=True)),
        dense_macs=dict(zip(PARTS, mean["dense_macs"], strict=True)),
        left_to_torch=frozen.left_to_torch if isinstance(frozen, FrozenModel) else [],
        indices=order[back].numpy(),
        **{name: torch.cat(values)[back].numpy() for name, values in said.items()},
    )


@dataclass(frozen=True)
class Validation:
    """What choices go by, of a model as it is deployed: as in `Scores`, and multiply-adds as a share of the dense."""

    score: float
    loss: float
    macs_share: float


@torch.inference_mode()
def validate(
    model: PrunedModel, dataset: Dataset, task: Task, batch_size: int, batches: int = 0, workers: int = 0
) -> Validation:
    """Every item of `dataset` once, as `evaluate`, without measuring anything else."""
    device = next(model.base.parameters()).device
    metric, frozen = task.new_metric(task.metric).to(device), deployed(model)
    loss, macs, dense_macs, samples = 0.0, 0.0, 0.0, 0
    loader = _loader(dataset, batch_size, workers, device)
    for batch in _progress(loader, batches, f"validate {model.method.title}"):
        batch = move_data_to_device(batch, device)
        size = len(batch.labels)
        run = frozen.run(batch.inputs)
        metric.update(task.readings(task.metric, run.logits), batch.labels)
        loss += float(task.loss(run.logits, batch.labels, reduction="sum").double())
        macs += float(_values(frozen.macs(run)).sum()) * size
        dense_macs += float(_values(model.dense_macs(run.real)).sum()) * size
        samples += size
    return Validation(score_of(metric), loss / samples, macs / dense_macs)


def padded_occupancy(kept: Tensor, real: Tensor, group: int = 1024) -> float:
    """The paper's keep ratio of texts: over positions padded to the longest of `group` texts that follow each other.

    kept: (S, L+1) tokens alive at each boundary, real: (S,) tokens of each text. What this project reports is over
    real tokens; the two meet only where all texts are of one length (METHOD section 7).
    """
    shares = [own.double() / own_real.max() for own, own_real in zip(kept.split(group), real.split(group), strict=True)]
    return float(torch.cat(shares).mean())


@dataclass(frozen=True)
class DenseComparison:
    """A deployed model's time, its ratios to `baseline`: the faster of the base model's own forwards, `dense` by name.

    batch: the whole batch at once, texts padded to the longest; unpadded: the same texts packed, real tokens
    alone, and in the last layer only what the head reads. frozen: the base model in the kernels of the deployed one,
    every real token in every layer; None where it is not frozen. parts: what a plan that is made beforehand takes of
    `pruned`, by names of PARTS: the network whose attention it reads, and the planning. batches: how many forwards each
    time is of.
    """

    pruned: Timing
    dense: dict[str, Timing]
    baseline: str
    frozen: Timing | None
    parts: dict[str, Timing]
    batches: int

    def against_frozen(self) -> Timing | None:
        """The deployed model's time with its ratios to the frozen base model's: what pruning gains without kernels."""
        return None if self.frozen is None else self.pruned.against(self.frozen)


@torch.inference_mode()
def time_against_dense(
    model: PrunedModel,
    dataset: Dataset,
    batch_size: int,
    rounds: int,
    batches: int = 1,
    ranked: Sequence[int] | None = None,
) -> DenseComparison:
    """Whole forwards of so many batches one after the other, planning included, beside the base model's own.

    Fewer where there are not so many samples. Of texts they are at even ranks of their length. ranked: places in the
    data set by what they cost (`ranked_by_cost`), of which each batch then has its share at even ranks.
    """
    device = next(model.base.parameters()).device
    subsets = dealt(dataset, ranked, batch_size, batches) if ranked else [typical(dataset, batch_size * batches)]
    loaders = (evaluation_loader(part, batch_size) for part in subsets)
    each = [move_data_to_device(batch.inputs, device) for loader in loaders for batch in loader]
    variants = library_forwards(model.base, each)
    own, others = deployed(model), {}
    if isinstance(own, FrozenModel) and isinstance(own.base, FrozenBackbone):
        others["frozen"] = over(each, freeze(model.base).run)
    parts = {name: over(each, step) for name, step in own.steps().items()}
    timing = time_interleaved(variants | {"pruned": over(each, own.run)} | others | parts, "batch", rounds)
    baseline = min(variants, key=lambda name: timing[name].median)
    seconds = {name: timing[name].seconds for name in parts}
    if len(parts) > 1:  # a plan begins with the approximate network
        pairs = zip(seconds["planning"], seconds["approximate_network"], strict=True)
        seconds["planning"] = [both - network for both, network in pairs]
    return DenseComparison(
        timing["pruned"].against(timing[baseline]),
        {name: timing[name] for name in variants},
        baseline,
        timing.get("frozen"),
        {name: Timing(taken, []).against(timing[baseline]) for name, taken in seconds.items()},
        len(each),
    )


@torch.inference_mode()
def attention_error(
    networks: dict[str, ApproximateNetwork],
    base: Backbone,
    dataset: Dataset,
    batch_size: int,
    batches: int = 0,
    workers: int = 0,
) -> dict[str, dict[str, float]]:
    """Divergence (kl) and squared error (mse) of each network's attention from the base model's, by name."""
    device = next(base.parameters()).device
    total = {name: {"kl": 0.0, "mse": 0.0} for name in networks}
    samples = 0
    for batch in _progress(_loader(dataset, batch_size, workers, device), batches, "approximation error"):
        inputs = base.prepare(move_data_to_device(batch.inputs, device))
        target = run_dense(base, inputs).trace
        layers = range(target.layers)
        actual = [target.probabilities(layer) for layer in layers]
        for name, network in networks.items():
            trace = network(inputs)
            found = [trace.probabilities(layer) for layer in layers]
            squared = torch.stack([_row_error(a, b, target.real) for a, b in zip(found, actual, strict=True)]).mean()
            total[name]["kl"] += float(attention_divergence(actual, found, target.real)) * len(batch.labels)
            total[name]["mse"] += float(squared) * len(batch.labels)
        samples += len(batch.labels)
    return {name: {kind: value / samples for kind, value in errors.items()} for name, errors in total.items()}


@torch.inference_mode()
def gallery(
    model: PrunedModel,
    splits: Splits,
    task: Task,
    samples: int,
    words: Callable[[Tensor], list[str]] | None = None,
    split: str = "test",
) -> Gallery:
    """The first samples of a split, one of each class in turn, with the tokens that each layer reads.

    words: the tokens of a row of vocabulary places as text, for texts. Of scores the first samples are taken.
    """
    tested = getattr(splits, split)
    picked = one_of_each_class(tested, samples) if splits.class_names else first_of(tested, samples)
    batch = next(iter(evaluation_loader(Subset(tested, picked), samples)))
    run = deployed(model).run(move_data_to_device(batch.inputs, next(model.base.parameters()).device))
    common = {
        "alive": run.plan.alive.cpu().numpy(),
        "layers": np.array(model.base.layers),
        "labels": batch.labels.numpy(),
        "predictions": task.read(run.logits).cpu().numpy(),
        "class_names": np.array(splits.class_names, dtype=str),
    }
    if isinstance(batch.inputs, Text):
        if words is None:
            raise ValueError("a gallery of texts needs their words")
        lines = [words(ids[real]) for ids, real in zip(batch.inputs.ids, batch.inputs.real, strict=True)]
        longest = batch.inputs.ids.shape[1]
        return TextGallery(words=np.array([[*line, *[""] * (longest - len(line))] for line in lines]), **common)
    mean, std = (torch.tensor(values)[:, None, None] for values in (splits.mean, splits.std))
    pixels = ((batch.inputs * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return ImageGallery(
        images=pixels.permute(0, 2, 3, 1).numpy(),
        depth=run.plan.depth().cpu().numpy(),
        prefix=np.array(model.base.outputs),
        grid=np.array(model.base.grid),
        **common,
    )


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """What is computed inside is in that `evaluation.precision`.

    On CUDA torch rounds convolutions to TF32 unless it is told not to: float32 is float32 here.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def find_device(accelerator: str, devices: int = 1) -> torch.device:
    """Where a model is evaluated; raises UserError when this machine has no or too few such `hardware.accelerator`."""
    try:
        found = Fabric(accelerator=accelerator, devices=1, plugins=[LightningEnvironment()]).device
    except RuntimeError as error:
        raise UserError(
            f"hardware.accelerator={accelerator} is not on this machine: set hardware=cpu ({error})"
        ) from error
    there = torch.cuda.device_count() if found.type == "cuda" else devices
    if devices > there:
        raise UserError(f"hardware.devices={devices} is more than this machine's {there} GPUs: set {there} or fewer")
    return found


def _values(macs: dict[str, float]) -> Tensor:
    return torch.tensor([macs[part] for part in PARTS], dtype=torch.float64)


def _row_error(found: Tensor, actual: Tensor, real: Tensor) -> Tensor:
    """Squared error of attention maps (B, H, N, N) over real rows and columns, a sample at a time, mean over all."""
    rows = real.to(found.dtype)
    tokens = rows.sum(-1)
    pairs = rows[:, None, :, None] * rows[:, None, None, :]
    return (((found - actual).square() * pairs).sum((1, 2, 3)) / (found.shape[1] * tokens.square())).mean()


def _loader(dataset: Dataset, batch_size: int, workers: int, device: torch.device) -> Loader:
    """From pinned memory a GPU copies a batch while it computes the one before."""
    return evaluation_loader(dataset, batch_size, workers, pin_memory=device.type == "cuda")


def _progress(loader: Loader, batches: int, title: str) -> Iterator[Batch]:
    """The first `batches` of them, 0: all, with a bar; says at the end how fast they went, loading and all."""
    length, samples, begun = len(loader), 0, time.perf_counter()
    chosen = islice(loader, batches or None)
    for batch in track(chosen, title, total=min(batches, length) or length, transient=True):
        yield batch
        samples += len(batch.labels)
    log.info("%s: %d samples, %.0f a second", title, samples, samples / max(time.perf_counter() - begun, 1e-9))
