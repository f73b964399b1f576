"""What the engines need from a transformer encoder. N tokens, D width, H heads, L layers, T rows of any layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from torch import Tensor, nn

from sttabt.backbones.layers import EncoderLayer
from sttabt.backbones.repeated import Repeated, check_repeated, has_hooks
from sttabt.core.cost import Architecture
from sttabt.errors import UserError

Finish = Callable[[Tensor], Any]  # from logits (B, classes) to what the library's model returns
Kind = TypeVar("Kind", bound="Backbone")
Rows = Callable[[Tensor], Tensor]  # picks the rows that a layer writes from those that it reads


class Example(NamedTuple):
    """A small model for tests, and what its tests need.

    inputs: a batch of four samples; factor: of its approximate network, which shares its stem or does not.
    """

    model: Backbone
    inputs: Any
    factor: int = 2
    share_stem: bool = False


class Backbone(nn.Module, ABC):
    """An encoder cut into the steps between which tokens can go.

    Rows stand in the last but one dimension: (B, N, D), or (T, D) when samples of different length are packed.
    The first `outputs` tokens are never dropped; they are those that the head reads, unless it `pools` the others.

    An adapter of a library's model says in `serves` which classes it wraps, and `sttabt.backbones.adapt` finds it. Its
    file must import without the library, whose classes it imports where it needs them.
    """

    serves: ClassVar[tuple[str, ...]] = ()  # qualified names of library classes: "timm.models.deit.VisionTransformer"
    model: Any  # the library's own module
    answers: ClassVar[str] = ""  # entry of the library's output that is the result; "" where the output is the result
    head_prefixes: tuple[str, ...]  # what the names of the parameters that depend on the classes begin with, in `model`
    narrow_prefixes: tuple[str, ...] = ()  # as well, of parameters that a narrow copy does not take over
    architecture: Architecture
    outputs: int
    may_pad: bool = False  # whether samples of a batch may differ in length
    pools: bool = False  # the head reads the tokens behind the first `outputs` that are left, and not these
    reads_survivors: bool = False  # the head reads every token that is left, so that the last layer writes them all
    embeds: bool = False  # gives a vector a sample, and no logits: nothing is to be predicted
    _checked: tuple[nn.Module, ...] = ()

    @classmethod
    def examples(cls) -> dict[str, Callable[[], Example]]:
        """Small models of this kind by name, random weights, on which sttabt.testing runs every method."""
        return {}

    def configuration(self) -> dict[str, Any]:
        """What `rebuilt` makes this encoder of, in the library's own form where it has one; what JSON can say."""
        raise UserError(f"a {type(self).__name__} cannot be saved: it has no configuration")

    @classmethod
    def rebuilt(cls, configuration: Mapping[str, Any]) -> Self:
        """The encoder of that configuration, random weights. Raises whatever a configuration that is none leads to."""
        raise UserError(f"a {cls.__name__} cannot be made of a configuration")

    @property
    def class_prefixes(self) -> tuple[str, ...]:
        """What the names of those parameters of the head begin with that have a row a class."""
        return self.head_prefixes

    @property
    def config(self) -> Any:
        """The library's configuration of the model; AttributeError where it has none (timm)."""
        return self.model.config

    @property
    def layers(self) -> int:
        return self.architecture.layers

    @property
    def heads(self) -> int:
        return self.architecture.heads

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens of a sample, class token included: of the model's own image size, or the most that a text may have."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of the model's own image size; (0, 0) for text."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the model is made for. Raises UserError where it reads none."""
        raise UserError(f"a {type(self).__name__} does not say which images it reads")

    def grid_of(self, inputs: Any) -> tuple[int, int]:
        """Rows and columns of patches of these inputs; raises UserError for images that the model does not take."""
        return self.grid

    def repeated(self) -> Iterable[Repeated]:
        """The modules of `model` whose forward the steps of this adapter repeat, so that it never runs."""
        return ()

    def check(self) -> None:
        """Raise UserError, by name, for hooks or another forward on a module whose forward does not run here.

        Norms, linear layers, dropouts, activations and embedding tables are called: they may have hooks.
        """
        checked = []
        for found in self.repeated():
            check_repeated(found)
            checked.append(found.module)
        self._checked = tuple(checked)

    def check_call(self) -> None:
        """As `check`, of what came since to the modules that were there: a few microseconds, for every call."""
        if any(map(has_hooks, self._checked)):
            self.check()

    def read_call(self, *args: Any, **kwargs: Any) -> tuple[Any, Finish]:
        """Inputs from what a call of `model` is given, and what makes of logits that which it returns.

        Raises UserError naming an argument that has no meaning for a pruned model.
        """
        if len(args) != 1 or kwargs:
            raise UserError(f"{type(self).__name__} is called with its inputs alone")
        return args[0], lambda logits: logits

    def check_inputs(self, inputs: Any) -> None:
        """Raise UserError, in one line, for inputs that the model cannot read.

        Numbers on a device are left to `unreadable`: looking at them here would wait for it.
        """

    def check_numbers(self, inputs: Any) -> None:
        """As `check_inputs`, of the numbers of inputs whose shapes and kinds are right, wherever they are."""

    def unreadable(self, inputs: Any) -> Tensor | None:
        """Which samples (B,) hold numbers that `check_numbers` would refuse, where `check_inputs` left them out."""
        return None

    def attention_dropout(self, layer: int) -> float:
        """Share of the attention probabilities that the layer drops at random now; 0 where it is not training."""
        return 0.0

    @abstractmethod
    def real(self, inputs: Any) -> Tensor:
        """Which tokens are real, (B, N) bool; False on padding."""

    def lengths(self, inputs: Any) -> Sequence[int]:
        """Real tokens of each sample, as the host knows them. Of images it does; a device is asked for those of texts,
        unless `prepare` has.
        """
        real = self.real(inputs)
        return real.sum(-1).tolist() if self.may_pad else (real.shape[1],) * real.shape[0]

    def prepare(self, inputs: Any) -> Any:
        """Inputs with what is computed of them whole, whichever tokens are kept: a convolutional stem's output.

        What it gives may stand for the inputs everywhere, so that several networks share it; preparing it again changes
        nothing.
        """
        return inputs

    def samples(self, inputs: Any) -> list[Tensor]:
        """What each sample of a batch is made of, without padding and whatever `prepare` added."""
        return list(inputs)

    @abstractmethod
    def embed(self, inputs: Any) -> Tensor:
        """All tokens, (B, N, D), as the first layer reads them."""

    @abstractmethod
    def embed_tokens(self, inputs: Any, sample: Tensor, token: Tensor) -> Tensor:
        """Only the tokens (sample[t], token[t]), (T, D): what no layer reads is not embedded."""

    @property
    def embeds_whole(self) -> bool:
        """Whether `embed_tokens` has to compute all tokens, whichever are kept: hooks or LoRA on the projection."""
        return False

    @abstractmethod
    def qkv(self, layer: int, x: Tensor, written: Rows | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the written rows, keys and values of all rows of x; width D each, heads not split."""

    @abstractmethod
    def queries_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys alone: all that a trace needs of a last layer."""

    @abstractmethod
    def project(self, layer: int, x: Tensor, attended: Tensor, gate: Tensor | None = None) -> Tensor:
        """Output projection and residual on the written rows x; `attended` has the width D of x.

        gate: a factor a row (..., 1) on the projection's output: soft masks (METHOD section 3).
        """

    @abstractmethod
    def feed_forward(self, layer: int, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Feed-forward and residual.

        gate: as in `project`, on the intermediate before its activation and on the output.
        """

    def finish(self, layer: int, x: Tensor, attended: Tensor, gate: Tensor | None = None) -> Tensor:
        """The rest of the layer on the written rows."""
        return self.feed_forward(layer, self.project(layer, x, attended, gate), gate)

    def encoder_layers(self) -> list[EncoderLayer] | None:
        """What the layers are made of, where each is a transformer layer as EncoderLayer says; else None."""
        return None

    @property
    def projects_whole(self) -> bool:
        """Whether `qkv` and `queries_keys` compute all outputs of all rows, whichever are wanted."""
        return False

    @property
    def attends_ragged(self) -> bool:
        """Whether attention, and sums over its rows, run on samples of unequal length without computing padding."""
        return False

    @abstractmethod
    def head(self, x: Tensor, alive: Tensor | None = None) -> Tensor:
        """Logits (B, classes) from what the last layer wrote, (B, n, D), the output tokens first.

        alive: (B, n) bool, which rows are tokens that are left; None for all. It matters to `reads_survivors` alone.
        """

    @abstractmethod
    def embeddings(self) -> list[nn.Parameter]:
        """What the paper's recipe freezes while it prunes: class token and position embedding; nothing of text."""

    @abstractmethod
    def narrow(self, factor: int, share_stem: bool = False) -> Backbone:
        """A new encoder of the same depth and heads, `factor` times narrower, with random weights; dtype and device
        are this one's.

        share_stem: where this one has a convolutional stem, read what `prepare` gives of it, instead of owning a
        narrow one.
        Raises UserError when the factor does not divide the width of a head.
        """

    def parts(self, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Values by parameter name of `model` (by default its state), fused projections taken apart into views.

        What an interpolated start resizes one by one, and what files name one by one.
        """
        return dict(self.model.state_dict() if values is None else values)


def check_factor(sizes: Architecture, factor: int) -> None:
    """Raise UserError unless `factor` divides the width of a head."""
    if factor < 1 or sizes.width % (factor * sizes.heads):
        raise UserError(
            f"approx.factor={factor} does not divide the width of a head ({sizes.width}/{sizes.heads}"
            f" = {sizes.width // sizes.heads}): choose a divisor of {sizes.width // sizes.heads}"
        )


def like_weights(narrow: Kind, weights: nn.Module) -> Kind:
    """A new encoder with the dtype and on the device of these weights."""
    first = next(weights.parameters())
    return narrow.to(first.device, first.dtype)
