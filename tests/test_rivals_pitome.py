"""PiToMe against the paper's formulas worked by hand, against loops over rows, and what the paper says of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from conftest import make_inputs
from reference import merged_sums
from sttabt.core.pitome import energies, margin, match_by_energy, pairs_of_share
from sttabt.models.frozen import freeze
from sttabt.testing.models import make_example, make_pruned


def slow_groups(features: Tensor, merged: int, margin: float, outputs: int) -> list[list[int]]:
    """Which rows of one sample become one, by the paper's algorithm 1."""
    rows = range(outputs, len(features))
    cosine = {(a, b): float(torch.cosine_similarity(features[a], features[b], dim=0)) for a in rows for b in rows}
    energy = {}
    for a in rows:
        terms = [x if (x := cosine[a, b]) >= margin else math.exp(x - margin) - 1 for b in rows]
        energy[a] = sum(terms) / len(terms)
    chosen = sorted(rows, key=lambda row: -energy[row])[: 2 * merged]
    offered, taking = chosen[::2], chosen[1::2]
    groups = {row: [row] for row in range(len(features))}
    for a in offered:
        groups[max(taking, key=lambda b, a=a: cosine[a, b])] += groups.pop(a)
    return sorted(sorted(group) for group in groups.values())


@pytest.mark.parametrize("level", [0.9, 0.3, 0.0])
@pytest.mark.parametrize(("n", "outputs", "merged"), [(9, 1, [2, 1]), (11, 2, [4, 3]), (8, 0, [4, 0])])
def test_the_merging_is_that_of_loops(n: int, outputs: int, merged: list[int], level: float) -> None:
    generator = torch.Generator().manual_seed(n)
    features, counts = torch.randn(2, n, 3, generator=generator, dtype=torch.float64), [n, n - 2]
    merging = match_by_energy(features, counts, merged, level, outputs)
    sums = merged_sums(merging, torch.eye(n, dtype=torch.float64).expand(2, n, n))
    for sample, own in enumerate(counts):
        assert merging.left[sample] == own - merged[sample]
        found = sorted(row.nonzero().flatten().tolist() for row in sums[sample, : merging.left[sample]])
        assert found == slow_groups(features[sample, :own], merged[sample], level, outputs)
    assert torch.equal(merging.place[:, :outputs], torch.arange(outputs).expand(2, -1))


def test_the_energy_of_three_rows_by_hand() -> None:
    """Two rows at a right angle, and one between them at 60 and 30 degrees; the last one is padding."""
    angles = torch.tensor([0.0, math.pi / 2, math.pi / 3, 1.0], dtype=torch.float64)
    rows = torch.stack([angles.cos(), angles.sin()], -1)
    present = torch.tensor([[True, True, True, False]])
    found = energies((rows @ rows.T)[None], present, margin=0.6)[0]
    below = math.exp(0.5 - 0.6) - 1, math.exp(0.0 - 0.6) - 1
    expected = [1 + below[1] + below[0], below[1] + 1 + math.sqrt(3) / 2, below[0] + math.sqrt(3) / 2 + 1]
    assert found[:3].tolist() == pytest.approx([sum_ / 3 for sum_ in expected])


def test_margins_fall_from_layer_to_layer() -> None:
    assert [margin(layer, 3) for layer in range(3)] == pytest.approx([0.9, 0.6, 0.3])


def test_a_cluster_merges_and_what_stands_alone_is_kept() -> None:
    """The paper's figure 1: four rows of a large group merge before any of the single ones, in whatever order."""
    torch.manual_seed(0)
    alone = torch.eye(8, dtype=torch.float64)[:4]
    group = torch.eye(8, dtype=torch.float64)[7] + 0.01 * torch.randn(4, 8, dtype=torch.float64)
    order = torch.randperm(8)
    features = torch.cat([torch.ones(1, 8, dtype=torch.float64), torch.cat([alone, group])[order]])[None]
    merging = match_by_energy(features, [9], [2], margin(0, 12))
    assert [int(order[row - 1]) < 4 for row in (~merging.stays[0]).nonzero()[:, 0]] == [False, False]


def test_pairs_leave_the_share_that_is_asked_for() -> None:
    assert pairs_of_share(0.9, [31, 197, 11, 2, 1]) == [3, 19, 1, 0, 0]
    assert pairs_of_share(0.1, [31, 2, 3]) == [15, 0, 1], "half at the least are left"
    assert pairs_of_share(1.0, [31]) == [0]


@torch.inference_mode()
def test_keeping_all_is_the_dense_model(backbone_name: str) -> None:
    model, inputs = make_pruned(make_example(backbone_name), "pitome", keep_ratio=1.0), make_inputs(backbone_name)
    torch.testing.assert_close(model.run(inputs).logits, model.base(inputs), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_texts_keep_their_share_each() -> None:
    model, text = make_pruned(make_example("bert"), "pitome", keep_ratio=0.7), make_inputs("bert")
    for each in (model, freeze(model)):
        counts = each.run(text).plan.counts.tolist()
        assert counts == [[9, 7, 6, 1], [2, 2, 2, 1], [13, 10, 8, 1], [6, 5, 4, 1]]
