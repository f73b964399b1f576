"""A pruned model of static shapes: one graph for torch.compile, for CUDA graphs and for other runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sttabt.core.counts import check_counts
from sttabt.engine.dropped import run_fixed
from sttabt.errors import UserError
from sttabt.methods.backtracking import check_lengths
from sttabt.models.pruned import PrunedModel


class FixedModel(nn.Module):
    """From inputs to logits (B, classes), planning included; every image keeps the same number of tokens a layer.

    counts: how many tokens each layer reads (L), of a method that `takes_counts`; None: as many as the method says
    (`sparsity.counts`), with the logits of `pruned` then. No shape and no branch depends on a tensor:
    `torch.compile(FixedModel(pruned), fullgraph=True)`. Texts of unequal length are for graphs alone: there a text with
    fewer tokens than a layer's count keeps all of them, and padding is masked.
    Raises UserError for counts that do not fit, and for a method whose counts follow the image; called, for inputs that
    the model cannot read, but in a graph by their shapes and kinds alone.
    """

    def __init__(self, pruned: PrunedModel, counts: Sequence[int] | None = None) -> None:
        super().__init__()
        method, base = pruned.method, pruned.base
        found = method.counts if counts is None else [*counts, base.outputs]
        if found is None or not method.takes_counts:
            raise UserError(
                f"{method.title} keeps as many tokens as an image needs: static shapes need"
                " sparsity=backtracking sparsity.counts=[tokens of the first layer, ..., of the last]"
            )
        if counts is not None:
            if len(counts) != base.layers:
                more = ", without the tokens behind the last" if len(counts) == base.layers + 1 else ""
                raise UserError(
                    f"counts={list(counts)} has {len(counts)} entries: give one for each of {base.layers} layers{more}"
                )
            try:
                check_counts(found, base.layers, base.tokens, base.outputs)
            except ValueError as error:
                raise UserError(f"counts={list(counts)} do not fit the model: {error}") from error
            if counts[-1] < method.least:
                raise UserError(
                    f"counts={list(counts)}: the head reads {method.least} tokens of the last layer at least"
                )
        self.pruned, self.counts = pruned, found

    def forward(self, inputs: Any) -> Tensor:
        self.pruned.base.check_inputs(inputs)
        inputs = self.pruned.base.prepare(inputs)
        trace = self.pruned.trace(inputs)
        assert trace is not None, "fixed counts are planned from a trace"
        check_lengths(trace, self.counts)
        return run_fixed(self.pruned.base, inputs, self.pruned.method.order(trace, self.counts), self.counts)
