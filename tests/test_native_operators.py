"""The operators against torch's own operations: every instruction set that the machine has, and NaN as torch has it."""

import copy
import os
import pickle
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference import merged_sums
from sttabt.core.backtrack import DYNAMIC_RANGE, DYNAMIC_SHARE, backtrack, backtrack_fixed
from sttabt.core.concrete import concrete_plan, weighted_percentile
from sttabt.core.merge import match_tokens, pairs_to_merge
from sttabt.core.received import AboveThreshold, MostReceived
from sttabt.core.trace import AttentionTrace
from sttabt.native import cpu, operators
from sttabt.native.packed import ACTIVATIONS, LayerWeights, Linear, Norm, PackedEncoder, pack_encoder, unpack_encoder

pytestmark = pytest.mark.skipif(
    cpu.problem() == cpu.MISSING, reason="built without a C++ compiler: there are no kernels"
)
ops = torch.ops.sttabt
VECTORS = (4, 8, 16)
COMPUTED: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
SIZES = [(48, 96, 3), (12, 48, 3), (20, 33, 5), (96, 384, 6), (64, 200, 2)]  # width, feed-forward width, heads


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=VECTORS)
def vectors(request: pytest.FixtureRequest) -> Iterator[int]:
    """Vectors of so many floats in use; skipped by name where the machine has none."""
    with cpu.limited_to(request.param) as used:
        if used != request.param:
            pytest.skip(f"this machine has no vectors of {request.param} floats: {used} at the most")
        yield used


def make_layers(width: int, wide: int, count: int = 3, bias: bool = True, seed: int = 0) -> list[LayerWeights]:
    torch.manual_seed(seed)

    def linear(outputs: int, inputs: int) -> Linear:
        return Linear(torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs) if bias else None)

    def norm() -> Norm:
        return Norm(torch.rand(width) + 0.5, torch.randn(width) if bias else None, 1e-5)

    return [
        LayerWeights(
            *(linear(width, width) for _ in range(4)), linear(wide, width), linear(width, wide), norm(), norm()
        )
        for _ in range(count)
    ]


def norm_of(rows: Tensor, norm: Norm) -> Tensor:
    return F.layer_norm(rows, rows.shape[-1:], *(None if x is None else x.to(rows.dtype) for x in norm[:2]), norm[2])


def linear_of(rows: Tensor, linear: Linear) -> Tensor:
    return F.linear(rows, *(None if x is None else x.to(rows.dtype) for x in linear))


def qkv_of(layer: LayerWeights, x: Tensor, norm_first: bool) -> list[Tensor]:
    rows = norm_of(x, layer.first) if norm_first else x
    return [linear_of(rows, part) for part in (layer.query, layer.key, layer.value)]


def attention_of(query: Tensor, key: Tensor, value: Tensor, heads: int, log_weight: Tensor | None = None) -> Tensor:
    """One sample, (n, D) and (m, D)."""
    q, k, v = (rows.unflatten(-1, (heads, -1)).transpose(0, 1) for rows in (query, key, value))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores if log_weight is None else scores + log_weight
    return (torch.softmax(scores, -1) @ v).transpose(0, 1).flatten(1)


def projected(layer: LayerWeights, x: Tensor, attended: Tensor, norm_first: bool) -> Tensor:
    x = x + linear_of(attended, layer.join)
    return x if norm_first else norm_of(x, layer.first)


def fed_forward(layer: LayerWeights, x: Tensor, norm_first: bool, activation: str = "gelu") -> Tensor:
    rows = norm_of(x, layer.second) if norm_first else x
    found = x + linear_of(COMPUTED[activation](linear_of(rows, layer.widen)), layer.narrow)
    return found if norm_first else norm_of(found, layer.second)


def reference(
    layers: Sequence[LayerWeights], x: Tensor, heads: int, counts: Tensor, norm_first: bool, activation: str = "gelu"
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """What the last layer writes, and queries and keys by layer, sample after sample."""
    outs, queries, keys = [x[:0]], [[x[:0]] for _ in layers], [[x[:0]] for _ in layers]
    for sample, rows in enumerate(x.split(counts[0].tolist())):
        for number, layer in enumerate(layers):
            kept = int(counts[number + 1, sample])
            query, key, value = qkv_of(layer, rows, norm_first)
            queries[number].append(query)
            keys[number].append(key)
            attended = attention_of(query[:kept], key, value, heads)
            rows = fed_forward(layer, projected(layer, rows[:kept], attended, norm_first), norm_first, activation)
        outs.append(rows)
    return torch.cat(outs), [torch.cat(rows) for rows in queries], [torch.cat(rows) for rows in keys]


def assert_like(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Close where the reference is finite, NaN where it is NaN, not finite where it is infinite."""
    finite = expected.isfinite()
    assert found.isnan()[expected.isnan()].all(), "NaN was lost"
    assert not found.isfinite()[~finite].any()
    torch.testing.assert_close(
        found[finite].double(), expected[finite].double(), rtol=tolerance, atol=tolerance, equal_nan=False
    )


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


COUNTS = {
    "slices": [[40, 7, 20]] * 2 + [[1, 1, 1]],
    "ragged": [[40, 7, 20], [30, 7, 20], [5, 0, 1]],
    "many samples": [[9] * 60, [4] * 60, [2] * 60],
    "more rows than a feed-forward takes at a time": [[600], [550], [1]],
    "no samples": [[], [], []],
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(("width", "wide", "heads"), SIZES)
def test_an_encoder(vectors: int, threads: int, width: int, wide: int, heads: int, name: str) -> None:
    norm_first = (width + len(name)) % 2 == 0
    layers = make_layers(width, wide, 2, bias=norm_first)
    packed, counts = pack_encoder(layers, heads, norm_first), torch.tensor(COUNTS[name], dtype=torch.int64)
    x = torch.randn(int(counts[0].sum()), width)
    found = ops.encode(x, *packed_pair(packed), counts, int(counts[-1].sum()))
    expected, _, _ = reference(layers, x, heads, counts, norm_first)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize(("width", "wide", "heads"), SIZES)
def test_a_trace(vectors: int, threads: int, width: int, wide: int, heads: int, norm_first: bool) -> None:
    layers = make_layers(width, wide)
    packed, counts = pack_encoder(layers, heads, norm_first), torch.tensor([40, 7, 20, 0])
    x = torch.randn(67, width)
    kept = ops.trace(x, *packed_pair(packed), counts)
    _, queries, keys = reference(layers, x, heads, counts.expand(4, 4), norm_first)
    torch.testing.assert_close(kept[:, :, 0, :width], torch.stack(queries), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept[:, :, 1, :width], torch.stack(keys), rtol=1e-4, atol=1e-4)


def packed_pair(packed: PackedEncoder) -> tuple[Tensor, list[int]]:
    return packed.buffer, list(packed.sizes)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize(("width", "wide", "heads"), SIZES)
def test_a_layer_part_by_part(vectors: int, width: int, wide: int, heads: int, norm_first: bool) -> None:
    layers = make_layers(width, wide)
    pair = packed_pair(pack_encoder(layers, heads, norm_first))
    for count in (0, 1, 5, 600):
        x, attended = torch.randn(2, count, width)
        expected = torch.stack(qkv_of(layers[1], x, norm_first), 1)
        for part, wanted in enumerate((expected, expected[:, :1], expected[:, 1:])):
            found = ops.layer_inputs(x, *pair, 1, part)[..., :width]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        found = ops.layer_project(x, attended, *pair, 2)
        torch.testing.assert_close(found, projected(layers[2], x, attended, norm_first), rtol=1e-4, atol=1e-4)
        expected = fed_forward(layers[2], projected(layers[2], x, attended, norm_first), norm_first)
        torch.testing.assert_close(ops.layer_finish(x, attended, *pair, 2), expected, rtol=1e-4, atol=1e-4)
        found = ops.layer_feed_forward(x, *pair, 0)
        torch.testing.assert_close(found, fed_forward(layers[0], x, norm_first), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize(("width", "wide", "heads"), SIZES)
def test_every_activation(
    vectors: int, threads: int, width: int, wide: int, heads: int, norm_first: bool, activation: str
) -> None:
    layers = make_layers(width, wide)
    pair = packed_pair(pack_encoder(layers, heads, norm_first, activation))
    for count in (1, 5, 600):
        x, attended = torch.randn(2, count, width)
        expected = fed_forward(layers[2], projected(layers[2], x, attended, norm_first), norm_first, activation)
        torch.testing.assert_close(ops.layer_finish(x, attended, *pair, 2), expected, rtol=1e-4, atol=1e-4)


def spoilt(x: Tensor, what: float) -> Tensor:
    """A copy with one number replaced."""
    x = x.clone()
    x.view(-1)[x.numel() // 2 + 1] = what
    return x


WRONG = (float("nan"), float("inf"), float("-inf"))


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("operand", range(4))
def test_attention_hands_on_what_is_not_finite(vectors: int, operand: int, what: float) -> None:
    torch.manual_seed(0)
    for width, heads in ((16, 3), (5, 2), (64, 1)):
        rows = [*torch.randn(3, 21, width * heads), torch.randn(21)]
        rows[operand] = spoilt(rows[operand], what)
        counts = torch.tensor([21])
        found = ops.attend_ragged(*rows[:3], heads, counts, counts, rows[3])
        assert_like(found, attention_of(*rows[:3], heads, rows[3]))


def test_attention_to_nothing_is_nan(vectors: int) -> None:
    rows, counts = torch.randn(3, 5, 16), torch.tensor([5])
    assert ops.attend_ragged(*rows, 1, counts, counts, torch.full((5,), -torch.inf)).isnan().all()


@pytest.mark.parametrize("width", [1, 3, 16, 20, 64, 80])
@pytest.mark.parametrize("weighted", [False, True])
def test_attention_of_ragged_samples(vectors: int, threads: int, width: int, weighted: bool) -> None:
    torch.manual_seed(width)
    heads, reads, writes = 3, torch.tensor([1, 37, 5, 100]), torch.tensor([1, 7, 0, 100])
    # Keys and values are slices of a fused projection: rows are not dense.
    query = torch.randn(int(writes.sum()), heads * width)
    _, key, value = torch.randn(int(reads.sum()), 3 * heads * width).split(heads * width, -1)
    weight = torch.randn(len(key)) if weighted else None
    found = ops.attend_ragged(query, key, value, heads, reads, writes, weight)
    weights = [None] * 4 if weight is None else [own.double() for own in weight.split(reads.tolist())]
    samples = (rows.double().split(counts.tolist()) for rows, counts in ((query, writes), (key, reads), (value, reads)))
    expected = [attention_of(q, k, v, heads, own) for q, k, v, own in zip(*samples, weights, strict=True)]
    torch.testing.assert_close(found.double(), torch.cat(expected), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("norm_first", [True, False])
def test_attention_of_a_layer(vectors: int, threads: int, norm_first: bool) -> None:
    for width, wide, heads in SIZES:
        layers = make_layers(width, wide)
        pair, counts = packed_pair(pack_encoder(layers, heads, norm_first)), torch.tensor([1, 37, 0, 5, 50])
        x = torch.randn(93, width)
        attended, received = ops.layer_attend(x, *pair, 1, counts)
        query, key, value = (rows.double() for rows in qkv_of(layers[1], x, norm_first))
        expected, sums = [], []
        for rows in torch.arange(93).split(counts.tolist()):
            expected.append(attention_of(query[rows], key[rows], value[rows], heads))
            q, k = (part[rows].unflatten(1, (heads, -1)).transpose(0, 1) for part in (query, key))
            sums.append(torch.softmax(q @ k.mT / (width // heads) ** 0.5, -1).mean((0, 1)))
        torch.testing.assert_close(attended.double(), torch.cat(expected), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(received.double(), torch.cat(sums), rtol=1e-4, atol=1e-5)


def sums_of(
    queries: Tensor, keys: Tensor, weight: Tensor, real: Tensor | None, scale: float, least: float, standard: bool
) -> Tensor:
    """In double precision."""
    queries, keys, weight = queries.double(), keys.double(), torch.where(weight <= least, 0, weight).double()
    present = torch.ones_like(weight) > 0 if real is None else real
    if standard:
        return (2 * weighted_percentile(queries, keys, weight, real) - weight.sum(-1, keepdim=True)) * present
    scores = (scale * queries @ keys.transpose(-1, -2)).masked_fill(~present[:, None, None], -torch.inf)
    rows = torch.where(weight[:, None, :, None] == 0, 0, torch.softmax(scores, -1))  # a row of weight 0 is not read
    return (weight[:, None, None] @ rows)[:, :, 0].mean(1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("standard", [False, True])
def test_sums_over_rows(vectors: int, threads: int, padded: bool, standard: bool) -> None:
    torch.manual_seed(1)
    batch, heads, tokens, width = 4, 3, 53, 12
    queries, keys, _ = torch.randn(batch, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
    real = torch.arange(tokens) < torch.tensor([[53], [20], [1], [52]]) if padded else torch.ones(batch, tokens) > 0
    weight = torch.rand(batch, tokens) * real * (torch.rand(batch, tokens) > 0.4)
    given = queries, keys, weight, real if padded else None, 0.3, 0.1, standard
    torch.testing.assert_close(ops.column_sums(*given).double(), sums_of(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("operand", range(3))
@pytest.mark.parametrize("standard", [False, True])
def test_sums_over_rows_hand_on_what_is_not_finite(vectors: int, operand: int, standard: bool, what: float) -> None:
    torch.manual_seed(0)
    given = [torch.randn(2, 3, 21, 8), torch.randn(2, 3, 21, 8), torch.rand(2, 21)]
    given[operand] = spoilt(given[operand], what)
    found = ops.column_sums(*given, None, 0.3, 0.1, standard)
    expected = sums_of(*given, None, 0.3, 0.1, standard)
    if not standard or what != what or (operand == 2 and what < 0):
        assert_like(found, expected)
    else:  # an infinite score has no place among standardised ones: the formulas need not fail alike
        assert_like(found[:1], expected[:1])
        assert not found[1].isfinite().all()


PLACES = [("x", None)] + [(name, part) for name in LayerWeights._fields for part in (0, 1)]


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_hands_on_what_is_not_finite(vectors: int, norm_first: bool, what: float) -> None:
    """A number in each operand: rows, weights, biases, norms."""
    for width, wide, heads in ((48, 96, 3), (12, 40, 3)):
        for name, part in PLACES:
            layers, x, counts = make_layers(width, wide, 2), torch.randn(12, width), torch.tensor([[12], [9], [4]])
            if part is None:
                x = spoilt(x, what)
            else:
                own = list(getattr(layers[0], name))
                own[part] = spoilt(own[part], what)
                layers[0] = layers[0]._replace(**{name: type(getattr(layers[0], name))(*own)})
            found = ops.encode(x, *packed_pair(pack_encoder(layers, heads, norm_first)), counts, 4)
            expected, _, _ = reference(layers, x, heads, counts, norm_first)
            assert found.isnan()[expected.isnan()].all(), (name, part)
            assert_like(found, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_what_is_not_finite_and_of_far_numbers(vectors: int, activation: str) -> None:
    """Weights that are the identity show the activation alone."""
    one, zero = Linear(torch.eye(16), None), Linear(torch.zeros(16, 16), None)
    layer = LayerWeights(zero, zero, zero, zero, one, one, Norm(None, None, 1e-5), Norm(None, None, 1e-5))
    x = torch.tensor([*WRONG, 0.0, -0.0, 1e4, -1e4, -5.3, -5.5, -20, -60, 5, 1e30, -1e30, 1, -1, 2])
    for value in x:
        bias = torch.zeros(16)
        bias[3] = value
        packed = pack_encoder([layer._replace(widen=Linear(torch.zeros(16, 16), bias))], 1, True, activation)
        found = ops.layer_feed_forward(torch.zeros(1, 16), *packed_pair(packed), 0)
        assert_like(found[0, 3], COMPUTED[activation](value), 1e-5)


def trace_of(queries: Tensor, keys: Tensor, heads: int, real: Tensor) -> AttentionTrace:
    """Of rows (L, T, D), in double precision, padding filled with zeros."""

    def apart(rows: Tensor) -> Tensor:
        padded = torch.zeros(*real.shape, rows.shape[-1], dtype=torch.double)
        padded[real] = rows.double()
        return padded.unflatten(-1, (heads, -1)).transpose(1, 2)

    scale = (queries.shape[-1] // heads) ** -0.5
    return AttentionTrace(tuple(map(apart, queries)), tuple(map(apart, keys)), real, scale)


def traced(width: int, heads: int, seed: int) -> tuple[Tensor, PackedEncoder, Tensor, AttentionTrace]:
    """Embedded rows, the network, counts, its trace, and that for the reference; sharper than random weights give."""
    layers = make_layers(width, 2 * width, 4, seed=seed)
    layers = [layer._replace(query=Linear(4 * layer.query.weight, layer.query.bias)) for layer in layers]
    packed, counts = pack_encoder(layers, heads, True), torch.tensor([50, 17, 3, 50])
    x = torch.randn(120, width)
    kept = ops.trace(x, *packed_pair(packed), counts)
    real = torch.arange(50) < counts[:, None]
    return x, packed, counts, trace_of(kept[:, :, 0, :width], kept[:, :, 1, :width], heads, real)


KEEPS = [0.4, [0.9, 0.6, 0.3, 0.1], [40, 30, 9, 2], None]


@pytest.mark.parametrize("keep", KEEPS, ids=str)
@pytest.mark.parametrize("outputs", [1, 2])
def test_plans_of_back_tracking_are_those_of_the_reference(
    vectors: int, threads: int, keep: float | list | None, outputs: int
) -> None:
    for seed, (width, heads) in enumerate([(48, 3), (12, 3), (64, 2)]):
        x, packed, counts, precise = traced(width, heads, seed)
        alive = backtrack(precise, keep, 0.2, outputs).plan.alive
        as_counts = isinstance(keep, list) and isinstance(keep[0], int)
        shares = [] if keep is None else [float(own) for own in (keep if isinstance(keep, list) else [keep] * 4)]
        dynamic = [DYNAMIC_SHARE, *DYNAMIC_RANGE] if keep is None else []
        lifetime, scored = ops.plan_topk(
            x, *packed_pair(packed), counts, 50, outputs, 0.2, shares, as_counts, dynamic, False
        )
        assert torch.equal(lifetime, alive.sum(1))
        assert torch.equal(scored, alive[:, 1:].sum(-1))


def test_plans_of_the_same_number_of_tokens_are_those_of_the_reference(vectors: int) -> None:
    x, packed, _, _ = traced(48, 3, 0)
    counts, numbers, x = torch.tensor([30, 30]), [20, 9, 5, 2], x[:60]
    kept = ops.trace(x, *packed_pair(packed), counts)
    precise = trace_of(kept[:, :, 0, :48], kept[:, :, 1, :48], 3, torch.ones(2, 30) > 0)
    order = backtrack_fixed(precise, [*numbers, 1], 0.2)
    lifetime, _ = ops.plan_topk(x, *packed_pair(packed), counts, 30, 1, 0.2, numbers, True, [], True)
    for boundary, number in enumerate([*numbers, 1]):
        assert ((lifetime > boundary).sum(1) == number).all()
        assert (lifetime > boundary).gather(1, order[:, :number]).all()


def test_equal_tokens_are_kept_from_the_first_on(vectors: int) -> None:
    packed = pack_encoder(make_layers(48, 96), 3, True)
    x = torch.randn(1, 48).expand(40, 48).contiguous()
    lifetime, _ = ops.plan_topk(
        x, *packed_pair(packed), torch.tensor([40]), 40, 1, 0.1, [0.75, 0.5, 0.25], False, [], False
    )
    assert lifetime[0].tolist() == [4] + [3] * 9 + [2] * 10 + [1] * 10 + [0] * 10


@pytest.mark.parametrize("negligible", [0.0, 1e-5])
@pytest.mark.parametrize("seed", range(3))
def test_plans_of_concrete_masks_are_those_of_the_reference(
    vectors: int, threads: int, seed: int, negligible: float
) -> None:
    """On all tokens but those that stand at the threshold; here on each."""
    width, heads = [(48, 3), (12, 3), (64, 2)][seed]
    x, packed, counts, precise = traced(width, heads, seed)
    p_logit = torch.linspace(-3.0, -1.0, 4)
    mask = concrete_plan(precise, p_logit.double(), 0.1, 0.1).plan.alive
    lifetime, scored = ops.plan_concrete(x, *packed_pair(packed), counts, 50, 1, p_logit, 0.1, 0.1, negligible)
    clear = ((mask - 0.5).abs() > 0.02).all(1)
    assert clear.double().mean() > 0.97
    assert torch.equal(lifetime[clear], (mask >= 0.5).sum(1)[clear])
    assert (scored[:, -1] == 1).all() and (scored <= counts[:, None]).all()
    assert 0.05 < (lifetime[0] > 1).double().mean() < 0.95, "masks that decide nothing test nothing"


def test_a_plan_of_nan_is_a_plan(vectors: int) -> None:
    x, packed, counts, _ = traced(48, 3, 0)
    pair = packed_pair(packed)
    for plan in (
        ops.plan_topk(x * torch.nan, *pair, counts, 50, 1, 0.1, [0.5] * 4, False, [], False),
        ops.plan_concrete(x * torch.nan, *pair, counts, 50, 1, torch.zeros(4), 0.1, 0.1, 0.0),
    ):
        lifetime = plan[0]
        assert (lifetime[:, 0] == 5).all() and (lifetime[1, 17:] == 0).all() and lifetime.max() == 5


def decided(
    layers: Sequence[LayerWeights], x: Tensor, heads: int, norm_first: bool, decide: Callable, last: Callable
) -> tuple[Tensor, Tensor]:
    """What the last layer writes of a sample's rows, and at how many boundaries each row is alive, in double precision.

    decide(layer, received, key, x, weight) -> (places that stay, x, weight); last(number of rows) -> rows written.
    """
    x, place, weight = x.double(), torch.arange(len(x)), torch.ones(len(x), 1).double()
    lifetime = torch.ones(len(x), dtype=torch.int64)
    for number, layer in enumerate(layers):
        query, key, value = qkv_of(layer, x, norm_first)
        log_weight = weight[:, 0].log()
        if number == len(layers) - 1:
            written = last(len(x))
            lifetime[place[:written]] += 1
            x = projected(layer, x[:written], attention_of(query[:written], key, value, heads, log_weight), norm_first)
            return fed_forward(layer, x, norm_first), lifetime
        q, k = (part.unflatten(1, (heads, -1)).transpose(0, 1) for part in (query, key))
        received = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1).mean((0, 1))
        x = projected(layer, x, attention_of(query, key, value, heads, log_weight), norm_first)
        stay, x, weight = decide(number, received, k.mean(0), x, weight)
        place = place[stay]
        lifetime[place] += 1
        x = fed_forward(layer, x, norm_first)
    raise AssertionError


@pytest.mark.parametrize("by", ["counts", "threshold"])
@pytest.mark.parametrize("survivors", [False, True])
@pytest.mark.parametrize(("width", "wide", "heads"), SIZES)
def test_layers_that_select(
    vectors: int, threads: int, width: int, wide: int, heads: int, survivors: bool, by: str
) -> None:
    norm_first, outputs = width % 32 != 0, 1 + survivors
    layers, counts = make_layers(width, wide), torch.tensor([40, 7, 1, 20, 50, 33, 0, 64, 16])
    x = torch.randn(int(counts.sum()), width)
    keep = torch.stack([(counts * share).long() for share in (0.7, 0.4)])
    selection = MostReceived(keep) if by == "counts" else AboveThreshold(torch.tensor([0.012, 0.022]))
    found, left, lifetime = ops.select(
        x, *packed_pair(pack_encoder(layers, heads, norm_first)), counts, selection.counts, selection.threshold,
        outputs, survivors,
    )  # fmt: skip
    assert found.shape == (int(left.sum()), width)
    rows = zip(x.split(counts.tolist()), found.split(left.tolist()), lifetime.split(counts.tolist()), strict=True)
    for sample, (own, written, lives) in enumerate(rows):
        if not len(own):
            continue
        one = MostReceived(keep[:, sample, None]) if by == "counts" else selection

        def decide(layer: int, received: Tensor, _: Tensor, x: Tensor, weight: Tensor, one=one) -> tuple:
            alive = torch.ones(1, len(x)) > 0
            stay = one.select(layer, received[None], alive, outputs)[0].nonzero()[:, 0]
            return stay, x[stay], weight[stay]

        expected, lived = decided(layers, own, heads, norm_first, decide, lambda n: n if survivors else min(outputs, n))
        assert torch.equal(lives, lived)
        torch.testing.assert_close(written.double(), expected, rtol=1e-4, atol=1e-4)
    assert lifetime.min() == 1 and lifetime.max() == 4, "layers that decide nothing test nothing"


@pytest.mark.parametrize(
    ("merged", "outputs", "survivors"),
    [([9, 9], 1, False), ([5, 4], 2, True), ([30, 30], 0, True), ([0, 0], 1, True), ([0, 3], 1, False)],
)
@pytest.mark.parametrize(("width", "wide", "heads"), SIZES)
def test_layers_that_merge(
    vectors: int, threads: int, width: int, wide: int, heads: int, merged: list[int], outputs: int, survivors: bool
) -> None:
    norm_first, samples, tokens = width % 32 != 0, 7, 41
    layers, x = make_layers(width, wide, bias=False), torch.randn(7 * 41, width)  # a bias makes all keys alike
    pair = packed_pair(pack_encoder(layers, heads, norm_first))
    found, lifetime = ops.merge(x, *pair, tokens, merged, outputs, survivors)

    def decide(layer: int, _: Tensor, key: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pairs = pairs_to_merge([merged[layer]], [len(key)], outputs)
        matching = match_tokens(key[None], [len(key)], pairs, outputs)
        size, stays = merged_sums(matching, weight[None]), matching.stays[0].nonzero()[:, 0]
        stay = torch.empty_like(stays).scatter(0, matching.place[0, stays], stays)
        return stay, (merged_sums(matching, (x * weight)[None]) / size)[0], size[0]

    written = found.unflatten(0, (samples, -1))
    for own, rows, lives in zip(x.split(tokens), written, lifetime, strict=True):
        expected, lived = decided(layers, own, heads, norm_first, decide, lambda n: n if survivors else outputs)
        assert torch.equal(lives, lived)
        if not any(merged):  # no order of its own
            torch.testing.assert_close(rows.double(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rows.double().sum(0), expected.sum(0), rtol=1e-4, atol=1e-3)
        if not survivors:
            torch.testing.assert_close(rows.double(), expected, rtol=1e-4, atol=1e-4)


def test_layers_that_decide_hand_on_what_is_not_finite(vectors: int) -> None:
    """Output tokens stay, whatever their attention; a sample beside is not touched."""
    packed, counts = packed_pair(pack_encoder(make_layers(48, 96), 3, True)), torch.tensor([12, 12])
    for what in WRONG:
        x = torch.randn(24, 48)
        x[17, 3] = what
        runs = (
            ops.select(x, *packed, counts, torch.full((2, 2), 6), None, 1, False)[::2],
            ops.select(x, *packed, counts, None, torch.full((2,), -1.0), 1, False)[::2],
            ops.merge(x, *packed, 12, [3, 3], 1, False),
        )
        for rows, lifetime in runs:
            assert rows[0].isfinite().all() and not rows[1].isfinite().any()
            assert lifetime.view(2, 12)[:, 0].tolist() == [4, 4]


WRONG_CALLS = {
    "either `keep`": lambda x, packed, counts: ops.select(x, *packed, counts[0], None, None, 1, False),
    "keep is": lambda x, packed, counts: ops.select(x, *packed, counts[0], counts[:, :1], None, 1, False),
    "threshold has 2": lambda x, packed, counts: ops.select(x, *packed, counts[0], None, torch.zeros(2), 1, False),
    "outputs=-1": lambda x, packed, counts: ops.select(x, *packed, counts[0], counts[:1], None, -1, False),
    "no samples of 4": lambda x, packed, counts: ops.merge(x, *packed, 4, [1], 1, False),
    "merged=\\[-1\\]": lambda x, packed, counts: ops.merge(x, *packed, 3, [-1], 1, False),
    "merged has 2 entries for 2 layers": lambda x, packed, counts: ops.merge(x, *packed, 3, [1, 1], 1, False),
    "float32": lambda x, packed, counts: ops.encode(x.double(), *packed, counts, 3),
    "the width": lambda x, packed, counts: ops.encode(x[:, :32], *packed, counts, 3),
    "dimensions": lambda x, packed, counts: ops.encode(x[None], *packed, counts, 3),
    "int64 is needed": lambda x, packed, counts: ops.encode(x, *packed, counts.int(), 3),
    "boundaries": lambda x, packed, counts: ops.encode(x, *packed, counts[:2], 3),
    "from 8 rows": lambda x, packed, counts: ops.encode(x[:8], *packed, counts, 3),
    "rows to 5": lambda x, packed, counts: ops.encode(x, *packed, counts, 5),
    "do not fall": lambda x, packed, counts: ops.encode(x, *packed, counts.flip(0), 9),
    "no encoder": lambda x, packed, counts: ops.encode(x, packed[0][:-1], packed[1], counts, 3),
    "layer 2 of 2": lambda x, packed, counts: ops.layer_feed_forward(x, *packed, 2),
    "1 attended rows": lambda x, packed, counts: ops.layer_project(x, x[:1], *packed, 1),
    "none of 0, 1, 2": lambda x, packed, counts: ops.layer_inputs(x, *packed, 1, 3),
    "more than 4 tokens": lambda x, packed, counts: ops.plan_topk(
        x, *packed, counts[0], 4, 1, 0.1, [0.5, 0.5], False, [], False
    ),
    "keep ratio": lambda x, packed, counts: ops.plan_topk(
        x, *packed, counts[0], 9, 1, 0.1, [0.5, 1.5], False, [], False
    ),
    "keep has 1": lambda x, packed, counts: ops.plan_topk(x, *packed, counts[0], 9, 1, 0.1, [0.5], False, [], False),
    "p_logit has 3": lambda x, packed, counts: ops.plan_concrete(
        x, *packed, counts[0], 9, 1, torch.zeros(3), 0.1, 0.1, 0.0
    ),
    "rows has 4 dimensions": lambda x, packed, counts: ops.plan_topk(
        x.expand(1, 2, 9, 48), *packed, counts[0], 9, 1, 0.1, [0.5, 0.5], False, [], False
    ),
    "do not make 5 heads": lambda x, packed, counts: ops.attend_ragged(x, x, x, 5, counts[0], counts[0], None),
    "2 weights for 9": lambda x, packed, counts: ops.attend_ragged(x, x, x, 3, counts[0], counts[0], x[:2, 0]),
    "do not fit together": lambda x, packed, counts: ops.column_sums(
        x[None, None], x[None, None, :5], x[None, :, 0], None, 1.0, 0.0, False
    ),
    "real is torch.float32": lambda x, packed, counts: ops.column_sums(
        x[None, None], x[None, None], x[None, :, 0], x[None, :, 0], 1.0, 0.0, False
    ),
}


@pytest.mark.parametrize("message", WRONG_CALLS)
def test_what_does_not_fit_is_refused(message: str) -> None:
    packed = packed_pair(pack_encoder(make_layers(48, 96, 2), 3, True))
    with pytest.raises(ValueError, match=message):
        WRONG_CALLS[message](torch.randn(9, 48), packed, torch.tensor([[6, 3], [4, 3], [1, 2]]))


def test_gradients_are_refused() -> None:
    packed = packed_pair(pack_encoder(make_layers(48, 96, 2), 3, True))
    x = torch.randn(9, 48, requires_grad=True)
    with torch.enable_grad(), pytest.raises(RuntimeError, match="gradients"):
        ops.layer_feed_forward(x, *packed, 0)
    ops.layer_feed_forward(x, *packed, 0)


def test_what_does_not_fit_is_not_packed() -> None:
    layers = make_layers(48, 96, 2)
    with pytest.raises(ValueError, match="join of layer 1"):
        pack_encoder([layers[0], layers[1]._replace(join=Linear(torch.zeros(48, 47), None))], 3, True)
    with pytest.raises(ValueError, match=r"second norm of layer 0 is torch\.float64"):
        pack_encoder([layers[0]._replace(second=Norm(torch.ones(48).double(), None, 1e-5))], 3, True)
    with pytest.raises(ValueError, match="5 heads"):
        pack_encoder(layers, 5, True)


def test_other_defaults_change_nothing() -> None:
    """torch.empty follows the default dtype and device, which users change."""
    layers, x = make_layers(48, 96, 2), torch.randn(9, 48)
    counts = torch.tensor([[9], [9], [9]])
    expected = ops.encode(x, *packed_pair(pack_encoder(layers, 3, True)), counts, 9)
    plan = ops.plan_topk(
        x, *packed_pair(pack_encoder(layers, 3, True)), counts[0], 9, 1, 0.1, [0.5] * 2, False, [], False
    )
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    try:
        packed = packed_pair(pack_encoder(layers, 3, True))
        assert torch.equal(ops.encode(x, *packed, counts, 9), expected)
        found = ops.plan_topk(x, *packed, counts[0], 9, 1, 0.1, [0.5] * 2, False, [], False)
        attended = ops.attend_ragged(x, x, x, 3, counts[0], counts[0], None)
        summed = ops.column_sums(x[None, None], x[None, None], x[None, :, 0], None, 1.0, 0.0, False)
        parts = ops.layer_inputs(x, *packed, 0, 0), ops.layer_project(x, x, *packed, 0)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(torch.equal(one, other) for one, other in zip(found, plan, strict=True))
    assert {part.dtype for part in (attended, summed, *parts)} == {torch.float32}


def test_memory_that_is_short_is_said() -> None:
    packed = packed_pair(pack_encoder(make_layers(48, 96, 2), 3, True))
    before = resource.getrlimit(resource.RLIMIT_AS)
    rows = 400_000
    x, counts = torch.zeros(rows, 48), torch.full((3, 1), rows)
    counts[1:] = 1
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, before[1]))
    try:
        with pytest.raises(RuntimeError, match="memory"):
            ops.encode(x, *packed, counts, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_packed_encoder_is_a_value() -> None:
    layers, x, counts = make_layers(48, 96, 2), torch.randn(9, 48), torch.tensor([[9], [9], [9]])
    packed = pack_encoder(layers, 3, True)
    expected = ops.encode(x, *packed_pair(packed), counts, 9)
    for layer in layers:
        for part in layer:
            part[0].zero_()
    for other in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(ops.encode(x, *packed_pair(other), counts, 9), expected)


def test_a_packed_encoder_is_packed_again_for_other_vectors(vectors: int) -> None:
    layers, x, counts = make_layers(20, 33, 2), torch.randn(9, 20), torch.tensor([[9], [9], [9]])
    with cpu.limited_to(8 if vectors == 4 else 4) as other:
        if other == vectors:
            pytest.skip("this machine has one kind of vectors")
        foreign = pack_encoder(layers, 5, False, "quick_gelu")
        stored = pickle.dumps(foreign)
    expected = pack_encoder(layers, 5, False, "quick_gelu")
    assert foreign.sizes != expected.sizes, "they are packed otherwise"
    found = pickle.loads(stored)
    assert found.sizes == expected.sizes and torch.equal(found.buffer, expected.buffer)
    for own, other in zip(unpack_encoder(found), layers, strict=True):
        assert all(torch.equal(getattr(own, name)[0], getattr(other, name)[0]) for name in LayerWeights._fields)
    wanted = reference(layers, x, 5, counts, False, "quick_gelu")[0]
    torch.testing.assert_close(ops.encode(x, *packed_pair(found), counts, 9), wanted, rtol=1e-4, atol=1e-4)


def test_an_encoder_of_other_vectors_is_refused() -> None:
    with cpu.limited_to(4):
        packed = packed_pair(pack_encoder(make_layers(48, 96, 2), 3, True))
    if cpu.vector_floats() == 4:
        pytest.skip("this machine has one kind of vectors")
    with pytest.raises(RuntimeError, match="other vectors"):
        ops.layer_feed_forward(torch.randn(9, 48), *packed, 0)


def test_a_row_is_the_same_whoever_stands_beside_it(threads: int) -> None:
    packed = packed_pair(pack_encoder(make_layers(96, 384, 2), 6, True))
    x = torch.randn(100, 50, 96)
    together = ops.encode(x.flatten(0, 1), *packed, torch.full((3, 100), 50), 5000).view(100, 50, 96)
    for sample in (0, 41, 99):
        assert torch.equal(ops.encode(x[sample], *packed, torch.full((3, 1), 50), 50), together[sample])


def test_threads_and_forks() -> None:
    """Python's threads at once; a forked child, which has none of the parent's OpenMP threads."""
    torch.set_num_threads(2)
    packed, counts = packed_pair(pack_encoder(make_layers(48, 96, 2), 3, True)), torch.full((3, 4), 50)
    x = torch.randn(200, 48)
    expected = ops.encode(x, *packed, counts, 200)
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(ops.encode(x, *packed, counts, 200))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(own, expected) for own in found)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(ops.encode(x, *packed, counts, 200), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_operators_are_as_torch_wants_them() -> None:
    """Fake tensors get the shapes of real ones, no argument is changed, nothing is an alias."""
    packed, counts = packed_pair(pack_encoder(make_layers(20, 33, 2), 5, True)), torch.tensor([[6, 3], [4, 3], [1, 2]])
    x, one = torch.randn(9, 20), counts[0]
    calls = {
        "encode": (x, *packed, counts, 3),
        "trace": (x, *packed, one),
        "layer_inputs": (x, *packed, 1, 2),
        "layer_project": (x, x.clone(), *packed, 1),
        "layer_finish": (x, x.clone(), *packed, 1),
        "layer_feed_forward": (x, *packed, 1),
        "layer_attend": (x, *packed, 1, one),
        "plan_topk": (x, *packed, one, 6, 1, 0.1, [0.5, 0.5], False, [], False),
        "plan_concrete": (x, *packed, one, 6, 1, torch.zeros(2), 0.1, 0.1, 0.0),
        "select": (x, *packed, one, one[None] // 2, None, 1, False),
        "merge": (x, *packed, 3, [1], 1, True),
        "attend_ragged": (x, x.clone(), x.clone(), 5, one, one.clone(), x[:, 0].clone()),
        "column_sums": (torch.rand(2, 1, 9, 4), torch.rand(2, 1, 9, 4), torch.rand(2, 9), None, 1.0, 0.0, True),
    }
    assert set(calls) == set(operators.SCHEMAS)
    for name, arguments in calls.items():
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(getattr(ops, name).default, arguments, test_utils=tests)


def test_a_compiled_graph_holds_the_kernels() -> None:
    packed = packed_pair(pack_encoder(make_layers(48, 96, 2), 3, True))

    def layers(x: Tensor) -> Tensor:
        counts = torch.tensor([7, 4, 2])[:, None].expand(-1, x.shape[0]).contiguous()
        return ops.encode(x.flatten(0, 1) * 2, *packed, counts, 2 * x.shape[0]).unflatten(0, (x.shape[0], 2))

    compiled = torch.compile(layers, fullgraph=True, dynamic=True)
    for batch in (2, 5):
        x = torch.randn(batch, 7, 48)
        torch.testing.assert_close(compiled(x), layers(x))
