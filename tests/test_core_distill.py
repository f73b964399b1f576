"""Losses of the approximate network and of distillation, against slow references (method sections 1 and 3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
from reference import random_probabilities, random_trace
from sttabt.core.distill import (
    attention_divergence,
    attention_squared_error,
    prediction_divergence,
    prediction_error,
    state_error,
)

EXAMPLES = settings(max_examples=20, deadline=None, derandomize=True)
ATTENTION_LOSSES = [attention_divergence, attention_squared_error]
PREDICTION_LOSSES = [prediction_error, prediction_divergence]
SIZES = [[7], [6, 6, 6], [8, 3, 5], [1, 4]]


def attention_pair(seed: int, real_tokens: list[int], padding: int = 0) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Probabilities of two random networks on the same samples: base, approximate, real."""
    base, approx = (random_trace(seed + i, real_tokens, padding=padding, scale=2.0) for i in (0, 1000))
    layers = range(base.layers)
    return [base.probabilities(n) for n in layers], [approx.probabilities(n) for n in layers], base.real


def random_logits(seed: int, batch: int, classes: int) -> Tensor:
    return 2 * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arrays(tensors: list[Tensor]) -> list[np.ndarray]:
    return [t.numpy() for t in tensors]


@pytest.mark.parametrize("loss", ATTENTION_LOSSES)
@pytest.mark.parametrize("real_tokens", SIZES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_attention_losses_are_the_slow_ones(seed, real_tokens, loss):
    base, approx, real = attention_pair(seed, real_tokens, padding=seed)
    expected = getattr(reference, loss.__name__)(arrays(base), arrays(approx), real.numpy())
    assert loss(base, approx, real).shape == ()
    assert loss(base, approx, real).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("real_tokens", SIZES, ids=str)
def test_the_official_squared_error_counts_rows_of_padding(real_tokens):
    base, approx, real = attention_pair(2, real_tokens, padding=2)
    rows = torch.ones_like(real)
    expected = reference.attention_squared_error(arrays(base), arrays(approx), real.numpy(), rows.numpy())
    assert attention_squared_error(base, approx, real, rows).item() == pytest.approx(expected, rel=1e-9)
    assert expected > attention_squared_error(base, approx, real).item()


@pytest.mark.parametrize("real_tokens", SIZES, ids=str)
def test_the_error_of_states_is_the_slow_one(real_tokens):
    generator = torch.Generator().manual_seed(4)
    shape = (len(real_tokens), max(real_tokens) + 1, 3)
    approx, base = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    real = torch.arange(shape[1]) < torch.tensor(real_tokens)[:, None]
    for rows in (real, torch.ones_like(real)):
        expected = reference.state_error(approx.numpy(), base.numpy(), rows.numpy())
        assert state_error(approx, base, rows).item() == pytest.approx(expected, rel=1e-9)
    everything = state_error(approx, base, torch.ones_like(real))
    torch.testing.assert_close(everything, torch.nn.functional.mse_loss(approx, base))


@pytest.mark.parametrize("loss", PREDICTION_LOSSES)
@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (4, 3), (2, 10)])
def test_prediction_losses_are_the_slow_ones(batch, classes, loss):
    student, teacher = random_logits(0, batch, classes), random_logits(1, batch, classes)
    expected = getattr(reference, loss.__name__)(student.numpy(), teacher.numpy())
    assert loss(student, teacher).shape == ()
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", ATTENTION_LOSSES)
@EXAMPLES
@given(seed=st.integers(0, 1000), real_tokens=st.lists(st.integers(2, 6), min_size=1, max_size=3))
def test_attention_losses_are_zero_only_when_equal(loss, seed, real_tokens):
    base, approx, real = attention_pair(seed, real_tokens)
    assert loss(base, base, real).item() == pytest.approx(0, abs=1e-12)
    assert loss(base, approx, real).item() > 1e-4


@pytest.mark.parametrize("loss", PREDICTION_LOSSES)
@EXAMPLES
@given(seed=st.integers(0, 1000), batch=st.integers(1, 4), classes=st.integers(2, 6), shift=st.floats(-5, 5))
def test_prediction_losses_are_zero_only_when_equal(loss, seed, batch, classes, shift):
    student, teacher = random_logits(seed, batch, classes), random_logits(seed + 5000, batch, classes)
    assert loss(teacher + shift, teacher).item() == pytest.approx(0, abs=1e-12)
    assert loss(student, teacher).item() > 1e-9


@pytest.mark.parametrize("loss", ATTENTION_LOSSES)
@EXAMPLES
@given(seed=st.integers(0, 1000), padding=st.integers(1, 3))
def test_padding_does_not_change_attention_losses(loss, seed, padding):
    base, approx, real = attention_pair(seed, [5, 3])
    tokens = real.shape[1]

    def pad(maps: list[Tensor], rows: int) -> list[Tensor]:
        padded = []
        for layer, probabilities in enumerate(maps):
            wide = random_probabilities(rows + layer, 2, 2, tokens + padding)
            wide[..., tokens:] = 0
            wide[..., :tokens, :tokens] = probabilities
            padded.append(wide)
        return padded

    wide_real = torch.cat([real, torch.zeros(2, padding, dtype=torch.bool)], dim=1)
    before = loss(base, approx, real)
    after = loss(pad(base, 0), pad(approx, 50), wide_real)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("loss", ATTENTION_LOSSES)
@pytest.mark.parametrize("real_tokens", [[6, 6], [6, 3]], ids=str)
def test_gradient_of_the_approximation_is_finite(real_tokens, loss):
    base, approx, real = attention_pair(3, real_tokens)
    approx = [a.requires_grad_() for a in approx]
    loss(base, approx, real).backward()
    for probabilities in approx:
        assert probabilities.grad is not None
        assert probabilities.grad.isfinite().all()
        assert probabilities.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", PREDICTION_LOSSES)
def test_gradient_of_the_prediction_matches_finite_differences(loss):
    student, teacher = random_logits(0, 3, 4).requires_grad_(), random_logits(1, 3, 4)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


@pytest.mark.parametrize("loss", ATTENTION_LOSSES)
def test_single_precision_agrees(loss):
    base, approx, real = attention_pair(5, [9, 9])
    double = loss(base, approx, real).item()
    assert loss([a.float() for a in base], [a.float() for a in approx], real).item() == pytest.approx(double, rel=1e-5)
