"""How many tokens each layer of a graph reads: the mean of what a method keeps, at a budget where one is asked for."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from sttabt.core.budget import find_value
from sttabt.core.counts import fixed_plan
from sttabt.core.text import Text
from sttabt.engine.run import Run
from sttabt.errors import UserError
from sttabt.models.budget import calibrate, dial_range, turn
from sttabt.models.pruned import PrunedModel
from sttabt.settings import BudgetSettings, Settings, check_budget
from sttabt.settings.budget import NEAR

TOLERANCE = 0.002  # share of a budget within which a graph of texts is near enough

log = logging.getLogger(__name__)


@torch.no_grad()
def counts_of(pruned: PrunedModel, batches: Sequence[Tensor | Text] | None, tokens: int) -> list[int]:
    """Tokens that each layer reads (L): the mean share that the method keeps of these inputs, of so many `tokens`.

    Raises UserError where there are none.
    """
    real = sum(int(pruned.base.real(batch).sum()) for batch in batches or ())
    if not batches or not real:
        raise UserError(
            f"{pruned.method.title} keeps as many tokens as an input needs: give counts=[tokens of the first layer,"
            " ..., of the last], or calibration=[batches of inputs], whose mean is taken"
        )
    kept = torch.zeros(pruned.base.layers, dtype=torch.double)
    for batch in batches:
        kept += pruned.plan(batch).counts[:, :-1].double().sum(0)
    return [max(count, pruned.method.least) for count in (kept * tokens / real).round().long().tolist()]


def counts_at_budget(
    pruned: PrunedModel, batches: Sequence[Tensor | Text] | None, budget: float, tokens: int
) -> list[int]:
    """As `counts_of`, of the method brought to a budget: a graph of them costs that share of the multiply-adds of a
    dense one, both of so many `tokens`; `pruned` stays as it is. One line says where the budget cannot be reached.

    A graph of texts computes all `tokens` of each, padding included: what the method costs there is another share.
    Raises UserError where there are no inputs, and for a method whose dial decides nothing.
    """
    if not batches:
        raise UserError(f"budget={budget} is found on inputs: give calibration=[batches of inputs]")
    dial = pruned.method.settings.dial_name()
    if dial is None:
        raise UserError(f"budget={budget}: {pruned.method.title} has no setting that a budget finds: give counts=[...]")
    asked = BudgetSettings(macs=budget)
    check_budget(Settings(sparsity=pruned.method.settings, budget=asked), ())
    turned = PrunedModel(pruned.base, copy.deepcopy(pruned.method), pruned.approx).eval()
    if not pruned.base.may_pad:
        calibrate(turned, batches, asked)
        return counts_of(turned, batches, tokens)

    def cost(value: float) -> float:
        turn(turned, value)
        return macs_share(turned, [*counts_of(turned, batches, tokens), turned.base.outputs], tokens)

    value, reached = find_value(cost, budget, dial_range(turned.method.settings), TOLERANCE)
    turn(turned, value)
    if abs(reached - budget) > NEAR["macs_share"] * budget:
        log.warning(
            "budget=%.4g cannot be met by a graph of %d tokens: %.4g is the nearest, at sparsity.%s=%.6g",
            budget, tokens, reached, dial, value,
        )  # fmt: skip
    return counts_of(turned, batches, tokens)


def macs_share(pruned: PrunedModel, counts: Sequence[int], tokens: int) -> float:
    """Multiply-adds of a graph, planner included, as a share of the dense model's, of a sample of so many tokens.

    counts: at every boundary (L+1).
    """
    real = torch.ones(1, tokens, dtype=torch.bool)
    plan = fixed_plan(torch.arange(counts[0])[None], counts, tokens)
    plan = plan.with_survivors() if pruned.base.reads_survivors else plan
    run = Run(torch.zeros(1, pruned.base.architecture.classes), plan, real, pruned.method.scored_at(counts, tokens))
    return sum(pruned.macs(run).values()) / sum(pruned.dense_macs(real).values())
