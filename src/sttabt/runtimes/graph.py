"""What is exported: one graph from plain tensors to logits or vectors, planning included, static but for the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sttabt.backbones.base import Backbone
from sttabt.backbones.text import TextBackbone
from sttabt.core.counts import fixed_plan
from sttabt.core.text import Text
from sttabt.engine.dense import run_dense
from sttabt.errors import UserError
from sttabt.methods.dense import Dense
from sttabt.models.fixed import FixedModel
from sttabt.models.frozen import FrozenModel
from sttabt.models.pruned import PrunedModel

SERVE = "dense, backtracking and concrete have such a graph"  # methods
SEED = 0  # of the inputs on which file and model are compared
DRAWN = 9  # inputs more than are asked for, of which those that hang on rounding are left out
MOVES, MOVED = 4, 1e-5  # how often, and by what share, queries are moved to see that


@dataclass(frozen=True)
class Input:
    """One tensor that a file takes: its name, its shape behind the batch, and what it holds."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Graph(nn.Module):
    """A model as its file computes it: called with one tensor a name of `inputs`, gives logits (B, classes), or
    of an encoder without a classifier its vector (B, D).

    counts: tokens that each layer reads (L), None: as the method has them. tokens: the length that texts are padded to.
    Raises UserError for a model that has no graph of static shapes.
    """

    def __init__(self, pruned: PrunedModel, counts: Sequence[int] | None = None, tokens: int | None = None) -> None:
        super().__init__()
        base = pruned.base
        self.tokens = check_tokens(base, tokens)
        check_model(pruned)
        self.base = base
        self.fixed: FixedModel | None = None
        if not isinstance(pruned.method, Dense):
            self.fixed = FixedModel(pruned, counts)
            if self.fixed.counts[0] > self.tokens:
                raise UserError(f"counts={self.fixed.counts[:-1]} begin with more tokens than tokens={self.tokens}")
        elif counts is not None:
            raise UserError(f"counts={list(counts)} have no effect on a dense model, which keeps every token: prune it")

    @property
    def counts(self) -> list[int]:
        """Tokens at every boundary (L+1)."""
        if self.fixed is not None:
            return list(self.fixed.counts)
        return [self.tokens] * (self.base.layers + 1)

    @property
    def inputs(self) -> list[Input]:
        """What the file takes, in this order."""
        if not isinstance(self.base, TextBackbone):
            return [Input("images", self.base.image_shape, "float32")]
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if self.base.token_types else [])]
        return [Input(name, (self.tokens,), "int64") for name in names]

    @property
    def output(self) -> str:
        """What the file calls that which it gives."""
        return "embeddings" if self.base.embeds else "logits"

    def forward(self, *given: Tensor) -> Tensor:
        inputs = self.read(*given)
        if self.fixed is not None:
            return self.fixed(inputs)
        self.base.check_inputs(inputs)
        return run_dense(self.base, self.base.prepare(inputs)).logits

    def read(self, *given: Tensor) -> Tensor | Text:
        """The model's inputs from the tensors of a file."""
        if not self.base.may_pad:
            return given[0]
        ids, mask, *types = given
        return Text(ids, types[0] if types else torch.zeros_like(ids), mask.bool())

    def tensors(self, inputs: Tensor | Text) -> tuple[Tensor, ...]:
        """The tensors of a file from a batch of inputs, texts padded to the exported length.

        Raises UserError for longer texts.
        """
        if not isinstance(inputs, Text):
            return (inputs,)
        more = self.tokens - inputs.ids.shape[1]
        if more < 0:
            if bool(inputs.real[:, self.tokens :].any()):
                raise UserError(f"texts have {inputs.ids.shape[1]} tokens, but tokens={self.tokens}: truncate them")
            inputs, more = Text(*(field[:, : self.tokens] for field in inputs)), 0
        ids, types, real = (nn.functional.pad(field.long(), (0, more)) for field in inputs)
        return (ids, real, types)[: len(self.inputs)]

    @torch.no_grad()
    def expected(self, given: Sequence[Tensor]) -> Tensor:
        """What torch computes outside a graph: texts one by one, without padding."""
        inputs = self.read(*given)
        if self.fixed is None:
            return self.base(inputs)
        if not isinstance(inputs, Text):
            return self.fixed(inputs)
        outputs = []
        for sample, length in enumerate(inputs.real.sum(-1).tolist()):
            alone = FixedModel(self.fixed.pruned, [min(count, length) for count in self.counts[:-1]])
            outputs.append(alone(Text(*(field[sample : sample + 1, :length] for field in inputs))))
        return torch.cat(outputs)

    def examples(self, batch: int) -> tuple[Tensor, ...]:
        """A batch of random inputs, the same each time; every other text is as long as can be.

        Of tokens that are all but equally important either may stay, as a runtime's sums are rounded: such inputs are
        left out, as far as there are others.
        """
        generator = torch.Generator().manual_seed(SEED)
        chosen = drawn = self._drawn(generator, DRAWN + batch)
        if self.fixed is not None:
            clear = self._clear(self.fixed, drawn, generator)
            first = clear.int().argsort(descending=True, stable=True)
            chosen = tuple(each[first] for each in drawn)
        return tuple(each[:batch] for each in chosen)

    def _drawn(self, generator: torch.Generator, samples: int) -> tuple[Tensor, ...]:
        if not isinstance(self.base, TextBackbone):
            return (torch.randn(samples, *self.inputs[0].shape, generator=generator),)
        sizes = self.base.model.config
        shape = (samples, self.tokens)
        lengths = torch.randint(2, self.tokens + 1, (samples, 1), generator=generator)
        lengths[::2] = self.tokens
        ids = torch.randint(0, sizes.vocab_size, shape, generator=generator)
        mask = (torch.arange(self.tokens) < lengths).long()
        if (padding := sizes.pad_token_id) is not None:  # which RoBERTa refuses in a text
            ids[ids == padding] = (padding + 1) % sizes.vocab_size
        types = (torch.arange(self.tokens) >= lengths // 2).long().clamp_max(max(self.base.token_types - 1, 0))
        return (ids, mask, types)[: len(self.inputs)]

    @torch.no_grad()
    def _clear(self, fixed: FixedModel, given: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """The samples (B,) bool whose plan stays when the queries are moved by more than rounding moves them."""
        inputs = self.base.prepare(self.read(*given))
        trace = fixed.pruned.trace(inputs)
        assert trace is not None, "fixed counts are planned from a trace"
        own = fixed_plan(fixed.pruned.method.order(trace, fixed.counts), fixed.counts, self.tokens).lifetime
        clear = torch.ones(len(own), dtype=torch.bool)
        for _ in range(MOVES):
            queries = [each + MOVED * each * torch.randn(each.shape, generator=generator) for each in trace.queries]
            order = fixed.pruned.method.order(replace(trace, queries=tuple(queries)), fixed.counts)
            clear &= (fixed_plan(order, fixed.counts, self.tokens).lifetime == own).all(1)
        return clear


def check_model(pruned: PrunedModel) -> None:
    """Raises UserError for a model that no file can hold."""
    if isinstance(pruned, FrozenModel):
        raise UserError("a frozen model runs on kernels that no other runtime has: export the model that was frozen")
    method = pruned.method
    if not (isinstance(method, Dense) or method.takes_counts):
        raise UserError(f"{method.title} has no graph in which every input keeps as many tokens a layer: {SERVE}")
    networks = [pruned.base, *([pruned.approx.backbone] if pruned.approx is not None else [])]
    for network in networks:
        network.check()
        training = [name or "the model" for name, each in network.model.named_modules() if each.training]
        if training:
            raise UserError(f"{training[0]} is in training mode, a file is for inference: call model.eval()")
    weight = next(pruned.base.parameters())
    if weight.dtype != torch.float32 or not weight.is_cpu:
        raise UserError(f"the model is {weight.dtype} on {weight.device}: export a copy, model.float().cpu()")


def check_tokens(base: Backbone, tokens: int | None) -> int:
    """The length that inputs have in a graph, None: the longest. Raises UserError for a length out of range."""
    if tokens is None:
        return base.tokens
    if not base.may_pad:
        raise UserError(f"tokens={tokens} has no effect on images, which have {base.tokens}: leave it out")
    if not 2 <= tokens <= base.tokens:
        raise UserError(f"tokens={tokens} is out of range: texts have 2 to {base.tokens} tokens here")
    return tokens
