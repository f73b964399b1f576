"""ToMe's matching against loops over tokens, and what merging must leave alone."""

from __future__ import annotations

import pytest
import torch

from conftest import make_backbone, make_images
from reference import merged_sums
from sttabt.core.merge import match_tokens, pairs_by_layer, pairs_to_merge
from sttabt.engine.merging import run_matched


def slow_groups(features: torch.Tensor, merged: int, outputs: int) -> list[list[int]]:
    """Which places of one sample become one, by the paper's steps: alternate, best partner, most alike edges first."""
    n = len(features)
    offered, taking = list(range(outputs, n, 2)), list(range(outputs + 1, n, 2))
    edges = []
    for a in offered:
        alike = [float(torch.cosine_similarity(features[a], features[b], dim=0)) for b in taking]
        edges.append((max(alike), a, taking[alike.index(max(alike))]))
    edges.sort(key=lambda edge: -edge[0])
    groups = {place: [place] for place in range(n)}
    for _, a, b in edges[:merged]:
        groups[b] += groups.pop(a)
    return sorted(sorted(group) for group in groups.values())


@pytest.mark.parametrize(("n", "outputs", "merged"), [(9, 1, 2), (10, 1, 4), (10, 2, 4), (17, 1, 0), (5, 1, 99)])
def test_the_most_alike_pairs_merge(n: int, outputs: int, merged: int) -> None:
    generator = torch.Generator().manual_seed(n + merged)
    features = torch.randn(3, n, 6, generator=generator, dtype=torch.float64)
    counts = [n, n - 2, n]  # the second is padded
    pairs = pairs_to_merge([merged] * 3, counts, outputs)
    assert pairs == [min(merged, (own - outputs) // 2) for own in counts]
    matching = match_tokens(features, counts, pairs, outputs)
    places = torch.eye(n, dtype=torch.float64).expand(3, n, n)
    sums = merged_sums(matching, places)
    for sample, own in enumerate(counts):
        rows = sums[sample, : matching.left[sample]]
        found = sorted(row.nonzero().flatten().tolist() for row in rows)
        assert found == slow_groups(features[sample, :own], pairs[sample], outputs)
        assert not matching.stays[sample, own:].any() and (matching.place[sample, own:] == -1).all()
        names = sorted(matching.place[sample, matching.stays[sample]].tolist())
        assert names == list(range(matching.left[sample])), "every row that is left has one that it stands for"
    assert torch.equal(matching.place[:, :outputs], torch.arange(outputs).expand(3, -1))


@torch.inference_mode()
def test_merging_nothing_is_the_dense_model(vision_name: str) -> None:
    base, images = make_backbone(vision_name), make_images(vision_name)
    pairs = [[0] * len(images)] * (base.layers - 1)
    torch.testing.assert_close(run_matched(base, images, pairs).logits, base(images), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_tokens_that_are_the_same_may_merge_without_effect() -> None:
    """Proportional attention and size-weighted means: one row for two equal tokens is as good as both."""
    base, images = make_backbone("digits"), make_images("digits")
    images[:] = images[..., :1, :1]  # every patch the same
    with torch.no_grad():
        base.model.pos_embed[:, 1:] = base.model.pos_embed[:, 1:2]
    merged = run_matched(base, images, [[10] * len(images)] * (base.layers - 1))
    assert merged.plan.alive.sum(-1)[0].tolist() == [50, 40, 30, 1]
    torch.testing.assert_close(merged.logits, base(images), atol=1e-5, rtol=1e-5)


def test_a_sample_that_merges_nothing_keeps_its_order() -> None:
    """Beside one that merges, too: its halves in later layers must not depend on its batch."""
    features = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    matching = match_tokens(features, [9, 7], [2, 0])
    assert matching.place[1].tolist() == [0, 1, 2, 3, 4, 5, 6, -1, -1] and matching.left == [7, 7]
    assert matching.place[0].tolist() != list(range(9))


def test_a_fraction_is_spread_over_layers() -> None:
    assert pairs_by_layer(3, 4) == [3, 3, 3, 3]
    assert pairs_by_layer(2.5, 4) == [2, 3, 2, 3]
    assert pairs_by_layer(0.25, 4) == [0, 0, 0, 1]
    assert pairs_by_layer(8.0, 0) == []
    for merged in (0.1, 1.3, 7.77):
        pairs = pairs_by_layer(merged, 11)
        assert sum(pairs) == int(11 * merged) and max(pairs) - min(pairs) <= 1


def test_a_decreasing_schedule_falls_from_twice_as_many_to_none() -> None:
    assert pairs_by_layer(4, 5, decreasing=True) == [8, 6, 4, 2, 0]
    assert pairs_by_layer(1.5, 5, decreasing=True) == [3, 2, 1, 1, 0]  # sums 3, 5.25, 6.75, 7.5, 7.5
    assert pairs_by_layer(2, 1, decreasing=True) == [2] and pairs_by_layer(2, 0, decreasing=True) == []
    for merged in (0.3, 1.0, 7.77):
        pairs = pairs_by_layer(merged, 11, decreasing=True)
        exact = [merged * 2 * (1 - layer / 10) for layer in range(11)]
        assert sum(pairs) == int(11 * merged + 1e-9) and pairs[-1] == 0
        assert all(abs(found - wanted) < 1 for found, wanted in zip(pairs, exact, strict=True))


def test_layers_merge_their_own_number_of_pairs() -> None:
    base, images = make_backbone("digits"), make_images("digits")
    tokens = base.tokens
    run = run_matched(base, images, [[pairs] * len(images) for pairs in pairs_by_layer(1.5, base.layers - 1)])
    assert run.plan.counts[0].tolist() == [tokens, tokens - 1, tokens - 3, 1]
