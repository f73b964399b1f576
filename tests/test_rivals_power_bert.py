"""PoWER-BERT's retention by hand, against loops, and its soft and hard runs against each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from conftest import make_inputs
from sttabt.core.plan import ranks
from sttabt.core.power_bert import mass_loss, retained, retention_counts
from sttabt.models.frozen import freeze
from sttabt.models.pruned import PrunedModel
from sttabt.testing.models import make_example, make_pruned, one_by_one

REAL = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


def _model(backbone: str = "bert", **settings: object) -> PrunedModel:
    return make_pruned(make_example(backbone), "power_bert", **settings)


# --- formulas


def test_ranks_are_places_in_the_order_of_significance() -> None:
    significance = torch.tensor([[0.0, 0.3, 0.1, 0.5, 0.3, 0.2], [0.1, 0.4, 0.2, 0.9, 8.0, 9.0]])
    assert ranks(significance, REAL).tolist() == [[5, 1, 4, 0, 2, 3], [3, 1, 2, 0, 4, 5]], "padding comes last"


def test_retention_by_hand() -> None:
    """Three bins: of 6 tokens two share a bin, of 4 tokens the ranks 0 and 1, 2, 3 read the bins 0, 0, 1, 2."""
    retention = torch.tensor([[1.5, 0.6, -0.2], [0.9, 0.1, 0.0]], requires_grad=True)
    rank = torch.tensor([[0, 2, 5, 1, 3, 4], [0, 2, 3, 1, 4, 5]])
    found = retained(retention[0], rank, REAL)
    assert found.tolist() == [pytest.approx(row) for row in ([1, 0.6, 0, 1, 0.6, 0], [1, 0.6, 0, 1, 0, 0])]
    found.sum().backward()
    assert retention.grad[0].tolist() == [4, 3, 3], "what is cut goes on to learn"
    assert retention_counts(retention, REAL.sum(1)).tolist() == [[4, 3], [2, 2]]  # masses 3.2, 2.6 and 2.0, 1.9


@pytest.mark.parametrize("bins", [1, 5, 7, 40])
def test_counts_are_the_masses_of_loops(bins: int) -> None:
    retention = torch.rand(3, bins, generator=torch.Generator().manual_seed(bins)) * 1.4 - 0.2
    real = torch.arange(23) < torch.tensor([23, 1, 2, 9, 16])[:, None]
    found = retention_counts(retention, real.sum(1))
    for sample, tokens in enumerate(real.sum(-1).tolist()):
        before = tokens
        for layer in range(3):
            mass = sum(min(max(float(retention[layer, rank * bins // tokens]), 0), 1) for rank in range(tokens))
            before = min(before, max(math.ceil(mass - 1e-6), 1))
            assert found[layer, sample] == before


def test_as_many_bins_as_tokens_are_the_papers_parameters() -> None:
    """Its configuration is the mass of a layer, rounded up."""
    retention = torch.tensor([[1.0, 1.0, 0.7, 0.2, 0.0], [1.0, 0.3, 0.1, 0.0, 0.0]])
    assert retention_counts(retention, torch.tensor([5])).tolist() == [[3], [2]]


def test_the_loss_weighs_a_layer_by_its_number() -> None:
    masks = torch.tensor([[[1.0, 0.5, 0.0, 9.0], [0.5, 0.1, 0.0, 9.0]], [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]])
    real = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    whole = 2 * ((0.5 + 1) / 2 + 2 * (0.2 + 0.25) / 2)
    assert float(mass_loss(masks, real, 2.0)) == pytest.approx(whole)
    mean = (0.75 + 0.225) / 2
    assert float(mass_loss(masks, real, 2.0, mean - 0.01)) == pytest.approx(whole)
    assert float(mass_loss(masks, real, 2.0, mean + 0.01)) == 0


# --- runs


@torch.inference_mode()
def test_untrained_it_is_the_dense_model(backbone_name: str) -> None:
    """The paper starts every parameter at 1."""
    model, inputs = _model(backbone_name), make_inputs(backbone_name)
    for logits in (model.run(inputs).logits, model.soft(inputs).logits):
        torch.testing.assert_close(logits, model.base(inputs), atol=1e-5, rtol=1e-5)


def slow_soft(model: PrunedModel, sample: object) -> Tensor:
    """Logits of one sample, by the paper's steps: attention, extraction of sorted rows, feed-forward."""
    base, retention = model.base, model.method.retention
    x = base.embed(sample)[0]
    tokens, bins = len(x), retention.shape[1]
    for layer in range(base.layers):
        query, key, value = (part.unflatten(-1, (base.heads, -1)).transpose(0, 1) for part in base.qkv(layer, x))
        probabilities = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        x = base.project(layer, x, (probabilities @ value).transpose(0, 1).flatten(1))
        if layer < base.layers - 1:
            received = probabilities.sum((0, 1)).tolist()
            order = [0, *sorted(range(1, tokens), key=lambda token, received=received: -received[token])]
            for rank, token in enumerate(order):
                x[token] = x[token] * (1 if token == 0 else float(retention[layer, rank * bins // tokens]))
        x = base.feed_forward(layer, x)
    return base.head(x[None])


@pytest.mark.parametrize("backbone", ["bert", "digits"])
@torch.inference_mode()
def test_the_soft_run_is_that_of_loops(backbone: str) -> None:
    model, inputs = _model(backbone, bins=4), make_inputs(backbone)
    model.method.retention.copy_(torch.rand(2, 4, generator=torch.Generator().manual_seed(1)))
    found = model.soft(inputs).logits
    for index, sample in enumerate(one_by_one(inputs)):
        torch.testing.assert_close(found[index : index + 1], slow_soft(model, sample), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_every_text_keeps_its_mass() -> None:
    """Of 9, 2, 13 and 6 tokens; also frozen."""
    model, text = _model(bins=2), make_inputs("bert")
    model.method.retention.copy_(torch.tensor([[1.0, 0.5], [0.6, 0.0]]))
    for each in (model, freeze(model)):
        counts = each.run(text).plan.counts.tolist()
        assert counts == [[9, 7, 3, 1], [2, 2, 1, 1], [13, 10, 5, 1], [6, 5, 2, 1]]


def test_gradients_reach_the_retention_and_the_weights() -> None:
    model, text = _model(start=0.8, mass_weight=1.0), make_inputs("bert")
    run = model.soft(text)
    run.terms["mass"].backward(retain_graph=True)
    assert (model.method.retention.grad >= 0).all() and model.method.retention.grad.sum() > 0, "less is cheaper"
    run.logits.square().sum().backward()
    assert model.base.model.bert.encoder.layer[0].attention.self.query.weight.grad.any()
    model.method.retention.grad = None
    model.run(text).logits.sum().backward()
    assert model.method.retention.grad is None, "the hard run trains the weights alone"


def test_learning_retains_less_where_it_costs_more() -> None:
    """Steps on the mass alone lower the retention, the later layer's sooner as its number weighs."""
    model, text = _model(bins=4, mass_weight=1.0), make_inputs("bert")
    optimizer = torch.optim.SGD([model.method.retention], lr=0.2)
    before = model.run(text).plan.counts
    for _ in range(5):
        optimizer.zero_grad()
        model.soft(text).terms["mass"].backward()
        optimizer.step()
    after = model.run(text).plan.counts
    assert (after <= before).all() and (after[2] < before[2])[1:3].all()
    first, second = model.method.retention.mean(1).tolist()
    assert second < first < 1
