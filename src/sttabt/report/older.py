"""Rows of older schemas as rows of the present one. Labels and knobs, which they did not hold, are data here."""

from __future__ import annotations

from typing import Any

OLDER = (1, 2, 3, 4, 5, 6)  # schemas that are read
UNTYPED = (1, 2, 3, 4, 5)  # whose tables had fields for some settings, and other words for numbers and truth

# (method, attention) -> label, and method -> the setting that moved along its curve.
LABELS = {
    ("dense", None): "dense",
    ("concrete", None): "concrete",
    ("backtracking", "approximate"): "back-tracking (approximate attention)",
    ("backtracking", "actual"): "back-tracking (actual attention)",
    ("ltp", None): "LTP",
    ("forward_topk", None): "forward top-k",
    ("tome", None): "ToMe",
    ("random", None): "random",
}
KNOBS = {
    "concrete": "p_logit",
    "backtracking": "keep_ratio",
    "ltp": "mask_weight",
    "forward_topk": "keep_ratio",
    "tome": "merged",
    "random": "keep_ratio",
}
FIELDS = ("attention", "p_logit", "keep_ratio", "merged", "mask_weight", "propagation")  # are settings now
RENAMED = {
    "batch": "training.global_batch_size",
    "training.batch": "training.global_batch_size",
    "training.clip": "training.grad_clip_norm",
}


def from_older(values: dict[str, Any], schema: int) -> dict[str, Any]:
    """The fields of a row of a schema in OLDER, as those of `schema`.

    Schema 1 knew images alone, which have no padding, and one score a way of running; schema 2 no validation;
    schema 3 no averaged weights; schema 4 of validation the loss alone; schemas up to 5 had fields for what is now in
    `settings`, and none where a method did not have it or it had no effect; schema 6 no budgets.

    Raises:
        ValueError: `settings` is no dictionary.
    """
    added: dict[str, Any] = {"validation_loss": None, "ema": None, "validation": None, "left_to_torch": []}
    added |= {"budget": None, "budget_of": None}
    if values["schema"] == 1:
        baseline = "batch" if values.get("time") else None
        added |= {"other_scores": {}, "occupancy_padded": None, "time_baseline": baseline}
    method = values.get("method")
    settings: dict[str, Any] = {name: values[name] for name in FIELDS if values.get(name) is not None}
    own = values.get("settings", {})
    if not isinstance(own, dict):
        raise ValueError(f"settings is {own!r}, which is no JSON object")
    settings |= {RENAMED.get(str(name), str(name)): value for name, value in own.items()}
    if method == "backtracking":
        # A count of its own had no keep ratio: chosen from the importances, unless the counts were given.
        settings = {"counts": ""} | settings
        settings = {"dynamic": "keep_ratio" not in settings and not settings["counts"]} | settings
    knob = KNOBS.get(str(method))
    attention = values["attention"] if isinstance(values.get("attention"), str) else None
    added["label"] = LABELS.get((str(method), attention)) or str(method).replace("_", " ")
    added["knob"] = knob if knob in settings else None
    kept = {name: value for name, value in values.items() if name not in FIELDS}
    return added | kept | {"settings": settings, "schema": schema}
