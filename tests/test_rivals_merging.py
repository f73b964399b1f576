"""The merging engine under rules of any kind, against a loop over samples; ToMe on texts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from conftest import TEXTS, make_backbone, make_inputs
from sttabt.backbones.base import Backbone
from sttabt.core.merge import Merging
from sttabt.engine.merging import MergingRows, run_matched, run_merging
from sttabt.models.frozen import freeze
from sttabt.testing.models import make_example, make_pruned, one_by_one


def slow_merging(base: Backbone, inputs: object, groups: list[list[list[int]]], weights: list[Tensor]) -> Tensor:
    """Logits of one sample whose rows become means of `groups` after each layer but the last.

    weights[l]: of the rows of layer l in those means. A key counts as often as it stands for a token.
    """
    x, sizes = base.embed(inputs)[0], [1.0] * base.embed(inputs).shape[1]
    for layer in range(base.layers):
        query, key, value = (part.unflatten(-1, (base.heads, -1)).transpose(0, 1) for part in base.qkv(layer, x))
        scores = query @ key.mT / math.sqrt(query.shape[-1]) + torch.tensor(sizes).log()
        attended = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
        x = base.project(layer, x, attended)
        if layer < base.layers - 1:
            own, weight = groups[layer], weights[layer]
            x = torch.stack([(x[group] * weight[group, None]).sum(0) / weight[group].sum() for group in own])
            sizes = [sum(sizes[row] for row in group) for group in own]
        x = base.feed_forward(layer, x)
    return base.head(x[None])


def rule_of(groups: list[list[list[list[int]]]], weights: list[list[Tensor]] | None = None):
    """groups[b][l]: of sample b in layer l; the first of a group gives it its name, unless it holds three or more."""

    def rule(layer: int, rows: MergingRows) -> Merging:
        place = torch.full(rows.present.shape, -1)
        stays, weight = torch.zeros_like(rows.present), torch.zeros(rows.present.shape)
        for sample, own in enumerate(groups):
            for left, group in enumerate(own[layer]):
                place[sample, group] = left
                stays[sample, group[0]] = len(group) < 3
            if weights is not None:
                weight[sample, : rows.counts[sample]] = weights[sample][layer]
        return Merging(place, stays, [len(own[layer]) for own in groups], None if weights is None else weight)

    return rule


# Of the example texts of 9, 2, 13 and 6 tokens, two layers each: what is in no group leaves no trace.
GROUPS = [
    [[[0], [1, 4], [3, 5, 6, 7], [8]], [[0], [3, 1]]],
    [[[0], [1]], [[0, 1]]],
    [[[0], [12, 2], [1], [3, 4, 5, 11]], [[0], [1], [3, 2]]],
    [[[0], [1], [2], [3], [4], [5]], [[0]]],
]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
@torch.inference_mode()
def test_any_rule_gives_what_a_loop_over_texts_gives(weighed: bool, frozen: bool) -> None:
    """Unequal counts, rows that leave no trace, rows that stand for none alone, and weights of the rule's own."""
    base, text = make_backbone("bert"), make_inputs("bert")
    weights = None
    if weighed:
        generator = torch.Generator().manual_seed(0)
        counts = [[9, 4], [2, 2], [13, 4], [6, 6]]
        weights = [[torch.rand(rows, generator=generator) + 0.1 for rows in own] for own in counts]
    backbone = freeze(base).base if frozen else base
    run = run_merging(backbone, text, rule_of(GROUPS, weights))
    for index, sample in enumerate(one_by_one(text)):
        own = GROUPS[index]
        sizes = [torch.ones(sample.ids.shape[1]), torch.tensor([float(len(group)) for group in own[0]])]
        expected = slow_merging(base, sample, own, sizes if weights is None else weights[index])
        torch.testing.assert_close(run.logits[index : index + 1], expected, atol=1e-5, rtol=1e-4)
    assert run.plan.counts.tolist() == [[9, 4, 2, 1], [2, 2, 1, 1], [13, 4, 3, 1], [6, 6, 1, 1]]
    assert run.plan.fused.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert run.plan.alive[0, 2].nonzero()[:, 0].tolist() == [0, 8], "the one that three became has merged into it"
    assert run.plan.alive[2, 2].nonzero()[:, 0].tolist() == [0, 12], "what takes in others goes on to stand for none"
    assert run.plan.alive[2, 1].nonzero()[:, 0].tolist() == [0, 1, 12]


@torch.inference_mode()
def test_rows_that_merge_weigh_one_where_a_rule_does_not_count_them() -> None:
    """Merging two equal rows halves their weight then, and leaves all as it was where rows are counted."""
    base, images = make_backbone("digits"), make_inputs("digits")
    images[:] = images[..., :1, :1]
    base.model.pos_embed[:, 1:] = base.model.pos_embed[:, 1:2]
    groups = [[[[0], [1], list(range(2, 50))], [[0], [1], [2]]]] * len(images)
    dense = base(images)
    weighted, plain = (run_merging(base, images, rule_of(groups), weighted).logits for weighted in (True, False))
    torch.testing.assert_close(weighted, dense, atol=1e-5, rtol=1e-5)
    assert (plain - dense).abs().max() > 1e-3


# --- ToMe on texts


@pytest.mark.parametrize("name", TEXTS)
@torch.inference_mode()
def test_merging_nothing_of_a_text_is_the_dense_model(name: str) -> None:
    base, text = make_backbone(name), make_inputs(name)
    pairs = [[0] * len(text.ids)] * (base.layers - 1)
    torch.testing.assert_close(run_matched(base, text, pairs).logits, base(text), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"merged": 3}, [[9, 6, 4, 1], [2, 2, 2, 1], [13, 10, 7, 1], [6, 4, 3, 1]]),
        ({"merged": 99}, [[9, 5, 3, 1], [2, 2, 2, 1], [13, 7, 4, 1], [6, 4, 3, 1]]),
        ({"share": 0.25}, [[9, 7, 5, 1], [2, 2, 2, 1], [13, 10, 7, 1], [6, 5, 3, 1]]),  # 1.5 pairs of 6: 1, then 2
    ],
)
@torch.inference_mode()
def test_a_text_loses_at_most_half_of_its_tokens_a_layer(settings: dict, counts: list[list[int]]) -> None:
    model, text = make_pruned(make_example("bert"), "tome", **settings), make_inputs("bert")
    for each in (model, freeze(model)):
        assert each.run(text).plan.counts.tolist() == counts


@torch.inference_mode()
def test_a_batch_of_texts_costs_what_is_executed() -> None:
    """Attention and comparisons on texts padded to the longest count; frozen, attention computes no padding."""
    model, text = make_pruned(make_example("bert"), "tome", merged=2), make_inputs("bert")
    run = model.run(text)
    with FlopCounterMode(display=False) as counter:
        model.run(text)
    found = model.macs(run)
    assert sum(found.values()) == pytest.approx(counter.get_total_flops() / 2 / len(text.ids), rel=1e-6)
    frozen, alone = freeze(model), [model.macs(model.run(each)) for each in one_by_one(text)]
    parts = frozen.macs(frozen.run(text))
    for part in ("stem", "projections", "attention", "feed_forward", "head"):
        assert parts[part] == pytest.approx(sum(each[part] for each in alone) / len(alone)), part
    assert parts["attention"] < found["attention"] and parts["planning"] < found["planning"]
