"""A backbone whose layers are packed for the kernels of sttabt.native: the only door to them.

It computes what the backbone did when it was packed, and keeps nothing of it but its embedding and its head. Engines
and planners that gain by more than single layers are registered here for it: all layers of a run are one call, and so
are a trace and its plan.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Backbone, Finish, Rows
from sttabt.core.backtrack import DYNAMIC_RANGE, DYNAMIC_SHARE, Keep, backtrack, backtrack_fixed, plan_topk
from sttabt.core.concrete import concrete_plan, harden_plan, plan_concrete
from sttabt.core.counts import check_counts
from sttabt.core.plan import MergeRecord, Planned, TokenPlan
from sttabt.core.received import Selection
from sttabt.core.trace import AttentionTrace
from sttabt.engine.attention import split_heads
from sttabt.engine.dense import trace_attention
from sttabt.engine.dropped import run_dropped, run_fixed
from sttabt.engine.merging import attend_rows, matching_rule, run_matched, run_merging
from sttabt.engine.online import (
    GoesOn,
    LayerAttention,
    Rule,
    first_places,
    rule_of,
    run_online_dropped,
    run_selected,
    what_the_last_writes,
)
from sttabt.engine.packed import Packing, unpack
from sttabt.engine.packing import pack_layers
from sttabt.engine.run import Run
from sttabt.errors import UserError
from sttabt.native import PackedEncoder, kernels


class FrozenBackbone(Backbone):
    """The backbone's layers, packed; embedding and head are copies of its modules.

    Of a backbone without packing_problems. Computes no gradients and no gates.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.encoder = pack_layers(backbone)
        self.shell = _without_layers(backbone)
        self.architecture, self.outputs = backbone.architecture, backbone.outputs
        self.may_pad, self.pools, self.reads_survivors = backbone.may_pad, backbone.pools, backbone.reads_survivors
        self.head_prefixes, self.embeds = backbone.head_prefixes, backbone.embeds
        self.eval()

    @property
    def config(self) -> Any:
        return self.shell.config

    @property
    def tokens(self) -> int:
        return self.shell.tokens

    @property
    def grid(self) -> tuple[int, int]:
        return self.shell.grid

    @property
    def attends_ragged(self) -> bool:
        return True

    @property
    def embeds_whole(self) -> bool:
        return self.shell.embeds_whole

    def grid_of(self, inputs: Any) -> tuple[int, int]:
        return self.shell.grid_of(inputs)

    def read_call(self, *args: Any, **kwargs: Any) -> tuple[Any, Finish]:
        return self.shell.read_call(*args, **kwargs)

    def real(self, inputs: Any) -> Tensor:
        return self.shell.real(inputs)

    def lengths(self, inputs: Any) -> Sequence[int]:
        return self.shell.lengths(inputs)

    def check_inputs(self, inputs: Any) -> None:
        self.shell.check_inputs(inputs)

    def prepare(self, inputs: Any) -> Any:
        return self.shell.prepare(inputs)

    def samples(self, inputs: Any) -> list[Tensor]:
        return self.shell.samples(inputs)

    def embed(self, inputs: Any) -> Tensor:
        return self.shell.embed(inputs)

    def embed_tokens(self, inputs: Any, sample: Tensor, token: Tensor) -> Tensor:
        return self.shell.embed_tokens(inputs, sample, token)

    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        return self.shell.head(x, alive)

    def forward(self, inputs: Any) -> Tensor:
        """Logits (B, classes) of every real token through every layer: the baseline of what pruning gains."""
        real, x, counts = embed_real(self, inputs)
        x = self.encode(x, counts.expand(self.layers + 1, -1).contiguous(), x.shape[0])
        return self.head(unpack(x, real), real)

    def encode(self, x: Tensor, counts: Tensor, rows: int) -> Tensor:
        """All layers: what the last one writes (rows, D) of x (T, D); counts: (L+1, B), see sttabt::encode."""
        return kernels.encode(x, self.encoder.buffer, self.encoder.sizes, counts, rows)

    def qkv(self, layer: int, x: Tensor, written: Rows | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if written is None:
            query, key, value = self._inputs(layer, x, 0)
            return query, key, value
        (query,), (key, value) = self._inputs(layer, written(x), 1), self._inputs(layer, x, 2)
        return query, key, value

    def queries_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        query, key, _ = self._inputs(layer, x, 0)
        return query, key

    def project(self, layer: int, x: Tensor, attended: Tensor, gate: Tensor | None = None) -> Tensor:
        _refuse_gate(gate)
        rows = x.flatten(0, -2), attended.flatten(0, -2)
        return kernels.layer_project(*rows, self.encoder.buffer, self.encoder.sizes, layer).view(x.shape)

    def feed_forward(self, layer: int, x: Tensor, gate: Tensor | None = None) -> Tensor:
        _refuse_gate(gate)
        rows = x.flatten(0, -2)
        return kernels.layer_feed_forward(rows, self.encoder.buffer, self.encoder.sizes, layer).view(x.shape)

    def finish(self, layer: int, x: Tensor, attended: Tensor, gate: Tensor | None = None) -> Tensor:
        _refuse_gate(gate)
        rows = x.flatten(0, -2), attended.flatten(0, -2)
        return kernels.layer_finish(*rows, self.encoder.buffer, self.encoder.sizes, layer).view(x.shape)

    def embeddings(self) -> list[nn.Parameter]:
        return []

    def narrow(self, factor: int, share_stem: bool = False) -> Backbone:
        raise UserError("a frozen model has no weights to start from: make its approximate network before")

    def _inputs(self, layer: int, x: Tensor, part: int) -> list[Tensor]:
        rows = x.flatten(0, -2)
        found = kernels.layer_inputs(rows, self.encoder.buffer, self.encoder.sizes, layer, part)
        width = self.architecture.width
        return [found[:, place, :width].unflatten(0, x.shape[:-1]) for place in range(found.shape[1])]


class FrozenTrace(AttentionTrace):
    """Attention of a packed encoder, computed when somebody reads it: planning does so without a tensor of it.

    rows: embedded, (T, D); counts: (B,), those of each sample; queries and keys of padding are 0.
    """

    def __init__(
        self, encoder: PackedEncoder, rows: Tensor, counts: Tensor, real: Tensor, may_pad: bool, pools: bool
    ) -> None:
        own = {
            "encoder": encoder, "embedded": rows, "counts": counts, "real": real, "may_pad": may_pad, "pools": pools
        }  # fmt: skip
        self.__dict__.update(own, scale=(encoder.sizes.width // encoder.sizes.heads) ** -0.5)

    encoder: PackedEncoder
    embedded: Tensor
    counts: Tensor

    @property
    def layers(self) -> int:
        return self.encoder.sizes.layers

    @cached_property
    def queries(self) -> tuple[Tensor, ...]:
        return self._apart(0)

    @cached_property
    def keys(self) -> tuple[Tensor, ...]:
        return self._apart(1)

    def compute(self) -> AttentionTrace:
        _ = self._kept
        return self

    def received(self, layer: int, weight: Tensor, places: Tensor | None = None) -> Tensor:
        if places is not None:
            weight = torch.zeros_like(self.real, dtype=weight.dtype).scatter(1, places, weight)
        queries, keys = self.queries[layer], self.keys[layer]
        return kernels.column_sums(queries, keys, weight, self.padding, self.scale, 0.0, False)

    def rows_computed(self, counts: Tensor) -> tuple[float, ...]:
        return tuple(counts.double().mean(0).tolist())

    @cached_property
    def _kept(self) -> Tensor:
        return kernels.trace(self.embedded, self.encoder.buffer, self.encoder.sizes, self.counts)

    def _apart(self, kind: int) -> tuple[Tensor, ...]:
        sizes = self.encoder.sizes
        kept = self._kept[:, :, kind, : sizes.width]
        return tuple(split_heads(unpack(rows, self.real), sizes.heads) for rows in kept)


class FrozenAttention(LayerAttention):
    """Of packed rows x (T, D), `counts` (B,) of each sample. What a rule reads decides what is computed.

    All rows at once, which gives what each token receives beside what each row attends to; or queries, keys and values.
    """

    def __init__(self, backbone: FrozenBackbone, layer: int, x: Tensor, counts: Tensor, present: Tensor) -> None:
        self.backbone, self.layer, self.x, self.counts = backbone, layer, x, counts
        self.present, self.heads, self.classifiers = present, backbone.heads, backbone.architecture.classifiers

    @cached_property
    def query(self) -> Tensor:  # type: ignore[override]
        return unpack(self._inputs[0], self.present)

    @cached_property
    def key(self) -> Tensor:  # type: ignore[override]
        return unpack(self._inputs[1], self.present)

    @cached_property
    def value(self) -> Tensor:  # type: ignore[override]
        return unpack(self._inputs[2], self.present)

    def received(self, rows: Tensor) -> Tensor:
        if rows is self.present:
            return unpack(self._whole[1][:, None], self.present)[..., 0]
        queries, keys = split_heads(self.query, self.heads), split_heads(self.key, self.heads)
        weight = rows.to(queries.dtype) / rows.sum(-1, keepdim=True)
        return kernels.column_sums(queries, keys, weight, self.present, queries.shape[-1] ** -0.5, 0.0, False)

    def attended_by(self, keep: Tensor) -> Tensor:
        """What the rows that are kept, (B, n) bool, attend to, behind each other: (T, D)."""
        kept = keep[self.present]
        if "_whole" in vars(self):
            return self._whole[0][kept]
        query, key, value = self._inputs
        return kernels.attend_ragged(query[kept], key, value, self.heads, self.counts, keep.sum(1), None)

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor]:
        """What all rows attend to, (T, D), and what each token receives from those of its sample, (T,)."""
        encoder = self.backbone.encoder
        return kernels.layer_attend(self.x, encoder.buffer, encoder.sizes, self.layer, self.counts)

    @cached_property
    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (T, D)."""
        return self.backbone.qkv(self.layer, self.x)


def embed_real(backbone: FrozenBackbone, inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens are real (B, N), the rows of those (T, D), and how many each sample has (B,)."""
    real = backbone.real(inputs)
    counts = real.sum(-1)
    if backbone.may_pad and not bool(real.all()):
        return real, backbone.embed_tokens(inputs, *real.nonzero(as_tuple=True)), counts
    return real, backbone.embed(inputs).flatten(0, 1), counts


@trace_attention.register
def _(backbone: FrozenBackbone, inputs: Any) -> AttentionTrace:
    real, rows, counts = embed_real(backbone, inputs)
    return FrozenTrace(backbone.encoder, rows, counts, real, backbone.may_pad, backbone.pools)


@run_dropped.register
def _(backbone: FrozenBackbone, inputs: Any, plan: TokenPlan, counts: Sequence[Sequence[int]] | None = None) -> Tensor:
    """counts: of use where a device would be asked; a CPU reads those of the plan."""
    plan.check(backbone.outputs, backbone.pools)
    plan = plan.with_survivors() if backbone.reads_survivors else plan
    order, own = plan.order(), plan.counts
    sample, place = (torch.arange(order.shape[1]) < own[:, :1]).nonzero(as_tuple=True)
    x = backbone.embed_tokens(inputs, sample, order[sample, place])
    left = own[:, -1]
    x = backbone.encode(x, own.t().contiguous(), int(left.sum()))
    present = torch.arange(int(left.max()) if len(left) else 0) < left[:, None]
    return backbone.head(unpack(x, present), present)


@run_fixed.register
def _(backbone: FrozenBackbone, inputs: Any, order: Tensor, counts: Sequence[int]) -> Tensor:
    counts = [*counts[:-1], counts[-2]] if backbone.reads_survivors else counts
    sample = torch.arange(order.shape[0])[:, None].expand_as(order)
    x = backbone.embed_tokens(inputs, sample.flatten(), order.flatten())
    each = torch.tensor(counts)[:, None].expand(-1, order.shape[0]).contiguous()
    x = backbone.encode(x, each, order.shape[0] * counts[-1])
    return backbone.head(x.view(order.shape[0], counts[-1], x.shape[-1]))


@plan_topk.register
def _(trace: FrozenTrace, keep: Keep, propagation: float, outputs: int) -> Planned:
    each = [keep] * trace.layers if isinstance(keep, float | int) else [] if keep is None else list(keep)
    as_counts = [isinstance(own, int) for own in each]
    if trace.pools or (any(as_counts) and not all(as_counts)) or (keep is not None and not each):
        # The kernels start at the output tokens; of numbers that do not fit this says what is wrong, or mixes the two.
        found = backtrack(trace, keep, propagation, outputs)
        return Planned(found.plan, found.scored)
    lifetime, scored = _topk(trace, each, any(as_counts), propagation, outputs, inclusive=False)
    return Planned(TokenPlan(lifetime, trace.layers), trace.rows_computed(scored))


@backtrack_fixed.register
def _(trace: FrozenTrace, counts: Sequence[int], propagation: float = 0.1, outputs: int = 1) -> Tensor:
    if trace.pools:
        return backtrack_fixed.default(trace, counts, propagation, outputs)
    if trace.is_padded:
        raise ValueError("samples of unequal length cannot keep the same number of tokens")
    check_counts(counts, trace.layers, trace.real.shape[1], outputs)
    lifetime, _ = _topk(trace, counts[:-1], True, propagation, outputs, inclusive=True)
    return TokenPlan(lifetime, trace.layers).order()[:, : counts[0]]


@plan_concrete.register
def _(
    trace: FrozenTrace, p_logit: Tensor, propagation: float, temperature: float, outputs: int, negligible: float
) -> Planned:
    if trace.pools:
        found = concrete_plan(trace, p_logit, propagation, temperature, outputs, negligible)
        return harden_plan(trace, found, outputs)
    lifetime, scored = kernels.plan_concrete(
        trace.embedded, trace.encoder.buffer, trace.encoder.sizes, trace.counts, trace.real.shape[1], outputs,
        p_logit.detach(), propagation, temperature, negligible,
    )  # fmt: skip
    return Planned(TokenPlan(lifetime, trace.layers), trace.rows_computed(scored))


def _topk(
    trace: FrozenTrace, keep: Sequence[Any], as_counts: bool, propagation: float, outputs: int, inclusive: bool
) -> tuple[Tensor, Tensor]:
    """Lifetimes (B, N), and rows that were scored (B, L)."""
    return kernels.plan_topk(
        trace.embedded, trace.encoder.buffer, trace.encoder.sizes, trace.counts, trace.real.shape[1], outputs,
        propagation, list(map(float, keep)), as_counts, [DYNAMIC_SHARE, *DYNAMIC_RANGE], inclusive,
    )  # fmt: skip


@run_online_dropped.register
def _(backbone: FrozenBackbone, inputs: Any, rule: Rule, goes_on: GoesOn | None = None) -> Run:
    """Rows of the samples stay packed. goes_on: of use where a device would be asked; a CPU has counted."""
    real, x, counts = embed_real(backbone, inputs)
    heads, lifetime = backbone.heads, real.long()
    sample, token = real.nonzero(as_tuple=True)
    for layer in range(backbone.layers - 1):
        present = first_places(counts)
        attention = FrozenAttention(backbone, layer, x, counts, present)
        keep = rule(layer, attention, present)
        kept, writes = keep[present], keep.sum(1)
        x = backbone.finish(layer, x[kept], attention.attended_by(keep))
        sample, token, counts = sample[kept], token[kept], writes
        lifetime = lifetime.index_put((sample, token), lifetime.new_full((), layer + 2))
    layer = backbone.layers - 1
    last = what_the_last_writes(lifetime > layer, backbone)
    lifetime, written, left = lifetime + last, last[sample, token], last.sum(1)
    query, key, value = backbone.qkv(layer, x, lambda rows: rows[written])
    attended = kernels.attend_ragged(query, key, value, heads, counts, left, None)
    present = first_places(left)
    x = unpack(backbone.finish(layer, x[written], attended), present)
    return Run(backbone.head(x, present), TokenPlan(lifetime, backbone.layers), real)


@run_selected.register
def _(backbone: FrozenBackbone, inputs: Any, selection: Selection) -> Run:
    if backbone.pools and selection.threshold is not None:
        return run_online_dropped(backbone, inputs, rule_of(selection, backbone.outputs))
    real, x, counts = embed_real(backbone, inputs)
    x, left, lifetime = kernels.select(
        x, backbone.encoder.buffer, backbone.encoder.sizes, counts, selection.counts, selection.threshold,
        backbone.outputs, backbone.reads_survivors,
    )  # fmt: skip
    present = first_places(left)
    plan = TokenPlan(unpack(lifetime[:, None], real)[..., 0], backbone.layers)
    return Run(backbone.head(unpack(x, present), present), plan, real)


@attend_rows.register
def _(
    backbone: FrozenBackbone,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    read: Packing,
    write: Packing,
    log_size: Tensor | None,
) -> Tensor:
    return kernels.attend_ragged(query, key, value, backbone.heads, read.each, write.each, log_size)


@run_matched.register
def _(backbone: FrozenBackbone, inputs: Any, pairs: Sequence[Sequence[int]]) -> Run:
    """All layers in one call where all samples merge equally many pairs; else a layer at a time."""
    real, survivors = backbone.real(inputs), backbone.reads_survivors
    numbers = [layer[0] for layer in pairs]
    equal = all(set(layer) == {number} for layer, number in zip(pairs, numbers, strict=True))
    if not equal or (backbone.may_pad and not bool(real.all())):
        return run_merging(backbone, inputs, matching_rule(pairs, backbone.outputs))
    x, lifetime = kernels.merge(
        backbone.embed(inputs).flatten(0, 1), backbone.encoder.buffer, backbone.encoder.sizes, real.shape[1],
        numbers, backbone.outputs, survivors,
    )  # fmt: skip
    plan = TokenPlan(lifetime, backbone.layers)
    return Run(backbone.head(x.view(len(real), -1, x.shape[1])), MergeRecord(plan.alive), real)


class _Packed(nn.Module):
    """Stands where a layer was that is packed."""

    def forward(self, *_: Any) -> None:
        raise UserError("this model's layers are packed: call the frozen model, not the library's")


def _without_layers(backbone: Backbone) -> Backbone:
    """A copy whose layers are gone: nothing of their weights is copied."""
    layers = backbone.encoder_layers()
    assert layers, "what is packed has layers"
    memo: dict[int, Any] = {id(layer.block): _Packed() for layer in layers}
    memo[id(backbone._checked)] = ()
    return copy.deepcopy(backbone, memo).requires_grad_(False).eval()


def _refuse_gate(gate: Tensor | None) -> None:
    if gate is not None:
        raise UserError("a frozen model drops tokens and has no masked form: use the model that was frozen")
