"""What the settings of every method have, and what they say about it without importing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from sttabt.settings.fields import MISSING, SHARE, SHARE_BELOW_ONE, at_least, describe, initial, setting
from sttabt.settings.schedules import ScheduleSettings, read_schedules
from sttabt.settings.training import TrainingSettings

TUNED = ", fine-tuned"  # behind a method's title
LAST = 100  # the place of methods that other packages bring


@dataclass
class MethodSettings:
    """The settings of a method. A class of them says what readers are told about the method."""

    title: ClassVar[str]  # what readers call it
    source: ClassVar[str]  # the paper and its section
    implementation: ClassVar[str]  # "package.module:Class" of the Method, which is imported when a job runs it
    colour: ClassVar[str] = ""  # of its curve, "#RRGGBB"; "": the figure chooses
    order: ClassVar[int] = LAST  # its place in tables
    computation: ClassVar[int] = 1  # rises when the same settings give other numbers: results are made again then

    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)  # settings at which sttabt.testing runs the method
    rising: ClassVar[tuple[Any, ...]] = ()  # values of the knob from few tokens to many, for the same tests

    at_budget: ClassVar[dict[str, Any]] = {}  # settings that a budget gives beside its dial, for smaller steps of cost
    asks_network: ClassVar[bool] = False  # whether the approximate network's own prediction may be the answer
    kept_by: ClassVar[str] = ""  # the setting that says how many tokens are kept, which a schedule `keep` moves

    method: str = setting(MISSING, "the method's name")

    @property
    def label(self) -> str:
        """What readers call it in tables and figures."""
        return self.title

    @classmethod
    def labels(cls) -> dict[str, str]:
        """Every label that it can have, with the colour of the curve."""
        return {cls.title: cls.colour}

    def check_model(self, layers: int, tokens: int | None = None) -> None:
        """Raises UserError for settings that a model of so many layers, and so many tokens a sample, cannot keep."""

    @property
    def trains(self) -> bool:
        """Whether the stage prune trains it."""
        return False

    @property
    def reads_approximation(self) -> bool:
        """Whether it reads the approximate network's attention, as its `Method.attention` says."""
        return False

    @property
    def knob(self) -> tuple[str, Any] | None:
        """Name and value of the setting that moves it along its curve; None where none does."""
        name = self.knob_name()
        return None if name is None else (name, getattr(self, name))

    @classmethod
    def own_names(cls) -> list[str]:
        """Its settings beside `method` and how it trains: those that `sttabt.prune` takes."""
        common = {each.name for each in fields(TrainedSettings)}
        return [each.name for each in fields(cls) if each.name not in common]

    @classmethod
    def said(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of it by name, without those declared `late` that are as ever: older artifacts do not have them."""
        as_ever = {each.name: initial(each) for each in fields(cls) if describe(each).late}
        return {name: each for name, each in values.items() if name not in as_ever or each != as_ever[name]}

    @classmethod
    def in_words(cls, values: Mapping[str, Any]) -> list[str]:
        """For readers: settings of it by name, plain as JSON keeps them, but for `method` and the training's own."""
        own = {name: each for name, each in cls.said(values).items() if name not in ("method", "training", "schedules")}
        schedules = {name: ScheduleSettings(**each) for name, each in values.get("schedules", {}).items()}
        return [f"{name} {each}" for part in (own, schedules) for name, each in part.items()]

    @classmethod
    def knob_name(cls) -> str | None:
        """The setting that is declared with `knob=True`."""
        return next((declared.name for declared in fields(cls) if describe(declared).knob), None)

    @classmethod
    def dial_name(cls) -> str | None:
        """The setting that a budget finds for the model that is there: declared with `dial=True`, else the knob."""
        return next((declared.name for declared in fields(cls) if describe(declared).dial), cls.knob_name())

    @classmethod
    def found_by_budget(cls) -> tuple[str, ...]:
        """Settings that cannot be given beside a budget."""
        return tuple(dict.fromkeys(name for name in (cls.knob_name(), cls.dial_name()) if name))


def _trains(settings: Any, _: str) -> str | None:
    return None if settings.sparsity.trains else "sparsity.training.epochs=0 trains nothing"


@dataclass
class TrainedSettings(MethodSettings):
    """What the settings of every method have that trains with the base weights."""

    distillation: float = setting(
        0.0, "weight of the divergence from the frozen base model's prediction; 0: off", at_least(0), when=_trains
    )
    hard_from: float = setting(
        1.0,
        "share of the epochs after which training drops tokens and the choice is frozen; 1: never",
        SHARE,
    )
    ema: float = setting(
        0.0,
        "decay a weight update of averaged weights, which are evaluated beside the last ones; 0: none",
        SHARE_BELOW_ONE,
        when=_trains,
    )
    schedules: dict[str, Any] = setting(
        {},
        "by its name, or `keep`: how a setting gets to its own value while the stage prune trains; every evaluation has"
        " the own value",
        late=True,
    )
    training: TrainingSettings = setting(TrainingSettings, "how the stage prune trains")

    def __post_init__(self) -> None:
        """Schedules may be given plain, as yaml files and artifacts have them."""
        self.schedules: dict[str, ScheduleSettings] = read_schedules(self.schedules)

    @property
    def trains(self) -> bool:
        return True

    @property
    def kept_setting(self) -> str:
        """`kept_by`, of a method whose settings decide which one that is."""
        return self.kept_by

    def for_kept(self, share: float) -> float:
        """The value of `kept_setting` that stands for a share of tokens. Raises UserError where none does."""
        return share

    def aimed(self, value: Any, kept: float) -> Self:
        """The settings to train with for a budget, which the untrained model keeps with its dial at `value`.

        kept: the share of real tokens that its layers write then, mean over layers.
        """
        return replace(self, **{self.dial_name() or "": value})


@dataclass
class TunedSettings(TrainedSettings):
    """What the settings of every method have that has no weights of its own, but whose base weights can be tuned."""

    hard_from: float = setting(
        0.0,
        "share of the epochs after which training drops tokens; it always does",
        SHARE,
        when=lambda settings, path: "it has no soft run: training drops tokens from the first epoch on",
    )

    @property
    def trains(self) -> bool:
        return self.training.epochs not in (0, MISSING)

    @property
    def untuned_label(self) -> str:
        """The label with the base weights as they are."""
        return self.title

    @classmethod
    def untuned_labels(cls) -> dict[str, str]:
        """As `labels`, with the base weights as they are."""
        return {cls.title: cls.colour}

    @property
    def label(self) -> str:
        return f"{self.untuned_label}{TUNED}" if self.trains else self.untuned_label

    @classmethod
    def labels(cls) -> dict[str, str]:
        return {f"{label}{tuned}": colour for label, colour in cls.untuned_labels().items() for tuned in ("", TUNED)}
