"""Multiply-adds, part by part, over the tokens that are really computed. A sample at a time; sum or average outside.

Counts what torch's FlopCounterMode counts (matrix products and convolutions), in multiply-adds: half its number.
Papers on vision transformers call the same count "FLOPs".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

PARTS = ("stem", "projections", "attention", "feed_forward", "head", "approximate_network", "planning")


@dataclass(frozen=True)
class Architecture:
    """The sizes that a cost depends on.

    patch_inputs: numbers that a patch is embedded from, C*p*p; 0 for text, whose embedding is looked up.
    looked_up: width of the embedding tables of text where every token is projected from there; 0 where none is.
    pooler: the head maps the output token through a square layer before it classifies.
    stem: multiply-adds of what is computed whole, whichever patches are embedded: convolutions (LV-ViT).
    classifiers: output tokens, each with a classifier of its own (distilled DeiT has two).
    pool_feed_forward, pool_skips: a learned query attends to all that the last layer writes but the first tokens, so
    many, and has a feed-forward of that width (SigLIP); 0 where nothing does.
    head_inputs: vectors that a classifier reads behind each other (DINOv2: the class token, and the patches' mean);
    0 where nothing is classified.
    auxiliary: one classifier more reads every patch that the last layer writes (LV-ViT as released).
    """

    layers: int
    width: int
    heads: int
    feed_forward: int
    classes: int
    patch_inputs: int
    pooler: bool = False
    stem: int = 0
    classifiers: int = 1
    auxiliary: bool = False
    looked_up: int = 0
    pool_feed_forward: int = 0
    pool_skips: int = 0
    head_inputs: int = 1


def encoder_macs(
    architecture: Architecture,
    reads: Sequence[float],
    writes: Sequence[float],
    stem_patches: float,
    queries: Sequence[float] | None = None,
    projected: Sequence[float] | None = None,
) -> dict[str, float]:
    """Multiply-adds of one sample, by part: stem, projections, attention, feed_forward, head.

    reads, writes: tokens that each of the L layers reads (keys, values) and writes (output projection,
    feed-forward); stem_patches: patches that are embedded; queries: tokens whose attention scores are computed,
    what each layer writes unless a method has to see more before it decides; projected: tokens that attention is
    summed up and projected for, what each layer writes unless some of them merge afterwards.
    """
    width = architecture.width
    queries, projected = queries or writes, projected or writes
    layers = list(zip(reads, writes, queries, projected, strict=True))
    if len(layers) != architecture.layers:
        raise ValueError(f"{len(layers)} layers counted for an architecture of {architecture.layers}")
    classified: float = architecture.classifiers * architecture.head_inputs
    if architecture.auxiliary:
        classified += writes[-1] - architecture.classifiers
    embedded = stem_patches * architecture.patch_inputs
    if architecture.looked_up:
        embedded += reads[0] * architecture.looked_up
    return {
        "stem": architecture.stem + embedded * width,
        "projections": sum(query + 2 * read + out for read, _, query, out in layers) * width**2,
        "attention": sum((query + out) * read for read, _, query, out in layers) * width,
        "feed_forward": sum(2 * write for write in writes) * width * architecture.feed_forward,
        "head": width * (architecture.classes * classified + width * architecture.pooler)
        + _attention_pool_macs(architecture, writes),
    }


def _attention_pool_macs(architecture: Architecture, writes: Sequence[float]) -> float:
    """Keys and values of each row, the query's two products with them, its own two layers and the feed-forward."""
    if not architecture.pool_feed_forward:
        return 0.0
    width, rows = architecture.width, writes[-1] - architecture.pool_skips
    return 2 * width * (rows * width + rows + width + architecture.pool_feed_forward)


def trace_macs(architecture: Architecture, tokens: int, patches: int) -> float:
    """Multiply-adds of tracing one sample's attention: the encoder without its head, up to the last layer's keys."""
    width = architecture.width
    before = replace(architecture, layers=architecture.layers - 1, looked_up=0)
    parts = encoder_macs(before, [tokens] * before.layers, [tokens] * before.layers, patches)
    return sum(parts.values()) - parts["head"] + tokens * (architecture.looked_up + 2 * width) * width
