"""Attention of training in bf16 on a CPU: by products, equal to torch's own, and used by every stage alone there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from sttabt.lit import attention as lit_attention
from sttabt.lit.attention import AttentionByProducts

SHAPES = [((3, 2, 7, 8), 7), ((2, 4, 5, 16), 9), ((1, 1, 1, 4), 1)]
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def _drawn(shape: tuple[int, int, int, int], keys: int) -> list[Tensor]:
    torch.manual_seed(0)
    wide = (*shape[:2], keys, shape[3])
    return [torch.randn(each).bfloat16().requires_grad_() for each in (shape, wide, wide)]


def _masks(shape: tuple[int, int, int, int], keys: int) -> dict[str, Tensor | None]:
    seen = torch.arange(keys) < max(1, keys - 2)
    bias = torch.linspace(-1, 1, keys).expand(shape[0], 1, 1, keys).clone()
    return {
        "none": None,
        "bool": seen.expand(shape[2], keys),
        "added": bias,
        "-inf": bias.masked_fill(~seen, -torch.inf),
    }


def _gradients(values: list[Tensor], **named: Any) -> list[Tensor]:
    attended = F.scaled_dot_product_attention(*values, **named)
    weight = torch.linspace(-1, 1, attended.numel()).view(attended.shape)
    return [attended, *torch.autograd.grad((attended.float() * weight).sum(), values)]


@pytest.mark.parametrize(("shape", "keys"), SHAPES)
@pytest.mark.parametrize("mask", ["none", "bool", "added", "-inf"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equal_to_attention_in_float64(
    shape: tuple[int, int, int, int], keys: int, mask: str, scale: float | None
) -> None:
    values, asked = _drawn(shape, keys), _masks(shape, keys)[mask]
    exact = [value.detach().double().requires_grad_() for value in values]
    wide = asked if asked is None or asked.dtype is torch.bool else asked.double()
    expected = _gradients(exact, attn_mask=wide, scale=scale)
    with torch.autocast("cpu", torch.bfloat16), AttentionByProducts():
        found = _gradients(values, attn_mask=asked, scale=scale)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is torch.bfloat16
        torch.testing.assert_close(
            one.double(), other, rtol=0.03, atol=0.03 * max(1.0, float(other.detach().abs().max()))
        )


def test_a_row_that_sees_nothing_stays_finite() -> None:
    values = _drawn((2, 1, 3, 4), 3)
    seen = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    with torch.autocast("cpu", torch.bfloat16), AttentionByProducts():
        for mask in (seen, torch.zeros(3, 3).masked_fill(~seen, -torch.inf)):
            assert all(bool(torch.isfinite(each).all()) for each in _gradients(values, attn_mask=mask))


def test_dropout_drops_probabilities_and_keeps_their_mean() -> None:
    query, key = torch.zeros(1, 1, 2000, 8), torch.zeros(1, 1, 10, 8)
    value = torch.eye(10, 8)[None, None]
    with torch.autocast("cpu", torch.bfloat16), AttentionByProducts():
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=0.5).float()
    assert torch.unique(attended).tolist() == pytest.approx([0.0, 0.2], abs=1e-3)
    assert float(attended.mean()) == pytest.approx(0.1, abs=0.01)


def _calls(autocast: bool, *more: Any, **named: Any) -> set[str]:
    values = _drawn((2, 2, 6, 8), 6)
    half = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with profile(activities=[ProfilerActivity.CPU]) as traced, half, AttentionByProducts():
        F.scaled_dot_product_attention(*values, *more, **named)
    return {event.key for event in traced.key_averages()}


def test_torchs_own_kernel_stays_where_it_is_right_or_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FUSED not in _calls(True)
    assert FUSED in _calls(False)  # float32, in a real run
    assert FUSED in _calls(True, is_causal=True)
    assert FUSED in _calls(True, None, 0.0, True)  # likewise, by place
    monkeypatch.setattr(lit_attention, "MOST", 2 * 2 * 6 * 6 - 1)
    assert FUSED in _calls(True)  # too many probabilities to keep
