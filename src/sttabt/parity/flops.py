"""The FLOPs cases of `sttabt.parity`: the official count of random settings, in the convention of the paper.

Images count a multiply-add once, as the literature on vision transformers does, and texts twice. The official count has
more than matrix products: for every token of every layer 14 operations a dimension (biases, layer norms), one a feed-
forward unit (9 for texts, whose GELU counts) and one a pair of tokens and head (6 for texts: scaling, mask, softmax).
Its patch embedding reads one channel. These numbers solve the cases' dense totals exactly; those of planning are fitted
to the other totals, of which planning is at most a twentieth. Everything else is `core.cost.encoder_macs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sttabt.core.cost import Architecture, encoder_macs
from sttabt.errors import UserError
from sttabt.parity.check import Check

FLOPS_FILE = "flops.json"
RELATIVE = 5e-3  # of the official count restated
LITERATURE = 2e-2  # of this project's own count, which the figures draw among published ones
CLASSES = {"vit": 1000, "bert": 2}
CHANNELS, PATCH = 3, 16
MODES = ("forward", "approx", "concrete", "dyvit")
PREDICTORS = (3, 6, 9)  # the layers before which DynamicViT drops tokens


@dataclass(frozen=True)
class Sizes:
    """An encoder: arch is vit or bert."""

    arch: str
    layers: int
    width: int
    feed_forward: int
    heads: int
    tokens: int

    @property
    def text(self) -> bool:
        return self.arch == "bert"

    @property
    def multiply_add(self) -> int:
        """What one counts."""
        return 2 if self.text else 1

    def narrower(self, factor: int) -> Sizes:
        """Of its approximate network: depth and heads stay."""
        width, feed_forward = self.width // factor, self.feed_forward // factor
        return Sizes(self.arch, self.layers, width, feed_forward, self.heads, self.tokens)

    def architecture(self) -> Architecture:
        """As this project describes it, embedding and head included."""
        patches = 0 if self.text else CHANNELS * PATCH**2
        sizes = self.layers, self.width, self.heads, self.feed_forward, CLASSES[self.arch], patches
        return Architecture(*sizes, pooler=self.text)


def check_flops(folder: Path) -> Iterator[Check]:
    """Two or three quantities of every setting in the folder's flops.json.

    `dense` and `total` are the official count restated; `dense here` is this project's count of the same model.
    """
    cases = _read(folder / FLOPS_FILE)
    for number, case in enumerate(cases):
        name = f"{number}.{case['arch']}.{case['mode']}"
        if case["arch"] not in CLASSES or case["mode"] not in MODES:
            yield Check(folder.name, name, skipped=f"not supported yet: {case['mode']} of {case['arch']}")
            continue
        keys = ("arch", "num_layers", "hidden_size", "intermediate_size", "num_heads", "seq_len")
        sizes = Sizes(*(case[key] for key in keys))
        occupied = [share * sizes.tokens for share in case["token_occupies"]]
        total = official_flops(sizes, occupied, case["mode"], case["factor"])
        yield _compare(folder.name, f"{name}.dense", dense_flops(sizes), case["dense"], RELATIVE)
        yield _compare(folder.name, f"{name}.total", total, case["total"], RELATIVE)
        yield _compare(folder.name, f"{name}.dense here", dense_here(sizes), case["dense"], LITERATURE)


def dense_here(sizes: Sizes) -> float:
    """What this project counts, matrix products alone, in the paper's unit."""
    every = [sizes.tokens] * sizes.layers
    patches = 0 if sizes.text else sizes.tokens - 1
    return sizes.multiply_add * sum(encoder_macs(sizes.architecture(), every, every, patches).values())


def dense_flops(sizes: Sizes) -> float:
    """The official count of an encoder that keeps every token."""
    return _encoder(sizes, [sizes.tokens] * (sizes.layers + 1))


def official_flops(sizes: Sizes, occupied: Sequence[float], mode: str, factor: int) -> float:
    """The official count of a pruned encoder with all that its method adds.

    occupied: tokens at each of the L+1 layer boundaries; factor: of the approximate network, where mode has one.
    """
    reads, writes = occupied[:-1], occupied[1:]
    pairs = sizes.tokens * sum(writes)  # of every written token with all that there were
    found = _encoder(sizes, occupied)
    if mode in ("approx", "concrete"):
        found += dense_flops(sizes.narrower(factor))
    if mode == "approx":  # mean over heads, sums over rows
        found += pairs * (sizes.heads + 2) * sizes.multiply_add / 2
    elif mode == "concrete":  # standardising, the normal distribution, masks
        found += pairs * (19 * sizes.heads + 6.5) * sizes.multiply_add / 2
    elif mode == "forward":  # queries of all that a layer reads, since it drops tokens only afterwards
        dropped = sum(reads) - sum(writes)
        found += sizes.multiply_add * dropped * sizes.width**2
        found += sum(reads) * sizes.tokens * sizes.heads + 3 * sum(read**2 for read in reads)
    elif mode == "dyvit":  # layers of width, half and a quarter of it, on the tokens that are left
        asked = sum(occupied[layer] for layer in PREDICTORS if layer < sizes.layers)
        found += asked * (1.625 * sizes.width + 11.75) * sizes.width
    return found


def _encoder(sizes: Sizes, occupied: Sequence[float]) -> float:
    """Matrix products and all else of an encoder without its head, and its embedding."""
    reads, writes = list(occupied[:-1]), list(occupied[1:])
    layers = Architecture(sizes.layers, sizes.width, sizes.heads, sizes.feed_forward, classes=0, patch_inputs=0)
    products = sum(encoder_macs(layers, reads, writes, 0).values())
    pairs = sum(read * write for read, write in zip(reads, writes, strict=True))
    unit, pair = (9, 6) if sizes.text else (1, 1)
    others = sum(writes) * (14 * sizes.width + unit * sizes.feed_forward) + pair * sizes.heads * pairs
    embedding = 7 * sizes.tokens if sizes.text else (PATCH**2 + 6) * sizes.tokens + 5
    return sizes.multiply_add * products + others + embedding * sizes.width


def _compare(case: str, quantity: str, ours: float, theirs: float, tolerance: float) -> Check:
    return Check(case, quantity, abs(ours - theirs) / theirs, tolerance)


def _read(path: Path) -> list[dict[str, Any]]:
    """Raises UserError for a file that holds no cases."""
    wanted = {"arch", "mode", "factor", "token_occupies", "total", "dense"}
    wanted |= {"num_layers", "hidden_size", "intermediate_size", "num_heads", "seq_len"}
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))
        for number, case in enumerate(cases):
            if missing := wanted - set(case):
                raise ValueError(f"case {number} lacks {', '.join(sorted(missing))}")
            if len(case["token_occupies"]) != case["num_layers"] + 1:
                raise ValueError(f"case {number} has {len(case['token_occupies'])} token_occupies")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} holds no cases: {error}") from error
    return cases
