"""The result row: what one job measured, as one flat JSON file. This module owns the format."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from sttabt.report.older import OLDER, from_older
from sttabt.system.files import SHORT, read_regular, write_atomically

ROW_FILE = "row.json"
MOST_BYTES = 1 << 24  # of that file; it has some thousands
LONGEST_NUMBER = 30  # digits of a whole number
SCHEMA = 7
SINCE: dict[str, Any] = {"precision": "float32", "data": ""}  # fields that came since, what they are in rows without
DENSE = "dense"  # the method that all others are compared with
TIME_KEYS = ("batch_size", "rounds", "dense_ms", "ms", "ratio", "ratio_low", "ratio_high")
EMA_KEYS = ("score_soft", "occupancy", "macs")
FROZEN_KEYS = ("dense_frozen_ms", "ratio_frozen", "ratio_frozen_low", "ratio_frozen_high")  # all or none
VALIDATION_KEYS = ("score", "macs_share")
BUDGET_KEYS = ("asked", "reached")
FOUND = "found."  # what a setting's name follows in `budget`
BUDGETS = ("macs_share", "time_ratio", "time_ratio_frozen")  # costs of a row that a budget may be of
APPROX_KEYS = ("kl", "mse", "kl_random", "mse_random", "kl_interpolated", "mse_interpolated")


@dataclass(frozen=True)
class Metric:
    """What a reader calls a metric, the unit of 100 times its value, and the lowest value; the highest is 1."""

    title: str
    unit: str
    lowest: float


METRICS = {
    "accuracy": Metric("accuracy", "%", 0.0),
    "top5": Metric("top-5 accuracy", "%", 0.0),
    "f1": Metric("F1", "%", 0.0),
    "matthews": Metric("Matthews correlation", "x 100", -1.0),
    "pearson": Metric("Pearson correlation", "x 100", -1.0),
    "spearman": Metric("Spearman correlation", "x 100", -1.0),
}

Setting = float | int | bool | str | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured model: where it comes from, what it is, how good it is and what it costs.

    Raises:
        ValueError: a field has the wrong type, a number is not finite, a metric is unknown, a score or a share is out
            of its range, the knob is none of the settings, or `time`, `approx`, `ema`, `validation` or `budget` lacks a
            key.
    """

    schema: int = SCHEMA
    experiment: str
    sweep: str  # id of the sweep that ran the job
    config_hash: str
    command: str  # the command line that reproduces the row
    commit: str
    version: str  # of the package
    seed: int
    device: str
    threads: int
    dataset: str
    split: str
    samples: int  # images or texts scored
    model: str
    method: str
    label: str  # the method's name for readers, e.g. `back-tracking (approximate attention)`
    knob: str | None  # the one of `settings` that moves along the method's curve
    factor: int | None  # how many times narrower the approximate network is
    settings: dict[str, Setting]  # all of the method's, flat: `training.epochs`; lists as `18 10 4`
    # BUDGET_KEYS: share of the dense cost asked for, and reached where it was found (validation, or at the time);
    # found.NAME: settings that were found for it, as `settings` has them
    budget: dict[str, float] | None
    budget_of: str | None  # of BUDGETS
    parameters: int
    metric: str  # of METRICS: what the four scores are
    score: float  # of the dropped engine, in [0, 1], correlations in [-1, 1]
    score_soft: float | None
    score_masked: float | None
    score_ema: float | None  # of the dropped engine, with averaged weights; `ema` has the rest
    other_scores: dict[str, float]  # of the dropped engine, by other metrics of METRICS
    loss: float
    validation_loss: float | None  # that choices go by; of methods that train, the deployed model's as `loss` is
    validation: dict[str, float] | None  # VALIDATION_KEYS: of the same model, as `score` and `macs_share`
    occupancy: float  # mean over the L+1 boundaries of the share of real tokens alive
    occupancy_by_boundary: list[float]  # L+1 shares
    occupancy_padded: float | None  # the paper's keep ratio of texts, over padded positions: for overlays alone
    macs: dict[str, float]  # part -> multiply-adds a sample
    ema: dict[str, float] | None  # EMA_KEYS: with averaged weights, whose masks are others; macs of all parts
    macs_dense: float  # multiply-adds a sample of the dense model, without padding
    # TIME_KEYS: medians a batch in ms, ratio = median over rounds, with its quartiles; parts of it, as planning_ratio;
    # FROZEN_KEYS: the same beside the frozen dense model, which runs every token in the kernels of the pruned one;
    # single_...: one sample at a time
    time: dict[str, float] | None
    time_baseline: str | None  # the dense run behind `ratio`: batch (padded, for texts) | unpadded; the faster one
    data: str = ""  # how a hash of the test data begins; "": not known
    precision: str = "float32"  # of evaluation: float32 | tf32 | bf16
    left_to_torch: list[str] = field(default_factory=list)  # parts of the frozen model, each with the reason
    approx: dict[str, float] | None  # APPROX_KEYS: distance of the approximate attention from the base model's
    seconds: dict[str, float]  # stage -> wall seconds
    folder: Path | None = field(default=None, compare=False)  # where the row was read; not part of the file

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema is {SHORT.repr(self.schema)}, this version reads {SCHEMA}")
        for name, hint in _hints().items():
            if not _fits(getattr(self, name), hint):
                kind = getattr(hint, "__name__", hint)
                raise ValueError(f"{name} is {SHORT.repr(getattr(self, name))}, which is not {kind}")
        for metric in (self.metric, *self.other_scores):
            if metric not in METRICS:
                raise ValueError(f"metric is {metric!r}, which is none of {', '.join(METRICS)}")
        lowest = METRICS[self.metric].lowest
        shares = [(name, getattr(self, name), 0.0) for name in ("occupancy", "occupancy_padded")]
        scores = [(name, getattr(self, name), lowest) for name in ("score", "score_soft", "score_masked", "score_ema")]
        others = [(f"other_scores.{name}", value, METRICS[name].lowest) for name, value in self.other_scores.items()]
        if self.validation is not None:
            scores.append(("validation.score", self.validation.get("score"), lowest))
        for name, value, low in (*scores, *others, *shares):
            if value is not None and not low <= value <= 1:
                raise ValueError(f"{name} is {value!r}, which is not in [{low:g}, 1]")
        if not self.macs_dense > 0:
            raise ValueError(f"macs_dense is {self.macs_dense!r}, which is not above 0")
        if not math.isfinite(self.macs_share):
            raise ValueError(f"macs of {self.macs_total:g} are no share of macs_dense {self.macs_dense:g}")
        if self.knob is not None and self.knob not in self.settings:
            raise ValueError(f"knob is {self.knob!r}, which is none of the settings: {', '.join(self.settings)}")
        if (self.budget is None) != (self.budget_of is None) or self.budget_of not in (None, *BUDGETS):
            raise ValueError(f"budget_of is {self.budget_of!r}, where a budget is of one of {', '.join(BUDGETS)}")
        if missing := set(self.found) - set(self.settings):
            raise ValueError(f"budget has found {', '.join(sorted(missing))}, which is none of the settings")
        required = {"time": TIME_KEYS, "approx": APPROX_KEYS, "ema": EMA_KEYS, "validation": VALIDATION_KEYS}
        required["budget"] = BUDGET_KEYS
        for name, keys in required.items():
            value = getattr(self, name)
            if value is not None and (missing := set(keys) - set(value)):
                raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
        for prefix in ("", "single_"):
            missing = {f"{prefix}{key}" for key in FROZEN_KEYS} - set(self.time or ())
            if 0 < len(missing) < len(FROZEN_KEYS):
                raise ValueError(f"time lacks {', '.join(sorted(missing))}")

    @property
    def knob_value(self) -> Setting:
        """Where the row is on its method's curve; None where nothing moves along it."""
        return None if self.knob is None else self.settings[self.knob]

    @property
    def found(self) -> list[str]:
        """Settings that were found for a budget: they differ from seed to seed."""
        return [name.removeprefix(FOUND) for name in self.budget or {} if name.startswith(FOUND)]

    @property
    def macs_total(self) -> float:
        """Multiply-adds a sample, all parts."""
        return sum(self.macs.values())

    @property
    def macs_share(self) -> float:
        """Multiply-adds as a share of the dense model's."""
        return self.macs_total / self.macs_dense

    @property
    def time_ratio(self) -> float | None:
        """Measured time as a share of the dense model's; None where timing was off."""
        return self.time["ratio"] if self.time else None

    @property
    def single_time_ratio(self) -> float | None:
        """As `time_ratio`, of samples that come one at a time; None where that was not measured."""
        return (self.time or {}).get("single_ratio")

    @property
    def time_ratio_frozen(self) -> float | None:
        """Measured time as a share of the frozen dense model's; None where that was not measured."""
        return (self.time or {}).get("ratio_frozen")

    @property
    def single_time_ratio_frozen(self) -> float | None:
        """As `time_ratio_frozen`, of samples that come one at a time."""
        return (self.time or {}).get("single_ratio_frozen")

    def to_dict(self) -> dict[str, Any]:
        """The fields of the file, in its order."""
        values = asdict(self)
        del values["folder"]
        return values

    def write(self, path: str | Path) -> None:
        """Writes the row; a killed process leaves no half-written file."""
        write_atomically(Path(path), (json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n").encode())

    @classmethod
    def read(cls, path: str | Path) -> Row:
        """Reads a row.

        Raises:
            ValueError: the file is truncated, damaged, foreign or no regular file; the text says what is wrong.
            OSError: it is not there or cannot be read.
        """
        try:
            text = read_regular(Path(path), MOST_BYTES).decode("utf-8")
            values = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
            return cls.from_dict(values, Path(path).parent)
        except json.JSONDecodeError as error:
            raise ValueError(f"it is no JSON, or cut off: {error}") from error
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error

    @classmethod
    def from_dict(cls, values: object, folder: Path | None) -> Row:
        """A row of this schema or an older one from what a file holds. Raises ValueError as `read` does."""
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        if values.get("schema") in OLDER:
            values = from_older(values, SCHEMA)
        values = SINCE | values
        names = {each.name for each in fields(cls)} - {"folder"}
        for problem, found in (("lacks", names - set(values)), ("has unknown", set(values) - names)):
            if found:
                raise ValueError(f"it {problem} {', '.join(sorted(found))}")
        return cls(**values, folder=folder)


def with_times(row: Row, notes: Mapping[str, Any]) -> Row:
    """The row with times that were measured apart from it, as `time` and `baseline`.

    Raises:
        ValueError: they are not what a row of this version says of time.
    """
    if missing := {"time", "baseline"} - set(notes):
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return replace(row, time=notes["time"], time_baseline=notes["baseline"])


@cache
def _hints() -> dict[str, Any]:
    """The types of a row's fields."""
    return get_type_hints(Row)


def _fits(value: object, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_fits(value, each) for each in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, str) and _fits(v, arguments[1]) for k, v in value.items())
    if hint in (int, float):
        number = isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]  # not of infinities and NaN
    if isinstance(value, str):
        return hint is str and not any("\ud800" <= sign <= "\udfff" for sign in value)  # which UTF-8 cannot say
    return isinstance(value, hint)


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds a number that is not finite: {text[:LONGEST_NUMBER]}")
    return number
