"""Kernels for CPUs: against slow references in double precision, on every instruction set, and switched off."""

import gc
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import make_backbone
from sttabt import native
from sttabt.core.backtrack import backtrack
from sttabt.core.concrete import concrete_plan, weighted_percentile
from sttabt.core.trace import AttentionTrace
from sttabt.engine.attention import attend, attend_weighted
from sttabt.engine.dense import trace_attention
from sttabt.engine.packed import _attend_ragged, attend_packed, padding_macs
from sttabt.models.approximate import ApproximateNetwork
from sttabt.native import product

pytestmark = pytest.mark.skipif(
    not native.loaded() and shutil.which("c++") is None, reason="built without a C++ compiler: there are no kernels"
)
LANES = (4, 8, 16)


def reference_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, log_weight: Tensor | None) -> Tensor:
    """One sample, (n, D) and (m, D), in double precision."""
    q, k, v = (rows.double().unflatten(-1, (heads, -1)).transpose(0, 1) for rows in (query, key, value))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if log_weight is not None:
        scores = scores + log_weight.double()
    return (torch.softmax(scores, -1) @ v).transpose(0, 1).flatten(1)


def test_there_are_kernels_where_there_is_a_compiler() -> None:
    assert native.loaded(), "run `pip install --editable .` again: sttabt.native._kernels is missing"


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("width", [1, 3, 8, 16, 20, 32, 64, 80])
@pytest.mark.parametrize("weighted", [False, True])
def test_attention_of_ragged_samples(lanes: int, width: int, weighted: bool) -> None:
    torch.manual_seed(width)
    heads, read, write = 3, [1, 37, 5, 200], [1, 7, 0, 200]
    # Keys and values are slices of a fused projection: rows are not dense.
    query = torch.randn(sum(write), heads * width)
    _, key, value = torch.randn(sum(read), 3 * heads * width).split(heads * width, -1)
    log_weight = torch.randn(sum(read)) if weighted else None
    with native.limited_to(lanes) as used:
        found = native.attend(query, key, value, heads, read, write, log_weight)
    assert used <= lanes
    weights = [None] * len(read) if log_weight is None else log_weight.split(read)
    samples = zip(query.split(write), key.split(read), value.split(read), weights, strict=True)
    expected = torch.cat([reference_attention(q, k, v, heads, weight) for q, k, v, weight in samples])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6)


def test_attention_of_large_scores_and_far_weights_is_finite() -> None:
    torch.manual_seed(0)
    query, key, value = 8 * torch.randn(3, 50, 32)
    weight = torch.zeros(50)
    weight[10:] = -90.0  # nearly masked
    found = native.attend(query, key, value, 2, [50], [50], weight)
    torch.testing.assert_close(found.double(), reference_attention(query, key, value, 2, weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("standing", [False, True])
def test_sums_over_rows(lanes: int, padded: bool, standing: bool) -> None:
    torch.manual_seed(1)
    batch, heads, tokens, width = 4, 3, 53, 12
    queries, keys, _ = torch.randn(batch, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
    real = torch.arange(tokens) < torch.tensor([[53], [20], [1], [52]]) if padded else torch.ones(batch, tokens) > 0
    weight = torch.rand(batch, tokens) * real * (torch.rand(batch, tokens) > 0.4)
    with native.limited_to(lanes):
        found = native.sum_rows(queries, keys, weight, real if padded else None, 0.3, 0.1, standing)
    heavy = torch.where(weight > 0.1, weight, 0).double()
    if standing:
        halves = weighted_percentile(queries.double(), keys.double(), heavy, real if padded else None)
        expected = (2 * halves - heavy.sum(-1, keepdim=True)) * real
    else:
        scores = (0.3 * queries.double() @ keys.double().transpose(-1, -2)).masked_fill(
            ~real[:, None, None], -torch.inf
        )
        expected = (heavy[:, None, None] @ torch.softmax(scores, -1))[:, :, 0].mean(1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def reference_layer(
    rows: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: bool, norm: native.Norm | None
) -> Tensor:
    """In double precision."""
    rows = rows.double()
    if norm is not None:
        rows = F.layer_norm(rows, rows.shape[-1:], norm.weight.double(), norm.bias.double(), norm.epsilon)
    expected = F.linear(rows, weight.double(), None if bias is None else bias.double())
    expected = F.gelu(expected) if gelu else expected
    return expected if residual is None else expected + residual


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("outputs", "depth"), [(37, 24), (16, 5), (48, 24), (96, 40), (240, 48), (64, 1500)])
@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 13, 200])
def test_a_layer_and_what_stands_around_it(lanes: int, outputs: int, depth: int, count: int) -> None:
    torch.manual_seed(count)
    weight, norm = torch.randn(outputs, depth) / depth**0.5, native.Norm(torch.rand(depth), torch.randn(depth), 1e-6)
    rows, bias = 3 + torch.randn(count, 2 * depth)[:, :depth], torch.randn(outputs)  # rows are not dense
    residual = torch.randn(outputs, count).t()
    for around in ({}, {"bias": bias}, {"residual": residual}, {"bias": bias, "gelu": True}, {"norm": norm},
                   {"bias": bias, "gelu": True, "norm": norm, "residual": residual}):  # fmt: skip
        given = {"bias": None, "residual": None, "gelu": False, "norm": None} | around
        with native.limited_to(lanes):
            found = native.linear(rows, weight, **given)
        torch.testing.assert_close(found.double(), reference_layer(rows, weight, **given), rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("part", [slice(16, None), slice(16), slice(32, 80), slice(48, 144), slice(7, 50)])
def test_parts_of_a_layer(lanes: int, part: slice) -> None:
    torch.manual_seed(5)
    rows, weight, bias = torch.randn(2, 9, 40), torch.randn(144, 40), torch.randn(144)
    with native.limited_to(lanes):
        found = native.linear(rows, weight, bias, part)
    expected = reference_layer(rows, weight[part], bias[part], None, False, None)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_row_is_the_same_whoever_stands_beside_it() -> None:
    torch.manual_seed(6)
    rows, weight = torch.randn(100, 384), torch.randn(384, 384)
    whole = native.linear(rows, weight, None)
    for count in (1, 4, 6, 50):
        assert torch.equal(native.linear(rows[:count], weight, None), whole[:count])


def change_in_place(weight: torch.nn.Parameter) -> None:
    with torch.no_grad():
        weight += 1


def change_what_is_behind(weight: torch.nn.Parameter) -> None:
    weight.data *= 2


def change_for_another(weight: torch.nn.Parameter) -> None:
    weight.data = torch.randn(weight.shape)


@pytest.mark.parametrize("change", [change_in_place, change_what_is_behind, change_for_another])
def test_a_changed_weight_is_packed_again(change: Callable[[torch.nn.Parameter], None]) -> None:
    torch.manual_seed(7)
    layer, rows = torch.nn.Linear(32, 64), torch.randn(5, 32)
    with torch.no_grad():
        native.linear(rows, layer.weight, layer.bias)
        change(layer.weight)
        torch.testing.assert_close(native.linear(rows, layer.weight, layer.bias), layer(rows), rtol=1e-5, atol=1e-5)


def test_a_packed_weight_lives_as_long_as_the_weight() -> None:
    before, layer = len(product._packings), torch.nn.Linear(32, 64)
    with torch.no_grad():
        native.linear(torch.randn(5, 32), layer.weight, layer.bias)
        assert len(product._packings) == before + 1
    del layer
    gc.collect()
    assert len(product._packings) <= before


def test_a_weight_of_inference_mode_is_computed_by_torch() -> None:
    with torch.inference_mode():
        rows, weight = torch.randn(5, 32), torch.randn(64, 32)
        for _ in range(2):
            torch.testing.assert_close(native.linear(rows, weight, None), rows @ weight.t(), rtol=1e-5, atol=1e-5)
            weight += 1


def test_only_what_kernels_can_compute_fits() -> None:
    x = torch.randn(4, 4)
    assert native.fits(x)
    assert not native.fits(x.double()) and not native.fits(x, x.bfloat16())
    learning = x.clone().requires_grad_()
    assert not native.fits(learning)
    with torch.no_grad():
        assert native.fits(learning)
    with torch.autocast("cpu", torch.bfloat16):
        assert not native.fits(x)
    with native.switched_off():
        assert not native.fits(x)


def test_gradients_go_through_torch() -> None:
    leaf = torch.randn(3, 2, 5, 8, requires_grad=True)
    query, key, value = leaf
    attend(query, key, value, 2).sum().backward()
    assert leaf.grad is not None and (leaf.grad[2] != 0).all()


def test_a_recording_holds_torchs_operations() -> None:
    def layer(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, 2)

    with torch.no_grad():
        first, second = torch.randn(2, 3, 2, 5, 8)
        traced = torch.jit.trace(layer, tuple(first))
        torch.testing.assert_close(traced(*second), layer(*second), rtol=1e-5, atol=1e-6)


def test_engines_compute_the_same_with_and_without() -> None:
    torch.manual_seed(3)
    query, key, value, log_weight = *torch.randn(3, 4, 21, 24), torch.randn(4, 21)
    ragged = torch.randn(3, 30, 24)

    def everything() -> list[Tensor]:
        return [
            attend(query[:, :9], key, value, 3),
            attend_weighted(query, key, value, 3, log_weight),
            attend_packed(ragged[0][:12], ragged[1], ragged[2], 3, [20, 7, 3], [9, 2, 1]),
        ]

    found = everything()
    assert padding_macs([[20, 9], [7, 2]], 24, torch.device("cpu")) == 0
    with native.switched_off():
        for own, other in zip(found, everything(), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
        assert padding_macs([[20, 9], [7, 2]], 24, torch.device("cpu")) > 0


@pytest.mark.parametrize("seed", range(5))
def test_plans_are_those_of_the_reference(seed: int) -> None:
    """Top-k to the token; hard concrete masks on at least 99.9 % of them, here on every one but ties."""
    torch.manual_seed(seed)
    base = make_backbone("digits")
    network = ApproximateNetwork(base, 4).eval()
    images = torch.randn(16, 1, 28, 28)
    with torch.no_grad():
        trace = trace_attention(network.backbone, images)
        # Sharper attention than random weights give.
        trace = AttentionTrace(tuple(6 * q for q in trace.queries), trace.keys, trace.real, trace.scale, trace.may_pad)
        logits = torch.linspace(-1.5, 0.5, trace.layers)
        with native.switched_off():
            precise = AttentionTrace(
                tuple(q.double() for q in trace.queries), tuple(k.double() for k in trace.keys), trace.real, trace.scale
            )
            top, mask = backtrack(precise, 0.4).plan.alive, concrete_plan(precise, logits.double()).plan.harden().alive
        assert torch.equal(backtrack(trace, 0.4).plan.alive, top)
        found = concrete_plan(trace, logits, negligible=1e-5).plan.harden().alive
    assert (found == mask).double().mean() >= 0.999
    assert 0.05 < mask.double().mean() < 0.95, "masks that decide nothing test nothing"


def test_a_compiled_graph_holds_the_kernels() -> None:
    torch.manual_seed(4)
    query, key, value = torch.randn(3, 2, 13, 16)
    compiled = torch.compile(lambda q, k, v: attend(q, k, v, 2) * 2, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(query, key, value), attend(query, key, value, 2) * 2)


READ, WRITE = [20, 7, 3], [9, 2, 1]


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
    expected = attend_packed(query, key, value, 3, READ, WRITE)
    torch.testing.assert_close(_attend_ragged(query, key, value, 3, READ, WRITE), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has ragged flash attention on CUDA alone")
def test_ragged_attention_on_cuda() -> None:
    query, key, value = (torch.randn(n, 192, device="cuda", dtype=torch.bfloat16) for n in (12, 30, 30))
    expected = attend_packed(query.float(), key.float(), value.float(), 3, READ, WRITE)
    found = attend_packed(query, key, value, 3, READ, WRITE)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
