"""What others published, for overlays: their measurements, never this project's. The files name their sources.

Multiply-adds: of images the sources' GFLOPs are multiply-adds, of texts two FLOPs are one. To 2 % they are this
project's (`sttabt.parity` compares), but for planning, of which the official count has every operation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

LABEL = "published (BERT-base, padded keep ratio)"
MODEL = "bert_base"  # whose results on texts these are: they stand beside its rows alone
METRIC_NAMES = {"acc": "accuracy", "matthews_correlation": "matthews", "pearson": "pearson"}
# Their names of the methods that rows have, too; the masks before training (concrete_untrained) are none of them.
CURVE_NAMES = {
    "concrete_trained": "concrete",
    "backtracking_topk_approx_attention": "back-tracking (approximate attention)",
    "backtracking_topk_actual_attention": "back-tracking (actual attention)",
    "ltp_best_validation": "LTP",
    "forward_topk": "forward top-k",
}
# Of ImageNet; concrete masks with averaged weights (concrete_factor4_ema) differ by 0.1 points and are left out.
IMAGENET_NAMES = {
    "concrete_factor4": "concrete",
    "backtracking_topk_approx_attention": "back-tracking (approximate attention)",
    "backtracking_topk_actual_attention": "back-tracking (actual attention)",
    "forward_topk": "forward top-k",
    "dynamicvit": "DynamicViT",
}
STARTS = {"random": "random", "interpolate": "interpolated", "load": "distilled"}
METHODS = {"abt": "back-tracking (approximate attention)", "concrete": "concrete"}

Curve = list[tuple[float, float]]  # (keep ratio or setting, score in [0, 1]), in the order of the first


@dataclass(frozen=True)
class Published:
    """Curves of one data set. Keep ratios of GLUE are over positions padded to the longest of 1,024 texts."""

    dense: float  # the score of the dense model
    curves: dict[str, Curve]  # by a method's name for readers


@dataclass(frozen=True)
class Overhead:
    """A part's multiply-adds as a share of BERT-base's at 128 tokens; of planning, at a keep ratio of `keep`."""

    part: str  # approximate_network | planning
    method: str
    factor: int | None
    keep: float | None
    share: float


@dataclass(frozen=True)
class HeatMap:
    """Matthews correlation and keep ratio (padded) on CoLA by (lambda_mask, lambda_p)."""

    score: dict[tuple[float, float], float]
    keep: dict[tuple[float, float], float]


def curve_lines(published: Published, place: str) -> list[dict[str, object]]:
    """A line a point for a figure's csv; `place` is the column of keep ratios. The dense model has none."""
    dense: dict[str, object] = {"curve": "dense", "score": published.dense}
    points = [(label, x, score) for label, curve in published.curves.items() for x, score in curve]
    return [dense, *({"curve": label, place: x, "score": score} for label, x, score in points)]


def glue_tasks() -> dict[str, str]:
    """The data sets of GLUE that curves were published of, with their metrics."""
    return {f"glue_{name}": METRIC_NAMES[task["metric"]] for name, task in _read("glue_keep_ratio")["tasks"].items()}


def published_curves(dataset: str, metric: str) -> Published | None:
    """Of a data set named as GLUE's are here, `glue_sst2`; None where there is none in that metric."""
    task = _read("glue_keep_ratio")["tasks"].get(_task(dataset))
    if task is None or METRIC_NAMES[task["metric"]] != metric:
        return None
    curves = {
        label: sorted((point["keep_ratio"], point["score"]) for point in task[name])
        for name, label in CURVE_NAMES.items()
    }
    return Published(task["bert_base"], curves)


def published_imagenet(model: str) -> Published | None:
    """Accuracy of a model named as here, `deit_small`, on ImageNet; None where nothing was published of it."""
    found = _read("imagenet_keep_ratio").get(model)
    if not isinstance(found, dict):
        return None
    curves = {
        label: sorted((point["keep_ratio"], point["top1"] / 100) for point in found[name])
        for name, label in IMAGENET_NAMES.items()
        if name in found
    }
    return Published(found["dense_top1"] / 100, curves)


def imagenet_macs() -> dict[str, Curve]:
    """(multiply-adds in G, accuracy) of other models on ImageNet, by name."""
    found: dict[str, Curve] = {}
    for point in _read("imagenet_gflops_points")["points"]:
        found.setdefault(point["name"], []).append((point["gflops"], point["top1"] / 100))
    return {name: sorted(points) for name, points in found.items()}


def published_attention(dataset: str) -> dict[tuple[str, int, str], float]:
    """By (start, factor, "kl" | "mse"): distance of the approximate attention from BERT-base's on a GLUE task."""
    kinds = {"kldiv": "kl", "mse": "mse"}
    return {
        (label, int(factor), kinds[kind]): value
        for start, label in STARTS.items()
        for factor, tasks in _read("approx_attention_error")[start].items()
        for kind, value in tasks.get(_task(dataset), {}).items()
    }


def published_propagation(dataset: str, metric: str) -> dict[tuple[str, int], Curve]:
    """By (method, factor): (p, score). Of CoLA alone."""
    if (dataset, metric) != ("glue_cola", "matthews"):
        return {}
    return {
        (METHODS[each["method"]], each["factor"]): list(zip(each["ps"], each["metrics"], strict=True))
        for each in _read("ablations_cola")["propagation_p"].values()
    }


def published_lambdas(dataset: str, metric: str) -> HeatMap | None:
    """Of CoLA alone; None of another data set."""
    if (dataset, metric) != ("glue_cola", "matthews"):
        return None
    found = HeatMap({}, {})
    for each in _read("ablations_cola")["loss_weights"].values():
        for index, lambda_p in enumerate(each["lambda_ps"]):
            found.score[each["mask"], lambda_p] = each["metrics"][index]
            found.keep[each["mask"], lambda_p] = each["occupies"][index]
    return found


def published_overhead() -> list[Overhead]:
    """What the approximate network and planning cost of BERT-base's multiply-adds, 128 tokens."""
    first, *rows = _read("flops_overhead")["rows"]
    found = []
    for row in rows:
        what, _, detail = row["part"].partition(", ")
        number = detail.rpartition(" ")[2]
        if what == "approximate network":
            found.append(Overhead("approximate_network", "-", int(number), None, row["percent"] / 100))
            continue
        for keep, flops in zip(number.split("/"), row["flops"], strict=True):
            found.append(Overhead("planning", what, None, float(keep), flops / first["flops"]))
    return found


def _task(dataset: str) -> str | None:
    return dataset.removeprefix("glue_") if dataset.startswith("glue_") else None


@cache
def _read(name: str) -> dict[str, Any]:
    return json.loads(files("sttabt.report").joinpath(f"published/{name}.json").read_text(encoding="utf-8"))
