"""Attention of samples of unequal length, behind each other."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sttabt.engine.attention import _add_to_scores, _append_to_keys, attend_weighted
from sttabt.engine.packed import Packing, _attend_padded, _attend_ragged, _attend_segments, attend_packed

READ, WRITE = [20, 7, 3], [9, 2, 1]


def packed(lengths: list[int], device: str = "cpu") -> Packing:
    return Packing.of(torch.tensor(lengths, device=device), lengths)


def padded(lengths: list[int], rows: int, longest: int) -> Packing:
    """As the host knows it where it did not ask: with rows and places to spare."""
    return Packing(torch.tensor(lengths), sum(lengths) + rows, max(lengths) + longest)


@pytest.mark.parametrize(
    "packing", [packed(READ), padded(READ, 7, 0), padded(READ, 0, 3), padded(READ, 30, 0), padded([20, 20], 0, 0)]
)
def test_rows_find_their_places_and_come_back(packing: Packing) -> None:
    rows = torch.randn(packing.rows, 4)
    apart = packing.unpack(rows)
    assert apart.shape == (len(packing.each), packing.longest, 4)
    for sample, own in enumerate(rows[: int(packing.each.sum())].split(packing.each.tolist())):
        assert torch.equal(apart[sample, : len(own)], own) and not apart[sample, len(own) :].any()
    assert torch.equal(packing.pack(apart)[: packing.each.sum()], rows[: packing.each.sum()])


@pytest.mark.parametrize("rows", [0, 5])
def test_a_prefix_is_the_first_rows_of_each_sample(rows: int) -> None:
    read, write = padded(READ, rows, 0), padded(WRITE, rows, 1)
    found = read.prefix(write)
    assert found[: sum(WRITE)].tolist() == [*range(9), 20, 21, 27]
    assert found.shape == (sum(WRITE) + rows,) and int(found.max()) < read.rows
    assert int(padded([5, 1], 0, 0).prefix(padded([1, 1], 9, 4)).max()) < 6


def test_padding_rows_change_nothing_and_neither_does_the_way() -> None:
    query, key, value = torch.randn(12, 24), torch.randn(30, 24), torch.randn(30, 24)
    expected = _attend_segments(query, key, value, 3, READ, WRITE, 0.0)
    more = [torch.cat([x, torch.full((3, 24), torch.nan)]) for x in (query, key, value)]
    for read, write, given in (
        (packed(READ), packed(WRITE), (query, key, value)),
        (padded(READ, 3, 2), padded(WRITE, 3, 1), more),
    ):
        found = _attend_padded(*given, 3, read, write, 0.0)
        torch.testing.assert_close(found[:12], expected, rtol=1e-5, atol=1e-5)


def test_ragged_attention_gives_torch_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own function runs on CUDA alone: here a slow one of the same signature stands for it."""

    def varlen_attn(q: Tensor, k: Tensor, v: Tensor, written: Tensor, seen: Tensor, most_q: int, most_k: int) -> Tensor:
        assert written.dtype == seen.dtype == torch.int32 and (most_q, most_k) == (max(WRITE), max(READ))
        found = []
        for sample in range(len(written) - 1):
            rows, keys = slice(*written[sample : sample + 2]), slice(*seen[sample : sample + 2])
            one = (rows_of.transpose(0, 1) for rows_of in (q[rows], k[keys], v[keys]))
            found.append(F.scaled_dot_product_attention(*one).transpose(0, 1))
        return torch.cat(found)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    query, key, value = torch.randn(12, 24), torch.randn(30, 24), torch.randn(30, 24)
    expected = attend_packed(query, key, value, 3, packed(READ), packed(WRITE))
    torch.testing.assert_close(
        _attend_ragged(query, key, value, 3, packed(READ), packed(WRITE)), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.gpu
def test_ragged_attention_on_cuda() -> None:
    query, key, value = (torch.randn(n, 192, device="cuda", dtype=torch.bfloat16) for n in (12, 30, 30))
    read, write = packed(READ, "cuda"), packed(WRITE, "cuda")
    expected = attend_packed(query.float(), key.float(), value.float(), 3, read, write)
    found = attend_packed(query, key, value, 3, read, write)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("way", [_add_to_scores, _append_to_keys])
def test_weighted_attention_is_that_of_probabilities_multiplied_and_renormalised(way: Callable[..., Tensor]) -> None:
    """With its gradients, of the weight too; each device has one of the ways."""
    query, key, value = (torch.randn(2, n, 12, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7))
    weight = torch.rand(2, 7, dtype=torch.float64).add(0.1).requires_grad_()
    q, k, v = (x.unflatten(-1, (3, 4)).transpose(1, 2) for x in (query, key, value))
    weighed = (q @ k.mT / 2).softmax(-1) * weight[:, None, None]
    expected = ((weighed / weighed.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(2)
    found = way(query, key, value, 3, weight.log())
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(x.square().sum(), (query, key, value, weight)) for x in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weighted_attention_on_cuda_is_fused(dtype: torch.dtype) -> None:
    """With gradients, in one of torch's fused kernels, which take no heads of width 65."""
    query, key, value = (torch.randn(4, 197, 384, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
    weight = torch.rand(4, 197, device="cuda").add(0.1).log().requires_grad_()
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        found = attend_weighted(query, key, value, 6, weight)
        found.float().square().sum().backward()
    expected = attend_weighted(*(x.detach().cpu().float() for x in (query, key, value)), 6, weight.detach().cpu())
    torch.testing.assert_close(found.detach().cpu().float(), expected, rtol=2e-2, atol=2e-2)
    assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any()


def test_boundaries_worked_out_together_are_those_worked_out_alone() -> None:
    """With rows of padding behind the last sample, and a boundary that has none."""
    counts = torch.tensor([[5, 4, 1], [3, 3, 1], [7, 2, 1]])
    rows, longest = (20, 12, 3), (8, 4, 1)
    together = Packing.of_boundaries(counts, rows, longest)
    alone = [Packing(*each) for each in zip(counts.unbind(1), rows, longest, strict=True)]
    for found, expected in zip(together, alone, strict=True):
        assert (found.rows, found.longest) == (expected.rows, expected.longest)
        assert torch.equal(found.each, expected.each)
        assert torch.equal(found.starts, expected.starts) and found.starts.dtype == expected.starts.dtype
        for one, other in zip(found.places, expected.places, strict=True):
            assert torch.equal(one, other) and one.dtype == other.dtype
    for (read, write), (one, other) in zip(pairwise(together), pairwise(alone), strict=True):
        assert torch.equal(read.prefix(write), one.prefix(other))
