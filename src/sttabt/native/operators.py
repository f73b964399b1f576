"""The kernels as operators that torch knows: torch.ops.sttabt.NAME, whole in the graphs of torch.compile and export.

T rows (samples behind each other, nothing padded), D width, H heads, L layers, B samples, N tokens of the longest.
`packed` and `sizes` are the fields of a PackedEncoder; `stride` is D rounded up to a multiple of 16. Every operator
raises ValueError where shapes, dtypes, devices or counts do not fit, and RuntimeError where memory is short or somebody
asks for gradients.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from sttabt.native.cpu import LIBRARY, panel_outputs
from sttabt.native.packed import ACTIVATIONS, Sizes, padded

SCHEMAS = {
    # What the last layer writes, (rows, D), of x (T, D). counts: (L+1, B) rows of each sample before and after each
    # layer, which writes the first of those that it reads.
    "encode": "(Tensor x, Tensor packed, int[] sizes, Tensor counts, SymInt rows) -> Tensor",
    # Queries and keys of every layer, (L, T, 2, stride), when no layer drops a row; counts: (B,).
    "trace": "(Tensor x, Tensor packed, int[] sizes, Tensor counts) -> Tensor",
    # Of a layer's x (T, D): queries, keys and values (T, 3, stride), part 1: queries alone, 2: keys and values.
    "layer_inputs": "(Tensor x, Tensor packed, int[] sizes, int layer, int part) -> Tensor",
    # Attention of a layer's x (T, D), before its output projection, (T, D); what each token receives, mean over heads
    # and rows of its sample, (T,). counts: (B,).
    "layer_attend": "(Tensor x, Tensor packed, int[] sizes, int layer, Tensor counts) -> (Tensor, Tensor)",
    # Output projection and residual, (T, D), of x and attended (T, D).
    "layer_project": "(Tensor x, Tensor attended, Tensor packed, int[] sizes, int layer) -> Tensor",
    # Feed-forward and residual, (T, D).
    "layer_feed_forward": "(Tensor x, Tensor packed, int[] sizes, int layer) -> Tensor",
    # Both one after the other.
    "layer_finish": "(Tensor x, Tensor attended, Tensor packed, int[] sizes, int layer) -> Tensor",
    # Back-tracking top-k (core.backtrack): lifetime (B, N), at how many boundaries a token is alive, and the rows of
    # attention that were scored, (B, L), of a trace of rows (T, D). keep: L shares of a sample's tokens; with as_counts
    # numbers of tokens; empty: `dynamic` (share of the largest importance, least and largest share). inclusive: a
    # layer's number counts the tokens of the layer above (backtrack_fixed).
    "plan_topk": "(Tensor rows, Tensor packed, int[] sizes, Tensor counts, SymInt tokens, int outputs,"
    " float propagation, float[] keep, bool as_counts, float[] dynamic, bool inclusive) -> (Tensor, Tensor)",
    # Concrete masks (core.concrete), alive from 1/2 on; p_logit: (L,).
    "plan_concrete": "(Tensor rows, Tensor packed, int[] sizes, Tensor counts, SymInt tokens, int outputs,"
    " Tensor p_logit, float propagation, float temperature, float negligible) -> (Tensor, Tensor)",
    # What layers leave that decide by the attention a token receives, mean over heads and the rows of its sample: rows
    # of the samples behind each other, how many each has (B,), and at how many boundaries each row of x is alive (T,).
    # Layers but the last go on with the `keep` (L-1, B) tokens that receive most or, without it, with all above
    # `threshold` (L-1,). The first `outputs` tokens always go on; the last layer writes them or, with survivors, all.
    "select": "(Tensor x, Tensor packed, int[] sizes, Tensor counts, Tensor? keep, Tensor? threshold, int outputs,"
    " bool survivors) -> (Tensor, Tensor, Tensor)",
    # What layers leave of samples of `tokens` rows where each but the last merges its `merged` most alike pairs
    # (core.merge): rows, equally many of each sample, and at how many boundaries a token stands for itself or others
    # (B, tokens). outputs, survivors: as in `select`.
    "merge": "(Tensor x, Tensor packed, int[] sizes, SymInt tokens, int[] merged, int outputs, bool survivors)"
    " -> (Tensor, Tensor)",
    # Attention within each sample, (rows of queries, D): reads and writes (B,), a sample's keys and queries.
    # log_weight: (rows of keys,), added to a key's scores.
    "attend_ragged": "(Tensor query, Tensor key, Tensor value, int heads, Tensor reads, Tensor writes,"
    " Tensor? log_weight) -> Tensor",
    # Weighted sum over rows of attention, mean over heads, (B, N): queries, keys (B, H, N, d), weight (B, N), of which
    # those up to `least` are left out; real: (B, N) bool. A row is its softmax of scale * q . k over the real keys, or
    # with `standard` erf of its standardised scores over the square root of 2.
    "column_sums": "(Tensor queries, Tensor keys, Tensor weight, Tensor? real, float scale, float least,"
    " bool standard) -> Tensor",
}


class TopkRule(ctypes.Structure):
    """Topk of kernels.cpp."""

    _fields_ = (
        ("keep", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("outputs", "as_counts", "dynamic", "inclusive")),
        ("propagation", ctypes.c_float),
        ("dynamic_share", ctypes.c_float),
        ("lowest", ctypes.c_double),
        ("highest", ctypes.c_double),
    )


class ConcreteRule(ctypes.Structure):
    """Concrete of kernels.cpp."""

    _fields_ = (
        ("p_logit", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        *((name, ctypes.c_float) for name in ("propagation", "temperature", "negligible")),
    )


def encode(x: Tensor, packed: Tensor, sizes: Sequence[int], counts: Tensor, rows: int) -> Tensor:
    """See SCHEMAS, as for all that follow."""
    own = _encoder(packed, sizes)
    x, counts = _rows("x", x, own.width), _counts("counts", counts, 2)
    if counts.shape[0] != own.layers + 1:
        raise ValueError(f"counts has {counts.shape[0]} boundaries, {own.layers} layers have {own.layers + 1}")
    _check_counts(counts, len(x), rows)
    out = _new(rows, own.width)
    _run("encode", x.data_ptr(), _integers(sizes), packed.data_ptr(), counts.shape[1], counts.data_ptr(), None,
         out.data_ptr(), torch.get_num_threads())  # fmt: skip
    return out


def trace(x: Tensor, packed: Tensor, sizes: Sequence[int], counts: Tensor) -> Tensor:
    own = _encoder(packed, sizes)
    x, counts = _rows("x", x, own.width), _counts("counts", counts, 1)
    _check_counts(counts, len(x), len(x))
    kept = _new(own.layers, len(x), 2, own.stride)
    _run("encode", x.data_ptr(), _integers(sizes), packed.data_ptr(), len(counts), counts.data_ptr(), kept.data_ptr(),
         None, torch.get_num_threads())  # fmt: skip
    return kept


def layer_inputs(x: Tensor, packed: Tensor, sizes: Sequence[int], layer: int, part: int) -> Tensor:
    own = _encoder(packed, sizes)
    if part not in (0, 1, 2):
        raise ValueError(f"part={part} is none of 0, 1, 2")
    return _layer(x, None, packed, own, layer, part, (3, 1, 2)[part], own.stride)


def layer_attend(x: Tensor, packed: Tensor, sizes: Sequence[int], layer: int, counts: Tensor) -> tuple[Tensor, Tensor]:
    own = _encoder(packed, sizes)
    x, counts = _rows("x", x, own.width), _counts("counts", counts, 1)
    _check_counts(counts, len(x), len(x))
    _check_layer(layer, own)
    out, received = _new(len(x), own.width), _new(own.heads, len(x))
    _run("layer_attend", x.data_ptr(), _integers(own), packed.data_ptr(), layer, len(counts), counts.data_ptr(),
         out.data_ptr(), received.data_ptr(), torch.get_num_threads())  # fmt: skip
    return out, received.mean(0) / counts.repeat_interleave(counts)


def layer_project(x: Tensor, attended: Tensor, packed: Tensor, sizes: Sequence[int], layer: int) -> Tensor:
    own = _encoder(packed, sizes)
    return _layer(x, attended, packed, own, layer, 3, own.width)


def layer_finish(x: Tensor, attended: Tensor, packed: Tensor, sizes: Sequence[int], layer: int) -> Tensor:
    own = _encoder(packed, sizes)
    return _layer(x, attended, packed, own, layer, 5, own.width)


def layer_feed_forward(x: Tensor, packed: Tensor, sizes: Sequence[int], layer: int) -> Tensor:
    own = _encoder(packed, sizes)
    return _layer(x, None, packed, own, layer, 4, own.width)


def plan_topk(
    rows: Tensor, packed: Tensor, sizes: Sequence[int], counts: Tensor, tokens: int, outputs: int,
    propagation: float, keep: Sequence[float], as_counts: bool, dynamic: Sequence[float], inclusive: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    own = _encoder(packed, sizes)
    if keep and len(keep) != own.layers:
        raise ValueError(f"keep has {len(keep)} entries for {own.layers} layers")
    if not as_counts and not all(0 < share <= 1 for share in keep):
        raise ValueError(f"a keep ratio lies in (0, 1], got {list(keep)}")
    if not keep and len(dynamic) != 3:
        raise ValueError("without `keep`, `dynamic` has three numbers")
    shares = (ctypes.c_double * len(keep))(*keep)
    share, low, high = dynamic or (0.0, 0.0, 0.0)
    rule = TopkRule(ctypes.addressof(shares), outputs, as_counts, not keep, inclusive, propagation, share, low, high)
    return _plan(rows, packed, own, counts, tokens, rule)


def plan_concrete(
    rows: Tensor, packed: Tensor, sizes: Sequence[int], counts: Tensor, tokens: int, outputs: int, p_logit: Tensor,
    propagation: float, temperature: float, negligible: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    own = _encoder(packed, sizes)
    p_logit = _floats("p_logit", p_logit.detach(), 1).contiguous()
    if len(p_logit) != own.layers:
        raise ValueError(f"p_logit has {len(p_logit)} entries for {own.layers} layers")
    rule = ConcreteRule(p_logit.data_ptr(), outputs, propagation, temperature, negligible)
    return _plan(rows, packed, own, counts, tokens, rule)


def select(
    x: Tensor, packed: Tensor, sizes: Sequence[int], counts: Tensor, keep: Tensor | None, threshold: Tensor | None,
    outputs: int, survivors: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    own = _encoder(packed, sizes)
    x, counts = _rows("x", x, own.width), _counts("counts", counts, 1)
    _check_counts(counts, len(x), len(x))
    if (keep is None) == (threshold is None):
        raise ValueError("either `keep` or `threshold` says who goes on")
    if keep is not None:
        keep = _counts("keep", keep, 2)
        if tuple(keep.shape) != (own.layers - 1, len(counts)):
            raise ValueError(f"keep is {tuple(keep.shape)} for {own.layers} layers and {len(counts)} samples")
    if threshold is not None:
        threshold = _floats("threshold", threshold.detach(), 1).contiguous()
        if len(threshold) != own.layers - 1:
            raise ValueError(f"threshold has {len(threshold)} entries for {own.layers} layers")
    if outputs < 0:
        raise ValueError(f"outputs={outputs} is below 0")
    lifetime, left = counts.new_empty(len(x)), torch.empty_like(counts)
    out = _new(len(x) if survivors else int(counts.clamp_max(outputs).sum()), own.width)
    _run("select", x.data_ptr(), _integers(own), packed.data_ptr(), len(counts), counts.data_ptr(),
         None if keep is None else keep.data_ptr(), None if threshold is None else threshold.data_ptr(), outputs,
         survivors, lifetime.data_ptr(), left.data_ptr(), out.data_ptr(), torch.get_num_threads())  # fmt: skip
    return out[: int(left.sum())] if survivors else out, left, lifetime


def merge(
    x: Tensor, packed: Tensor, sizes: Sequence[int], tokens: int, merged: Sequence[int], outputs: int, survivors: bool
) -> tuple[Tensor, Tensor]:
    own = _encoder(packed, sizes)
    x = _rows("x", x, own.width)
    if tokens < 1 or len(x) % tokens:
        raise ValueError(f"{len(x)} rows are no samples of {tokens} tokens")
    if len(merged) != own.layers - 1:
        raise ValueError(f"merged has {len(merged)} entries for {own.layers} layers")
    if min(merged, default=0) < 0 or outputs < 0:
        raise ValueError(f"merged={list(merged)} or outputs={outputs} is below 0")
    samples, written = len(x) // tokens, rows_written(tokens, merged, outputs, survivors)
    lifetime = torch.empty(samples, tokens, dtype=torch.int64, device="cpu")
    counts, out = torch.full_like(lifetime[:, 0], tokens), _new(samples * written, own.width)
    _run("merge", x.data_ptr(), _integers(own), packed.data_ptr(), samples, counts.data_ptr(), tokens,
         _integers(merged), outputs, survivors, lifetime.data_ptr(), written, out.data_ptr(),
         torch.get_num_threads())  # fmt: skip
    return out, lifetime


def rows_written(tokens: int, merged: Sequence[int], outputs: int, survivors: bool) -> int:
    """Rows of a sample that `merge` leaves."""
    outputs = min(outputs, tokens)
    for pairs in merged:
        tokens -= min(pairs, (tokens - outputs) // 2)
    return tokens if survivors else outputs


def attend_ragged(
    query: Tensor, key: Tensor, value: Tensor, heads: int, reads: Tensor, writes: Tensor, log_weight: Tensor | None
) -> Tensor:
    query, key, value = (_dense(_floats(name, x, 2)) for name, x in (("query", query), ("key", key), ("value", value)))
    if heads < 1 or query.shape[1] % heads or not query.shape[1] == key.shape[1] == value.shape[1]:
        raise ValueError(f"widths {query.shape[1]}, {key.shape[1]}, {value.shape[1]} do not make {heads} heads")
    reads, writes = _counts("reads", reads, 1), _counts("writes", writes, 1)
    if len(reads) != len(writes) or len(key) != len(value):
        raise ValueError(f"{len(reads)} and {len(writes)} samples, {len(key)} keys and {len(value)} values")
    _check_counts(reads, len(key), len(key))
    _check_counts(writes, len(query), len(query))
    log_weight = _log_weight(log_weight, len(key))
    out = _new(*query.shape)
    _run("attend", query.data_ptr(), query.stride(0), key.data_ptr(), key.stride(0), value.data_ptr(),
         value.stride(0), None if log_weight is None else log_weight.data_ptr(), out.data_ptr(), heads,
         query.shape[1] // heads, len(reads), reads.data_ptr(), writes.data_ptr(), torch.get_num_threads())  # fmt: skip
    return out


def column_sums(
    queries: Tensor, keys: Tensor, weight: Tensor, real: Tensor | None, scale: float, least: float, standard: bool
) -> Tensor:
    queries, keys = _dense(_floats("queries", queries, 4)), _dense(_floats("keys", keys, 4))
    weight = _floats("weight", weight, 2).contiguous()
    batch, heads, tokens, width = queries.shape
    if keys.shape != queries.shape or tuple(weight.shape) != (batch, tokens):
        raise ValueError(f"queries {queries.shape}, keys {keys.shape} and weight {weight.shape} do not fit together")
    if real is not None:
        if real.dtype != torch.bool or not real.is_cpu or real.shape != weight.shape:
            raise ValueError(
                f"real is {real.dtype} of shape {tuple(real.shape)}: bool of {tuple(weight.shape)} is needed"
            )
        real = real.contiguous()
    sums = _new(batch, heads, tokens)
    _run("sum_rows", queries.data_ptr(), keys.data_ptr(), _integers([*queries.stride()[:3], *keys.stride()[:3]]),
         weight.data_ptr(), None if real is None else real.data_ptr(), sums.data_ptr(), batch, heads, tokens, width,
         scale, least, standard, torch.get_num_threads())  # fmt: skip
    return sums.mean(1)


def _check_layer(layer: int, own: Sizes) -> None:
    if not 0 <= layer < own.layers:
        raise ValueError(f"layer {layer} of {own.layers} layers")


def _log_weight(log_weight: Tensor | None, keys: int) -> Tensor | None:
    if log_weight is None:
        return None
    if len(_floats("log_weight", log_weight, 1)) != keys:
        raise ValueError(f"{len(log_weight)} weights for {keys} keys")
    return log_weight.contiguous()


def _layer(
    x: Tensor, attended: Tensor | None, packed: Tensor, own: Sizes, layer: int, part: int, *shape: int
) -> Tensor:
    x = _rows("x", x, own.width)
    _check_layer(layer, own)
    if attended is not None:
        attended = _rows("attended", attended, own.width)
        if len(attended) != len(x):
            raise ValueError(f"{len(attended)} attended rows for {len(x)} rows")
    out = _new(len(x), *shape)
    _run("layer", x.data_ptr(), None if attended is None else attended.data_ptr(), len(x), _integers(own),
         packed.data_ptr(), layer, part, out.data_ptr(), torch.get_num_threads())  # fmt: skip
    return out


def _plan(
    rows: Tensor, packed: Tensor, own: Sizes, counts: Tensor, tokens: int, rule: TopkRule | ConcreteRule
) -> tuple[Tensor, Tensor]:
    rows, counts = _rows("rows", rows, own.width), _counts("counts", counts, 1)
    _check_counts(counts, len(rows), len(rows))
    if tokens < (int(counts.max()) if len(counts) else 0):
        raise ValueError(f"a sample has more than {tokens} tokens")
    lifetime = torch.empty(len(counts), tokens, dtype=torch.int64, device="cpu")
    scored = torch.empty(len(counts), own.layers, dtype=torch.int64, device="cpu")
    _run("plan", rows.data_ptr(), _integers(own), packed.data_ptr(), len(counts), counts.data_ptr(), tokens,
         ctypes.byref(rule), isinstance(rule, ConcreteRule), lifetime.data_ptr(), scored.data_ptr(),
         torch.get_num_threads())  # fmt: skip
    return lifetime, scored


def _run(name: str, *arguments: object) -> None:
    if not getattr(LIBRARY, f"sttabt_{name}")(*arguments):
        raise RuntimeError(f"not enough memory for sttabt::{name}")


def _encoder(packed: Tensor, sizes: Sequence[int]) -> Sizes:
    own = Sizes(*sizes)
    if own.panel != panel_outputs():
        raise RuntimeError("the encoder was packed for other vectors than this machine's: pack or unpickle it here")
    _floats("packed", packed, 1)
    known = min(own[:5]) >= 1 and own.activation in range(len(ACTIVATIONS)) and own.width % own.heads == 0
    if not known or packed.numel() != own.numbers or not packed.is_contiguous():
        raise ValueError(f"a buffer of {packed.numel()} numbers is no encoder of {own}")
    return own


def _rows(name: str, x: Tensor, width: int) -> Tensor:
    x = _floats(name, x, 2).contiguous()
    if x.shape[1] != width:
        raise ValueError(f"{name} has the width {x.shape[1]} instead of {width}")
    return x


def _floats(name: str, x: Tensor, dimensions: int) -> Tensor:
    if x.dtype != torch.float32 or not x.is_cpu or x.layout != torch.strided:
        raise ValueError(f"{name} is {x.dtype} on {x.device}: the kernels take float32 on cpu")
    if x.dim() != dimensions:
        raise ValueError(f"{name} has {x.dim()} dimensions instead of {dimensions}")
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{name} asks for gradients, and the kernels have none: use torch.no_grad()")
    return x


def _counts(name: str, counts: Tensor, dimensions: int) -> Tensor:
    if counts.dtype != torch.int64 or not counts.is_cpu or counts.dim() != dimensions:
        raise ValueError(f"{name} is {counts.dtype} of {counts.dim()} dimensions on {counts.device}: int64 is needed")
    return counts.contiguous()


def _check_counts(counts: Tensor, first: int, last: int) -> None:
    """counts: (boundaries, B) or (B,)."""
    boundaries = counts.shape[0] if counts.dim() == 2 else 1
    if not LIBRARY.sttabt_counts_fit(counts.data_ptr(), boundaries, counts.shape[-1], first, last):
        raise ValueError(f"counts {counts.tolist()} do not fall from layer to layer, from {first} rows to {last}")


def _dense(x: Tensor) -> Tensor:
    """The kernels take any strides but the last."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _new(*shape: int) -> Tensor:
    """Whatever the default dtype and device are."""
    return torch.empty(*shape, dtype=torch.float32, device="cpu")


def _integers(values: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


_library = torch.library.Library("sttabt", "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, globals()[_name], "CPU")


@torch.library.register_fake("sttabt::encode", lib=_library)
def _(x: Tensor, packed: Tensor, sizes: list[int], counts: Tensor, rows: int) -> Tensor:
    return x.new_empty(rows, x.shape[1])


@torch.library.register_fake("sttabt::trace", lib=_library)
def _(x: Tensor, packed: Tensor, sizes: list[int], counts: Tensor) -> Tensor:
    return x.new_empty(Sizes(*sizes).layers, x.shape[0], 2, padded(Sizes(*sizes).width))


@torch.library.register_fake("sttabt::layer_inputs", lib=_library)
def _(x: Tensor, packed: Tensor, sizes: list[int], layer: int, part: int) -> Tensor:
    return x.new_empty(x.shape[0], (3, 1, 2)[part], padded(Sizes(*sizes).width))


@torch.library.register_fake("sttabt::layer_attend", lib=_library)
def _(x: Tensor, packed: Tensor, sizes: list[int], layer: int, counts: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0])


@torch.library.register_fake("sttabt::layer_project", lib=_library)
@torch.library.register_fake("sttabt::layer_finish", lib=_library)
def _(x: Tensor, attended: Tensor, packed: Tensor, sizes: list[int], layer: int) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("sttabt::layer_feed_forward", lib=_library)
def _(x: Tensor, packed: Tensor, sizes: list[int], layer: int) -> Tensor:
    return x.new_empty(x.shape)


def _fake_plan(
    rows: Tensor, packed: Tensor, sizes: list[int], counts: Tensor, tokens: int, *_: object
) -> tuple[Tensor, Tensor]:
    return counts.new_empty(counts.shape[0], tokens), counts.new_empty(counts.shape[0], Sizes(*sizes).layers)


torch.library.register_fake("sttabt::plan_topk", _fake_plan, lib=_library)
torch.library.register_fake("sttabt::plan_concrete", _fake_plan, lib=_library)


@torch.library.register_fake("sttabt::select", lib=_library)
def _(
    x: Tensor, packed: Tensor, sizes: list[int], counts: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:  # how many rows are left depends on what they are
    rows = torch.library.get_ctx().new_dynamic_size()
    return x.new_empty(rows, x.shape[1]), torch.empty_like(counts), counts.new_empty(x.shape[0])


@torch.library.register_fake("sttabt::merge", lib=_library)
def _(
    x: Tensor, packed: Tensor, sizes: list[int], tokens: int, merged: list[int], outputs: int, survivors: bool
) -> tuple[Tensor, Tensor]:
    samples = x.shape[0] // tokens
    written = rows_written(tokens, merged, outputs, survivors)
    return x.new_empty(samples * written, x.shape[1]), x.new_empty(samples, tokens, dtype=torch.int64)


@torch.library.register_fake("sttabt::attend_ragged", lib=_library)
def _(
    query: Tensor, key: Tensor, value: Tensor, heads: int, reads: Tensor, writes: Tensor, log_weight: Tensor | None
) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.register_fake("sttabt::column_sums", lib=_library)
def _(
    queries: Tensor, keys: Tensor, weight: Tensor, real: Tensor | None, scale: float, least: float, standard: bool
) -> Tensor:
    return queries.new_empty(queries.shape[0], queries.shape[2])


kernels = torch.ops.sttabt
