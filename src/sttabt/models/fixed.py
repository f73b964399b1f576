"""A pruned model of static shapes: one graph for torch.compile and for CUDA graphs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sttabt.engine.dropped import run_fixed
from sttabt.errors import UserError
from sttabt.models.pruned import PrunedModel


class FixedModel(nn.Module):
    """From inputs to logits (B, classes), planning included; every image keeps the same number of tokens a layer.

    The logits are those of `pruned`, whose method says how many tokens (`sparsity.counts`). No shape and no branch
    depends on a tensor: `torch.compile(FixedModel(pruned), fullgraph=True)`.
    Raises UserError for a method whose counts follow the image; called, for inputs that the model cannot read, but in
    a graph by their shapes and kinds alone.
    """

    def __init__(self, pruned: PrunedModel) -> None:
        super().__init__()
        if pruned.method.counts is None:
            raise UserError(
                f"{pruned.method.title} keeps as many tokens as an image needs: static shapes need"
                " sparsity=backtracking sparsity.counts=[tokens of the first layer, ..., of the last]"
            )
        self.pruned, self.counts = pruned, pruned.method.counts

    def forward(self, inputs: Any) -> Tensor:
        self.pruned.base.check_inputs(inputs)
        inputs = self.pruned.base.prepare(inputs)
        trace = self.pruned.trace(inputs)
        assert trace is not None, "fixed counts are planned from a trace"
        return run_fixed(self.pruned.base, inputs, self.pruned.method.order(trace), self.counts)
