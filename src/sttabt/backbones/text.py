"""What text classifiers of Hugging Face transformers have in common: how they are built, called, and answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from sttabt.backbones.base import Backbone, Finish
from sttabt.backbones.inputs import (
    TEXT_REMEDY,
    check_rows,
    check_text,
    check_text_numbers,
    in_graph,
    unreadable_text,
)
from sttabt.backbones.transformers_calls import answer_of, bound_arguments, configuration_of, refuse_others
from sttabt.core.text import MeasuredText, Text
from sttabt.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

EXAMPLE_SIZES = {"vocab_size": 60, "max_position_embeddings": 24, "num_labels": 5}  # of models for tests
READ = ("input_ids", "attention_mask", "token_type_ids", "labels", "return_dict")  # arguments of a call


class TextBackbone(Backbone):
    """Wraps a live transformers module, so that its weights, its own forward and its state names stay usable.

    Inputs are `Text`. A file of one more family says which class and configurations it serves, how its files name
    their heads, and computes the steps of a layer. Raises UserError for a variant whose computation it would not
    reproduce.
    """

    model_type: ClassVar[str]  # of the library's configurations that are served
    pretraining_heads: ClassVar[tuple[str, ...]] = ()  # what the names of a pretraining head's weights begin with
    pooler: ClassVar[frozenset[str]] = frozenset()  # names of the weights that a file without a classifier may lack
    answers: ClassVar[str] = "logits"
    head_prefixes: tuple[str, ...] = ("classifier.",)
    may_pad = True
    outputs = 1

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        config = model.config
        wrong = config.model_type != self.model_type
        problems = {f"model_type={config.model_type!r} instead of {self.model_type!r}": wrong}
        found = [what for what, present in (problems if wrong else self.problems()).items() if present]
        if found:
            raise UserError(f"this text model cannot be pruned: it has {', '.join(found)}")
        self.check()

    @classmethod
    def library(cls) -> type[PreTrainedModel]:
        """The library's class."""
        module, _, name = cls.serves[0].rpartition(".")
        return getattr(import_module(module), name)

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> Self:
        """Random weights, fused attention."""
        return cls(cls.library()._from_config(config, attn_implementation="sdpa"))

    def configuration(self) -> dict[str, Any]:
        """As transformers' config.json."""
        return configuration_of(self.model)

    @classmethod
    def rebuilt(cls, configuration: Mapping[str, Any]) -> Self:
        kind: Any = cls.library().config_class
        return cls.from_config(kind.from_dict(dict(configuration)))

    @abstractmethod
    def problems(self) -> Mapping[str, bool]:
        """What this adapter would not reproduce, and whether the model has it."""

    @property
    def tokens(self) -> int:
        return self.model.config.max_position_embeddings

    @property
    def grid(self) -> tuple[int, int]:
        return 0, 0

    @property
    def token_types(self) -> int:
        """Rows of the table of token types; 0 where types are not read."""
        return self.model.config.type_vocab_size

    def real(self, inputs: Text) -> Tensor:
        return inputs.real

    def lengths(self, inputs: Text) -> Sequence[int]:
        return _measured(inputs) or super().lengths(inputs)

    def check_inputs(self, inputs: Any) -> None:
        """In a graph no numbers are looked at; on a device `prepare` does it."""
        check_text(inputs, self.tokens)
        if not (inputs.ids.is_cuda or in_graph(inputs.ids)):
            self.check_numbers(inputs)

    def check_numbers(self, inputs: Text) -> None:
        check_text_numbers(inputs, self.model.config.vocab_size, self.token_types)

    def unreadable(self, inputs: Text) -> Tensor | None:
        if not inputs.ids.is_cuda or in_graph(inputs.ids) or _measured(inputs):
            return None
        return unreadable_text(inputs, self.model.config.vocab_size, self.token_types)

    def prepare(self, inputs: Text) -> Text:
        """On a device with the lengths, in one copy to the host, which also says whether the numbers can be read.

        A place behind a table's end would end the process there. Raises UserError as `check_numbers`.
        """
        if (unreadable := self.unreadable(inputs)) is None:
            return inputs
        *lengths, refused = torch.cat([inputs.real.sum(-1), unreadable.any()[None]]).tolist()
        if refused:
            self.check_numbers(inputs)
        return MeasuredText.of(inputs, lengths)

    def read_call(self, *args: Any, **kwargs: Any) -> tuple[Text, Finish]:
        """As the library's model is called: ids (B, N), mask and token types by position or by name, labels, or a Text.

        Gives what the library gives: a SequenceClassifierOutput, with the loss where there are labels, or a tuple with
        return_dict=False. Without a mask all tokens are real. Raises UserError for a mask with padding in front of a
        text or inside it, and naming any other argument that is given.
        """
        self.check_call()
        given = bound_arguments(type(self.model), args, kwargs)
        ids, mask, types, labels, return_dict = (given.pop(name, None) for name in READ)
        refuse_others(given, self.model.config)
        if isinstance(ids, Mapping):
            raise UserError("a pruned model of text reads an encoding by its names: call model(**encoding)")
        if not isinstance(ids, Tensor | Text):
            raise UserError(
                f"a pruned model of text reads input_ids, a tensor, not a {type(ids).__name__}: give what a tokenizer"
                ' gives with return_tensors="pt", model(**encoding)'
            )
        if isinstance(ids, Text):
            if mask is not None or types is not None:
                raise UserError("input_ids is a Text: leave attention_mask and token_type_ids out")
            inputs = ids
        else:
            types = torch.zeros_like(ids) if types is None else types
            # One row of types may stand for all.
            types = types.expand_as(ids) if types.shape[-1:] == ids.shape[-1:] and types.ndim == 2 else types
            inputs = Text(ids, types, real_tokens(ids, mask))
        return inputs, lambda logits: self._answer(logits, labels, return_dict)

    def _answer(self, logits: Tensor, labels: Tensor | None, return_dict: bool | None) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        config = self.model.config
        loss = None
        if labels is not None:
            loss = self.model.loss_function(labels=labels, pooled_logits=logits, config=config)
        return answer_of(SequenceClassifierOutput(loss=loss, logits=logits), config, return_dict)


def real_tokens(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Which tokens a mask says are real, (B, N) bool; None: all.

    Raises UserError unless each text has a token, and stands whole in front of its padding; on a device the model does.
    """
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.shape != ids.shape:
        raise UserError(f"attention_mask has the shape {tuple(mask.shape)}, not {tuple(ids.shape)} as input_ids")
    if ids.ndim != 2:
        raise UserError(f"input_ids: the shape {tuple(ids.shape)} is not (B, tokens): {TEXT_REMEDY}")
    real = mask.bool()
    if not real.is_cuda:  # whose numbers are looked at together, when the model runs
        check_rows(real)
    return real


def example_text(lengths: tuple[int, ...] = (9, 2, 13, 6)) -> Text:
    """Texts of these lengths, of two parts each, the same each time; what stands on padding is as arbitrary."""
    generator = torch.Generator().manual_seed(5)
    shape = (len(lengths), max(lengths))
    ids = torch.randint(1, EXAMPLE_SIZES["vocab_size"], shape, generator=generator)
    real = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    types = (torch.arange(shape[1]) >= torch.tensor(lengths)[:, None] // 2).long()
    return Text(ids, types, real)


def _measured(inputs: Text) -> Sequence[int]:
    """The lengths that `prepare` found; () where it was not asked."""
    return (inputs.lengths or ()) if isinstance(inputs, MeasuredText) else ()
