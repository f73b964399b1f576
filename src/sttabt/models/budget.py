"""A pruned model at a budget: the value of its method's dial at which it costs the share of the dense one asked for."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from statistics import median
from typing import Any, get_type_hints

import torch

from sttabt.core.budget import Calibration, Cost, Range, find_value
from sttabt.engine.frozen import FrozenBackbone
from sttabt.models.dense import library_forwards, over
from sttabt.models.frozen import deployed, freeze
from sttabt.models.pruned import PrunedModel
from sttabt.settings import BudgetSettings, MethodSettings
from sttabt.settings.budget import NEAR
from sttabt.settings.fields import ANY, describe
from sttabt.timing.interleaved import time_interleaved

REPEATS = 4  # measurements of time after the search, each of the value that seems nearest then

log = logging.getLogger(__name__)


def calibrate(
    model: PrunedModel, batches: Sequence[Any], budget: BudgetSettings, more: str = "give more calibration batches"
) -> Calibration:
    """Sets the dial of the model's method, and says what was found; so does `model.calibration` from then on.

    batches: inputs on the model's device. Multiply-adds are counted on all of them, as the model is deployed; time is
    that of all of them, one after the other. Where nothing reaches the budget the nearest is taken, and one line says
    so. more: what to do where so many samples say little of others; "": they were chosen to say enough.
    """
    frozen, dial = deployed(model), model.method.settings.dial_name()
    assert dial is not None, "checked with the settings"
    within = dial_range(model.method.settings)

    # In inference mode, as rows are measured: dense forwards gain by it, too.
    with torch.inference_mode():
        meter = _Counted(frozen, model, batches) if budget.macs else _Timed(frozen, model, batches, budget)

        tried: list[float] = []

        def cost(value: float) -> float:
            turn(frozen, value)
            tried.append(meter.cost(value))
            return tried[-1]

        found = find_value(cost, budget.share, within, meter.tolerance, meter.most)
        value, reached = meter.settled(cost, budget.share, found)
        turn(frozen, value)
        kept, went_on, samples = _kept(frozen, batches)
    turn(model, value)
    at = getattr(model.method.settings, dial)
    model.calibration = Calibration(meter.of, budget.share, reached, dial, at, kept)
    _say(model, budget, model.calibration, beyond=max(tried) < budget.share or min(tried) > budget.share)
    if more and model.method.settings.asks_network and 0 < went_on < samples:
        _say_how_sure(budget, model.calibration, went_on, samples, more)
    return model.calibration


def turn(model: PrunedModel, value: float) -> None:
    """Sets the dial of the model's method, which reads its settings when it runs."""
    own = model.method.settings
    dial = own.dial_name()
    assert dial is not None, "checked with the settings"
    model.method.settings = replace(own, **own.at_budget, **{dial: int(value) if dial_range(own).whole else value})


def dial_range(settings: MethodSettings) -> Range:
    """Where the dial of a method may stand, by what its setting was declared to be."""
    name = settings.dial_name()
    declared = next(each for each in fields(settings) if each.name == name)
    rule = describe(declared).rule or ANY
    whole = get_type_hints(type(settings))[declared.name] is int
    start: Any = declared.default
    return Range(rule.low, rule.high, float(start), whole, rule.holds)


class _Counted:
    """The share of multiply-adds, mean over samples of both. Exact, so that it is looked for closer than need be."""

    of, tolerance, most = "macs_share", 0.002, 40

    def __init__(self, frozen: PrunedModel, model: PrunedModel, batches: Sequence[Any]) -> None:
        self.frozen, self.model, self.batches = frozen, model, batches

    def cost(self, _: float) -> float:
        spent = dense = 0.0
        for inputs in self.batches:
            run = self.frozen.run(inputs)
            spent += sum(self.frozen.macs(run).values()) * len(run.real)
            dense += sum(self.model.dense_macs(run.real).values()) * len(run.real)
        return spent / dense

    def settled(self, cost: Cost, asked: float, found: tuple[float, float]) -> tuple[float, float]:
        return found


class _Timed:
    """The share of time, median over interleaved rounds; a value that is timed again adds rounds to those it has."""

    tolerance, most = 0.02, 16

    def __init__(self, frozen: PrunedModel, model: PrunedModel, batches: Sequence[Any], budget: BudgetSettings) -> None:
        self.rounds, self.run = budget.rounds, over(batches, frozen.run)
        self.of, self.dense = "time_ratio", library_forwards(model.base, batches)
        if budget.baseline == "deployed" and isinstance(frozen.base, FrozenBackbone):
            self.of, self.dense = "time_ratio_frozen", {"frozen": over(batches, freeze(model.base).run)}
        self.ratios: dict[float, list[float]] = {}

    def cost(self, value: float) -> float:
        timing = time_interleaved(self.dense | {"pruned": self.run}, next(iter(self.dense)), self.rounds)
        faster = min(self.dense, key=lambda name: timing[name].median)
        self.ratios.setdefault(value, []).extend(timing["pruned"].against(timing[faster]).ratios)
        return median(self.ratios[value])

    def settled(self, cost: Cost, asked: float, found: tuple[float, float]) -> tuple[float, float]:
        """The nearest by more rounds: what seemed nearest by a few may have been lucky."""
        for _ in range(REPEATS):
            cost(found[0])
            costs = {value: median(ratios) for value, ratios in self.ratios.items()}
            found = min(costs.items(), key=lambda item: abs(item[1] - asked))
        return found


def _kept(model: PrunedModel, batches: Sequence[Any]) -> tuple[float, int, int]:
    """The share of real tokens that layers write; how many samples keep a token at all, of how many."""
    total, went_on, samples = 0.0, 0, 0
    for inputs in batches:
        run = model.run(inputs)
        occupancy = run.plan.occupancy(run.real)
        total += float(occupancy[:, 1:].mean(1).double().sum())
        went_on += int((occupancy[:, 0] > 0).sum())
        samples += len(run.real)
    return total / samples, went_on, samples


def _say(model: PrunedModel, budget: BudgetSettings, found: Calibration, beyond: bool) -> None:
    """beyond: all that was tried costs more than asked, or all less."""
    where = f"sparsity.{found.dial}={found.value:.6g} gives {found.reached:.4g} of the dense"
    label = model.method.settings.label
    if abs(found.reached - found.asked) <= NEAR[found.of] * found.asked:
        log.info("%s: %s", budget, where)
    elif beyond and found.reached < found.asked:
        log.warning("%s is more than %s needs here: %s, the nearest that can be had", budget, label, where)
    elif beyond:
        log.warning("%s cannot be reached by %s: %s, the nearest that can", budget, label, where)
    elif budget.macs:
        log.warning("%s lies between two steps of %s: %s, the nearest", budget, label, where)
    else:
        log.warning(
            "%s was not met by %s: %s, the nearest that was measured; more rounds vary less (budget.rounds=%d)",
            *(budget, label, where, 4 * budget.rounds),
        )


def _say_how_sure(budget: BudgetSettings, found: Calibration, went_on: int, samples: int, more: str) -> None:
    """Where a sample costs little or nearly all, few of them say little of the mean of others: its standard error, as
    if answered samples cost nothing and the others alike.
    """
    error = found.reached * math.sqrt((1 / went_on) - (1 / samples))
    if error > NEAR[found.of] * found.reached:
        log.warning(
            "%s was found on %d samples, of which %d go on to the base model: of others the share may differ by %.2g;"
            " %s",
            *(budget, samples, went_on, error, more),
        )
