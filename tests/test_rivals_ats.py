"""ATS against loops over sampling points, cases worked by hand, and what the paper says of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import make_backbone, make_images
from sttabt.core.ats import sample_tokens, significance
from sttabt.errors import UserError
from sttabt.models.pruned import PrunedModel
from sttabt.testing.models import make_example, make_pruned
from test_rivals_class_attention import Headless, slow_block


def slow_samples(score: list[float], samples: int) -> set[int]:
    """The tokens that the points (2k - 1) / 2K pick, one point after another."""
    picked = set()
    for k in range(1, samples + 1):
        point, total = (2 * k - 1) / (2 * samples), 0.0
        for token, each in enumerate(score):
            total += each
            if total >= point:
                picked.add(token)
                break
    return picked


def test_a_case_by_hand() -> None:
    """Sums 0.5, 0.55, 0.95, 1: the points 1/8, 3/8, 5/8, 7/8 pick the tokens 0, 0, 2, 2; 1/6, 3/6, 5/6 pick 0, 0, 2."""
    score = torch.tensor([[0.5, 0.05, 0.4, 0.05]], dtype=torch.float64)
    assert sample_tokens(score, torch.tensor([4])).tolist() == [[True, False, True, False]]
    assert sample_tokens(score, torch.tensor([3])).tolist() == [[True, False, True, False]]
    assert sample_tokens(score, torch.tensor([1])).tolist() == [[True, False, False, False]]
    assert sample_tokens(score, torch.tensor([40])).all()


@pytest.mark.parametrize("samples", [1, 3, 7, 20, 100])
def test_points_pick_what_a_loop_over_them_picks(samples: int) -> None:
    generator = torch.Generator().manual_seed(samples)
    score = torch.rand(30, 20, generator=generator, dtype=torch.float64) ** 4
    score = score / score.sum(-1, keepdim=True)
    found = sample_tokens(score, torch.full((30,), samples))
    for own, row in zip(score.tolist(), found, strict=True):
        assert set(row.nonzero().flatten().tolist()) == slow_samples(own, samples)
    assert (found.sum(-1) <= samples).all() and (found.sum(-1) >= 1).all()
    assert (found | (score < 1 / samples)).all(), "what scores 1/K is picked"


def test_equal_scores_and_as_many_samples_pick_everything() -> None:
    score = torch.full((1, 12), 1 / 12, dtype=torch.float64)
    assert sample_tokens(score, torch.tensor([12])).all()


def test_what_is_not_there_is_not_picked() -> None:
    """Scores of dropped tokens and padding are 0, wherever they stand."""
    generator = torch.Generator().manual_seed(2)
    alive = torch.rand(5, 16, generator=generator) > 0.4
    alive[:, :2] = True
    of_class, value = torch.rand(5, 2, 16, generator=generator), torch.randn(5, 16, 6, generator=generator)
    score = significance(of_class, value, alive, outputs=2)
    torch.testing.assert_close(score.sum(-1), torch.ones(5, dtype=torch.float64))
    assert not score[:, :2].any() and not score[~alive].any()
    assert not (sample_tokens(score, torch.full((5,), 50)) & ~alive).any()
    for sample in range(5):
        rows = alive[sample].nonzero().flatten()
        tight = significance(
            of_class[sample : sample + 1, :, rows],
            value[sample : sample + 1, rows],
            alive[sample : sample + 1, rows],
            2,
        )
        torch.testing.assert_close(tight[0], score[sample, rows])


def test_a_score_is_attention_times_the_length_of_the_value() -> None:
    """Two heads of width 2: lengths 5, 1, 2 and 1, 1, 4; the first token is the class token's."""
    value = torch.tensor([[[3.0, 4, 0, 1], [0, 1, 1, 0], [2, 0, 0, 4]]])
    of_class = torch.tensor([[[0.2, 0.4, 0.4], [0.5, 0.3, 0.2]]])
    found = significance(of_class, value, torch.ones(1, 3, dtype=torch.bool))
    one, other = (0.4 * 1 / (0.4 * 1 + 0.4 * 2)), (0.3 * 1 / (0.3 * 1 + 0.2 * 4))
    expected = torch.tensor([[0, (one + other) / 2, 1 - (one + other) / 2]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)


def slow_alive(base: Any, image: Tensor, samples: int, layers: list[int]) -> list[list[int]]:
    """Tokens of each boundary but the last, of one image."""
    x, tokens, kept = base.embed(image)[0], list(range(base.tokens)), []
    heads = base.heads
    for number, block in enumerate(base.model.blocks):
        kept.append(tokens)
        probabilities, added = slow_block(block, x)
        value = block.attn.qkv(block.norm1(x)).chunk(3, -1)[2].unflatten(-1, (heads, -1))
        x = x + added
        if number in layers:
            score = torch.zeros(len(tokens) - 1, dtype=torch.float64)
            for head in range(heads):
                own = (probabilities[head, 0, 1:] * value[1:, head].norm(dim=-1)).double()
                score += own / own.sum() / heads
            places = [0, *(1 + place for place in sorted(slow_samples(score.tolist(), samples)))]
            x, tokens = x[places], [tokens[place] for place in places]
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return kept


@torch.inference_mode()
def test_a_slow_forward_agrees_and_images_keep_unequal_counts() -> None:
    model, images = make_pruned(make_example("test_vit"), "ats"), make_images("test_vit", 8)
    run = model.run(images)
    for sample in range(8):
        found = [row.nonzero().flatten().tolist() for row in run.plan.alive[sample, :-1]]
        assert found == slow_alive(model.base, images[sample : sample + 1], 16, [1, 2, 3, 4])
    assert len({tuple(row) for row in run.plan.counts.tolist()}) > 1, "the number of tokens adapts to the image"


def test_a_model_without_a_class_token_is_refused() -> None:
    method = make_pruned(make_example("digits"), "ats").method
    with pytest.raises(UserError, match="ATS scores tokens by the attention of a class token"):
        PrunedModel(Headless(make_backbone("digits").model), method)
