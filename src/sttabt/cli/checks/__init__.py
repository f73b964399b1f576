"""Checks of all settings, before anything is built. Imports no torch.

`sttabt.settings.values` looks at one setting at a time, the files here at several together; `effects` names what
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sttabt.cli.checks.dataset import check_images, check_task
from sttabt.cli.checks.files import check_files
from sttabt.cli.checks.model import check_kinds, check_model, check_weights
from sttabt.cli.checks.packages import check_packages
from sttabt.cli.checks.training import check_batch, check_warmup
from sttabt.data.sources import find_source
from sttabt.errors import UserError
from sttabt.lit.configured import check_lightning
from sttabt.settings import STAGES, Settings, check_budget, check_schedules
from sttabt.settings.values import check_values

PREFIX = "sparsity."


def check(settings: Settings, given: Iterable[str] = ()) -> None:
    """Raises UserError for the first setting that cannot work, naming it, its value and what it may be.

    given: full keys that the command line or the grid of a sweep gives.
    """
    check_values(settings)
    source = find_source(settings.dataset.source)
    _check_stages(settings.stages)
    check_warmup(settings)
    check_kinds(settings.model, settings.dataset)
    check_task(settings.dataset)
    check_images(settings)
    check_model(settings)
    settings.sparsity.check_model(settings.model.depth)
    check_budget(settings, [key.removeprefix(PREFIX) for key in given if key.startswith(PREFIX)])
    check_schedules(settings)
    check_batch(settings)
    check_weights(settings)
    check_files(settings)
    _check_precision(settings)
    _check_prediction(settings)
    source.check(settings.dataset)
    check_lightning(settings)
    check_packages(settings)


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of nested nodes, each with its full key."""
    for key, value in values.items():
        full = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{full}.")
        else:
            yield full, value


def _check_stages(stages: list[str]) -> None:
    if not stages:
        raise UserError(f"stages=[] leaves nothing to do: name some of {', '.join(STAGES)}")
    if "report" in stages and "evaluate" not in stages:
        raise UserError(f"stages={stages} reports on nothing: add evaluate, or leave report out")


def _check_precision(settings: Settings) -> None:
    precision, accelerator = settings.evaluation.precision, settings.hardware.accelerator
    if precision != "float32" and accelerator in ("cpu", "auto"):
        raise UserError(f"evaluation.precision={precision} is for GPUs: set float32, or hardware=gpu")


def _check_prediction(settings: Settings) -> None:
    method, approx = settings.sparsity.method, settings.approx
    if settings.sparsity.asks_network and not (approx.prediction_weight or approx.checkpoint):
        raise UserError(
            f"sparsity={method} answers by what the approximate network predicts, which approx.prediction_weight=0 does"
            " not teach it: set it above 0"
        )
