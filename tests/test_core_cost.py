"""Multiply-adds against a count token by token, a real encoder under torch's counter, and the papers' totals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from sttabt.core.cost import Architecture, encoder_macs, trace_macs

EXAMPLES = settings(max_examples=30, deadline=None, derandomize=True)
DEIT_SMALL = Architecture(layers=12, width=384, heads=6, feed_forward=1536, classes=1000, patch_inputs=768)
BERT_BASE = Architecture(layers=12, width=768, heads=12, feed_forward=3072, classes=2, patch_inputs=0, pooler=True)


def slow_macs(arch: Architecture, reads: list[int], writes: list[int], stem_patches: int) -> dict[str, int]:
    """Method section 6, one multiply-add as 1: add up what every token costs, one token and one pair at a time."""
    macs = {"stem": arch.stem, "projections": 0, "attention": 0, "feed_forward": 0, "head": 0}
    for token in range(writes[-1]):
        if token < arch.classifiers or arch.auxiliary:
            macs["head"] += arch.width * arch.classes
    if arch.pooler:
        macs["head"] += arch.width * arch.width
    for _patch in range(stem_patches):
        macs["stem"] += arch.patch_inputs * arch.width
    for layer in range(arch.layers):
        for _key in range(reads[layer]):
            macs["projections"] += arch.width * arch.width  # key
            macs["projections"] += arch.width * arch.width  # value
        for _query in range(writes[layer]):
            macs["projections"] += arch.width * arch.width  # query
            macs["projections"] += arch.width * arch.width  # output projection
            macs["feed_forward"] += arch.width * arch.feed_forward  # into the intermediate
            macs["feed_forward"] += arch.feed_forward * arch.width  # and back
            for _key in range(reads[layer]):
                for _head in range(arch.heads):
                    macs["attention"] += arch.width // arch.heads  # score of the pair
                    macs["attention"] += arch.width // arch.heads  # its share of the weighted sum
    return macs


@st.composite
def encoders(draw) -> tuple[Architecture, list[int], list[int], int]:
    heads, layers = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    arch = Architecture(
        layers=layers,
        width=heads * draw(st.integers(1, 4)),
        heads=heads,
        feed_forward=draw(st.integers(1, 9)),
        classes=draw(st.integers(2, 5)),
        patch_inputs=draw(st.integers(0, 12)),
        pooler=draw(st.booleans()),
        stem=draw(st.integers(0, 99)),
        classifiers=draw(st.integers(1, 2)),
        auxiliary=draw(st.booleans()),
    )
    alive = sorted(
        draw(st.lists(st.integers(arch.classifiers, 9), min_size=layers + 1, max_size=layers + 1)), reverse=True
    )
    return arch, alive[:-1], alive[1:], draw(st.integers(0, 9))


def measured_macs(arch: Architecture, reads: list[int], writes: list[int], stem_patches: int) -> float:
    """What torch counts while such an encoder runs; every layer reads and writes the first tokens."""
    depth = arch.width // arch.heads

    def linear(x: torch.Tensor, outputs: int) -> torch.Tensor:
        return x @ torch.empty(x.shape[-1], outputs)

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (arch.heads, depth)).transpose(0, 1)

    with FlopCounterMode(display=False) as counter:
        if stem_patches and arch.patch_inputs:
            linear(torch.empty(stem_patches, arch.patch_inputs), arch.width)
        x = torch.empty(reads[0], arch.width)
        for read, write in zip(reads, writes, strict=True):
            keys, values = (split(linear(x[:read], arch.width)) for _ in range(2))
            queries = split(linear(x[:write], arch.width))
            attended = ((queries @ keys.transpose(1, 2)) @ values).transpose(0, 1).flatten(1)
            x = linear(linear(linear(attended, arch.width), arch.feed_forward), arch.width)
        if arch.pooler:
            linear(x[:1], arch.width)
        linear(x if arch.auxiliary else x[: arch.classifiers], arch.classes)
    return counter.get_total_flops() / 2 + arch.stem


@EXAMPLES
@given(encoders())
def test_every_part_is_the_count_token_by_token(case):
    arch, reads, writes, stem_patches = case
    assert encoder_macs(arch, reads, writes, stem_patches) == slow_macs(arch, reads, writes, stem_patches)


@EXAMPLES
@given(encoders())
def test_the_sum_is_what_torch_counts(case):
    assert sum(encoder_macs(*case).values()) == measured_macs(*case)


@EXAMPLES
@given(encoders(), st.integers(0, 3))
def test_one_more_token_never_costs_less(case, layer):
    arch, reads, writes, stem_patches = case
    layer = layer % arch.layers
    before = encoder_macs(arch, reads, writes, stem_patches)
    more = [tokens + (index == layer) for index, tokens in enumerate(reads)]
    after = encoder_macs(arch, more, writes, stem_patches)
    assert after["projections"] == before["projections"] + 2 * arch.width**2
    assert after["attention"] == before["attention"] + 2 * writes[layer] * arch.width
    assert {k: v for k, v in after.items() if k not in ("projections", "attention")} == {
        k: v for k, v in before.items() if k not in ("projections", "attention")
    }


def test_mean_token_counts_may_be_fractions():
    arch = Architecture(layers=1, width=2, heads=1, feed_forward=3, classes=2, patch_inputs=0)
    macs = encoder_macs(arch, [2.5], [1.5], 0.0)
    assert macs == {"stem": 0, "projections": 32.0, "attention": 15.0, "feed_forward": 18.0, "head": 4}


def test_dense_deit_small_is_the_literature_value():
    total = sum(encoder_macs(DEIT_SMALL, [197] * 12, [197] * 12, 196).values())
    assert total == pytest.approx(4.6e9, rel=0.01)


def test_dense_bert_base_at_128_tokens_is_the_literature_value():
    # Text counts a multiply-add as two operations.
    total = 2 * sum(encoder_macs(BERT_BASE, [128] * 12, [128] * 12, 0).values())
    assert total == pytest.approx(22.4e9, rel=0.01)


def test_tracing_one_layer_is_its_queries_and_keys():
    """Of an encoder of one layer; a token of text that is projected after its look-up costs that besides."""
    one = replace(DEIT_SMALL, layers=1)
    assert trace_macs(one, 197, 196) == (196 * one.patch_inputs + 2 * 197 * one.width) * one.width
    text = replace(BERT_BASE, layers=1, looked_up=128)
    assert trace_macs(text, 20, 0) == 20 * (128 + 2 * text.width) * text.width
