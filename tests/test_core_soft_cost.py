"""Multiply-adds of soft masks: those of `encoder_macs` where masks are hard, and what the loss holds them at."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import make_approx, make_backbone, make_inputs
from sttabt.core.cost import Architecture, encoder_macs
from sttabt.core.soft_cost import OF_LAYERS, even_counts, macs_loss, share_of_layers
from sttabt.methods.concrete import Concrete
from sttabt.models.pruned import PrunedModel
from sttabt.settings.methods.concrete import ConcreteSettings
from sttabt.testing.models import one_by_one

EXAMPLES = settings(max_examples=30, deadline=None, derandomize=True)


def architecture(layers: int = 3) -> Architecture:
    return Architecture(layers, width=6, heads=2, feed_forward=10, classes=3, patch_inputs=4)


def of_layers(arch: Architecture, counts: list[float]) -> float:
    found = encoder_macs(arch, counts[:-1], counts[1:], 0)
    return sum(found[name] for name in OF_LAYERS)


def random_masks(seed: int, lengths: list[int], layers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks (B, L+1, N) that fall from boundary to boundary, 1 on the first token and 0 on padding; real tokens."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    draws = torch.rand(len(lengths), layers + 1, max(lengths), generator=generator, dtype=torch.float64)
    masks = draws.cummin(1).values * real[:, None]
    masks[..., 0] = 1
    return masks, real


@EXAMPLES
@given(st.integers(0, 999), st.lists(st.integers(2, 9), min_size=1, max_size=3), st.integers(1, 4))
def test_hard_masks_cost_what_is_counted(seed: int, lengths: list[int], layers: int) -> None:
    arch = architecture(layers)
    masks, real = random_masks(seed, lengths, layers)
    hard = (masks >= 0.5).double()
    spent = sum(of_layers(arch, own) for own in hard.sum(-1).tolist())
    dense = sum(of_layers(arch, [own] * (layers + 1)) for own in lengths)
    share = share_of_layers(arch, hard.sum(-1), real.sum(-1).double())
    assert share.item() == pytest.approx(spent / dense, rel=1e-12)


@pytest.mark.parametrize("name", ["digits", "bert", "lvvit"])
def test_they_are_those_of_a_row(name: str) -> None:
    """Of concrete masks on a model of images, of texts, and with a head that reads survivors; without padding."""
    base = make_backbone(name)
    method = Concrete(ConcreteSettings(method="concrete", p_logit=-0.5), base.layers, base.outputs)
    pruned = PrunedModel(base, method, make_approx(base, name)).eval()
    run = pruned.run(one_by_one(make_inputs(name))[0])
    spent, dense = pruned.macs(run), pruned.dense_macs(run.real)
    if base.projects_whole:  # queries of rows that are not written, which torch computes here, and no plan asks for
        dropped = run.plan.counts[:, 0] - run.plan.counts[:, -1]
        spent["projections"] -= dropped.item() * base.architecture.width**2
    share = share_of_layers(base.architecture, run.plan.counts.double(), run.real.sum(-1).double())
    expected = sum(spent[part] for part in OF_LAYERS) / sum(dense[part] for part in OF_LAYERS)
    assert 0 < share.item() < 1 and share.item() == pytest.approx(expected, rel=1e-9)


def test_concrete_masks_learn_from_them_in_every_layer() -> None:
    """The first layer's logit, too, which decides what is read and not what is written."""
    base = make_backbone("digits")
    reached = {}
    for held in ("tokens", "macs"):
        method = Concrete(ConcreteSettings(method="concrete", p_logit=-0.5, held=held), base.layers, base.outputs)
        run = PrunedModel(base, method, make_approx(base, "digits")).train().soft(make_inputs("digits"))
        (name,) = run.terms.keys() - {"p_logit"}
        run.terms[name].backward()
        assert method.p_logit.grad is not None
        reached[name] = method.p_logit.grad.ne(0).tolist()
    assert reached["macs"] == [True] * base.layers
    assert reached["keep"] == [False] + [True] * (base.layers - 1)


@pytest.mark.parametrize("survivors", [False, True])
def test_the_gradient_is_that_of_finite_differences(survivors: bool) -> None:
    masks, real = random_masks(3, [5, 3], 3)

    def loss(masks: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return macs_loss(architecture(), masks, real, keep, 2.0, survivors=survivors)

    keep = torch.tensor(0.6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(loss, (masks.requires_grad_(), keep))


@EXAMPLES
@given(st.floats(0.35, 0.75), st.lists(st.integers(8, 20), min_size=1, max_size=3), st.booleans())
def test_the_loss_is_0_at_an_even_plan_of_that_share(keep: float, lengths: list[int], survivors: bool) -> None:
    """Whose layers write that share on average, as the loss on tokens holds it."""
    tokens, share = torch.tensor(lengths).double(), torch.tensor(keep, dtype=torch.float64)
    counts = even_counts(tokens, share, 4, outputs=1, least=1)
    written = counts[:, 1:].mean(1) / tokens
    assert written.tolist() == pytest.approx([keep] * len(lengths))
    assert (counts[:, :4] == counts[:, :1]).all() and (counts[:, 4] == 1).all()
    real = torch.arange(max(lengths)) < tokens[:, None]
    even = (counts / tokens[:, None])[..., None] * real[:, None]  # every token a part of it
    assert macs_loss(architecture(4), even, real, share, 1.0, survivors=survivors).item() == pytest.approx(0, abs=1e-20)
    assert macs_loss(architecture(4), 0.9 * even, real, share, 1.0, survivors=survivors).item() > 1e-6


@pytest.mark.parametrize(("keep", "inner"), [(0.999, 6.0), (0.01, 2.0)])
def test_no_even_plan_has_more_tokens_than_there_are_or_fewer_than_the_head_reads(keep: float, inner: float) -> None:
    counts = even_counts(torch.tensor([6.0]), torch.tensor(keep), 3, outputs=1, least=2)
    assert counts.tolist() == [[inner, inner, inner, 1.0]]


def test_one_layer_reads_the_share_itself() -> None:
    assert even_counts(torch.tensor([10.0]), torch.tensor(0.4), 1, 1, 1).tolist() == [[4.0, 1.0]]


def test_all_tokens_are_a_target_that_can_be_reached() -> None:
    """Though the last layer computes the output token alone, whatever is kept."""
    real = torch.ones(2, 7, dtype=torch.bool)
    masks = torch.ones(2, 4, 7, dtype=torch.float64)
    masks[:, 3, 1:] = 0
    keep = torch.tensor(1.0, dtype=torch.float64)
    assert macs_loss(architecture(), masks, real, keep, 1.0).item() == pytest.approx(0, abs=1e-24)
