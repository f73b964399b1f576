"""How many tokens each layer of a graph reads: the mean of what a method keeps, at a budget where one is asked for."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sttabt.core.counts import fixed_plan, mean_counts
from sttabt.core.plan import TokenPlan
from sttabt.core.text import Text
from sttabt.engine.run import Run
from sttabt.errors import UserError
from sttabt.models.budget import calibrate
from sttabt.models.pruned import PrunedModel
from sttabt.settings import BudgetSettings

TRIES, NEAR = 4, 0.01  # how often a graph of texts is brought to a budget, and where that is near enough


@torch.no_grad()
def counts_of(pruned: PrunedModel, batches: Sequence[Tensor | Text] | None) -> list[int]:
    """Tokens that each layer reads (L), the mean of what the method keeps of these inputs.

    Raises UserError where there are none.
    """
    if not batches:
        raise UserError(
            f"{pruned.method.title} keeps as many tokens as an input needs: give counts=[tokens of the first layer,"
            " ..., of the last], or calibration=[batches of inputs], whose mean is taken"
        )
    plans = [pruned.plan(batch) for batch in batches]
    lifetimes = [lifetime for plan in plans for lifetime in plan.lifetime]
    longest = max(map(len, lifetimes))
    lifetime = torch.stack([nn.functional.pad(each, (0, longest - len(each))) for each in lifetimes])
    found = mean_counts(TokenPlan(lifetime, pruned.base.layers), pruned.base.outputs)[:-1]
    return [max(count, pruned.method.least) for count in found]


def counts_at_budget(
    pruned: PrunedModel, batches: Sequence[Tensor | Text] | None, budget: float, tokens: int
) -> list[int]:
    """Tokens that each layer reads (L), so that a graph of so many `tokens` costs that share of the dense model's
    multiply-adds for as many; `pruned` stays as it is.

    The method is brought to the budget on `batches`. Of images what it keeps then is the mean of `counts_of`. A graph
    of texts computes `tokens` of each, padding included, so that its counts are the mean share of a text times those.
    Raises UserError where there are no inputs, and for a method that has no dial.
    """
    if not batches:
        raise UserError(f"budget={budget} is found on inputs: give calibration=[batches of inputs]")
    if pruned.method.settings.dial_name() is None:
        raise UserError(f"budget={budget}: {pruned.method.title} has no setting that a budget finds: give counts=[...]")
    turned = PrunedModel(pruned.base, copy.deepcopy(pruned.method), pruned.approx).eval()
    if not pruned.base.may_pad:
        calibrate(turned, batches, BudgetSettings(macs=budget))
        return counts_of(turned, batches)
    asked, tried = budget, {}
    for _ in range(TRIES):  # attention and planner grow with the length in other ways than the rest
        calibrate(turned, batches, BudgetSettings(macs=asked))
        counts = _shares_of(turned, batches, tokens)
        reached = macs_share(turned, [*counts, pruned.base.outputs], tokens)
        tried[abs(reached - budget)] = counts
        if abs(reached - budget) < NEAR * budget:
            break
        asked = min(1.0, asked * budget / reached)
    return tried[min(tried)]


@torch.no_grad()
def _shares_of(pruned: PrunedModel, batches: Sequence[Tensor | Text], tokens: int) -> list[int]:
    """The mean share of a text's tokens that each layer reads, times `tokens` (L)."""
    shares = []
    for batch in batches:
        kept, real = pruned.plan(batch).counts[:, :-1], pruned.base.real(batch).sum(-1, keepdim=True)
        shares.append(kept.double() / real)
    mean = torch.cat(shares).mean(0)
    return [max(count, pruned.method.least) for count in (mean * tokens).round().long().tolist()]


def macs_share(pruned: PrunedModel, counts: Sequence[int], tokens: int) -> float:
    """Multiply-adds of a graph, planner included, as a share of the dense model's, of a sample of so many tokens.

    counts: at every boundary (L+1).
    """
    real = torch.ones(1, tokens, dtype=torch.bool)
    plan = fixed_plan(torch.arange(counts[0])[None], counts, tokens)
    plan = plan.with_survivors() if pruned.base.reads_survivors else plan
    run = Run(torch.zeros(1, pruned.base.architecture.classes), plan, real, pruned.method.scored_at(counts, tokens))
    return sum(pruned.macs(run).values()) / sum(pruned.dense_macs(real).values())
