"""Curves that others published, for overlays: their measurements, never this project's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

LABEL = "published (BERT-base, padded keep ratio)"
METRIC_NAMES = {"acc": "accuracy", "matthews_correlation": "matthews", "pearson": "pearson"}
# Their names of the methods that rows have, too; the masks before training (concrete_untrained) are none of them.
CURVE_NAMES = {
    "concrete_trained": "concrete",
    "backtracking_topk_approx_attention": "back-tracking (approximate attention)",
    "backtracking_topk_actual_attention": "back-tracking (actual attention)",
    "ltp_best_validation": "LTP",
    "forward_topk": "forward top-k",
}


@dataclass(frozen=True)
class Published:
    """Curves of one GLUE task. Keep ratios are over positions padded to the longest of 1,024 texts."""

    dense: float  # the score of BERT-base
    curves: dict[str, list[tuple[float, float]]]  # a method's name for readers -> (keep ratio, score), by keep ratio


def published_curves(dataset: str, metric: str) -> Published | None:
    """Of a data set named as GLUE's are here, `glue_sst2`; None where there is none in that metric."""
    task = _tasks().get(dataset.removeprefix("glue_")) if dataset.startswith("glue_") else None
    if task is None or METRIC_NAMES[task["metric"]] != metric:
        return None
    curves = {
        label: sorted((point["keep_ratio"], point["score"]) for point in task[name])
        for name, label in CURVE_NAMES.items()
    }
    return Published(task["bert_base"], curves)


@cache
def _tasks() -> dict[str, dict]:
    text = files("sttabt.report").joinpath("published/glue_keep_ratio.json").read_text(encoding="utf-8")
    return json.loads(text)["tasks"]
