"""How much of a sweep is left: in stages, of which jobs share some and find others done, and in seconds.

What a stage takes is known of those that were made: an artifact notes its seconds and the settings that made it. Two
jobs are taken to share a stage where the settings agree that it depends on; the stages themselves look closer, at data
and code, so that this can only be wrong about time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from sttabt.errors import UserError
from sttabt.settings import TRAININGS, Settings, method_settings
from sttabt.settings.budget import ASKED
from sttabt.settings.dataset import PLACES
from sttabt.settings.run import PRECISIONS, SPLITS
from sttabt.store.artifacts import RECORD, read_record

ASKED_BY = {"budget": "prune", "timing": "evaluate"}  # stages that `remake` names by another's name


class Work(NamedTuple):
    """A stage to make. key: the settings that it depends on; kind: what takes as long; epochs: 1 where none trains."""

    stage: str
    key: str
    kind: tuple[str, ...]
    epochs: int


class Forecast:
    """Of the jobs of one sweep, in their order."""

    def __init__(self, jobs: Sequence[Settings]) -> None:
        self.needs = [work_of(job) for job in jobs]
        self.roots = {Path(job.paths.artifacts) for job in jobs}
        self.seconds: dict[Path, tuple[Work, float]] = {}  # by record
        self.first: tuple[float, int] | None = None
        self.written: dict[Path, int] = {}  # when, by record
        self.before: dict[Path, int] = {}  # as `written` at the start
        self.look()
        self.before = dict(self.written)
        self.remade = {
            work.key
            for job, works in zip(jobs, self.needs, strict=True)
            for work in works
            if ASKED_BY.get(work.stage, work.stage) in job.remake
        }

    def look(self) -> None:
        """Read what has been made since."""
        stages = {work.stage for works in self.needs for work in works}
        for path in (path for root in self.roots for stage in stages for path in root.glob(f"{stage}/*/{RECORD}")):
            with suppress(FileNotFoundError):  # it is being made again
                written = path.stat().st_mtime_ns
                if self.written.get(path) != written and (found := _made(path)) is not None:
                    self.seconds[path], self.written[path] = found, written

    @property
    def made(self) -> set[str]:
        """The keys of stages that need not be made: those asked for by `remake` have been since the start."""
        return {work.key for path, (work, _) in self.seconds.items() if work.key not in self.remade or self._new(path)}

    def _new(self, path: Path) -> bool:
        return self.before.get(path) != self.written[path]

    def plan(self) -> str:
        """`1 of 2 base, 3 of 6 prune are done already`; what is not done at all is not named."""
        total = {work.key: work.stage for works in self.needs for work in works}
        stages = Counter(total.values())
        made = self.made
        done = Counter(stage for key, stage in total.items() if key in made)
        return ", ".join(f"{done[stage]} of {count} {stage}" for stage, count in stages.items() if done[stage])

    def left(self, ended: Iterable[int], elapsed: float, lanes: int) -> tuple[float, str]:
        """Seconds until all is done, and which stages these lack, as none like them has been made yet: `6 prune`.

        ended: the numbers of jobs, from 0. elapsed: seconds since the first began; lanes: jobs beside each other.
        """
        self.look()
        gone = set(ended)
        rest = [works for number, works in enumerate(self.needs) if number not in gone]
        made = self.made
        missing = {work.key: work for works in rest for work in works if work.key not in made}
        known = {key: self._seconds(work) for key, work in missing.items()}
        lacking = Counter(missing[key].stage for key, seconds in known.items() if seconds is None)
        work = sum(seconds for path, (_, seconds) in self.seconds.items() if self._new(path))
        seconds = (sum(filter(None, known.values())) + self._beside(elapsed, work, len(gone), lanes) * len(rest)) / min(
            lanes, max(len(rest), 1)
        )
        return seconds, ", ".join(f"{count} {stage}" for stage, count in lacking.items())

    def _beside(self, elapsed: float, work: float, gone: int, lanes: int) -> float:
        """Seconds that a job takes beside its stages."""
        if lanes > 1:
            return max(0.0, elapsed * lanes - work) / (gone + (lanes - 1) / 2)  # of those that run now, half is done
        if not self.first:  # that one has loaded torch for all that follow
            self.first = elapsed - work, gone
        others = gone - self.first[1]
        return max(0.0, elapsed - work - self.first[0]) / others if others else 0.0

    def _seconds(self, work: Work) -> float | None:
        """As those of its kind took, else any of its stage, else an epoch of any training of that model."""
        made = [one for one in self.seconds.values() if (one[0].epochs > 0) == (work.epochs > 0)]
        same_model = [one for one in made if one[0].kind[1:3] == work.kind[1:3]]
        for alike in (
            [one for one in same_model if one[0].kind == work.kind],
            [one for one in same_model if one[0].stage == work.stage],
            [one for one in same_model if one[0].stage in TRAININGS and work.stage in TRAININGS],
        ):
            if alike:
                return median(seconds / max(one.epochs, 1) for one, seconds in alike) * max(work.epochs, 1)
        return None


def work_of(job: Settings) -> list[Work]:
    """The stages of a job that leave artifacts, in their order."""
    stages = ["base"]
    if job.sparsity.reads_approximation:
        stages += [*(["general"] if job.approx.start == "general" else []), "approx"]
    if job.sparsity.trains:
        stages.append("prune")
    if job.budget.asked:
        stages.append("budget")
    if "evaluate" in job.stages:
        stages += ["evaluate", *(["timing"] if job.evaluation.timing_rounds else [])]
    else:
        stages = [stage for stage in stages if stage in job.stages or (stage == "budget" and "prune" in job.stages)]
    values = asdict(job)
    return [_work(stage, values, stages) for stage in stages]


def _work(stage: str, values: Mapping[str, Any], stages: Sequence[str]) -> Work:
    """values: all settings of a job; stages: those that it goes through, as far as it is known."""
    model, data, sparsity = values["model"], values["dataset"], values["sparsity"]
    parts: list[Any] = [stage, model, {name: value for name, value in data.items() if name not in PLACES}]
    parts += [values[name] for name in ("seed", "fast_dev_run", "trainer", "callbacks")]
    parts += [values["hardware"][name] for name in ("batch_size", "accumulate_grad_batches", "precision")]
    if stage != "base" and "approx" in stages:
        parts.append(values["approx"])
    own = [sparsity["method"]] if stage in ("prune", "budget", "evaluate", "timing") else []
    if own:
        budget = values.get("budget", {})  # earlier artifacts have none
        method = method_settings(*own)
        found = method.found_by_budget() if any(budget.get(name) for name in ASKED) else ()
        said = {name: each for name, each in method.said(sparsity).items() if name not in found}
        parts.append([budget if found else {}, said])
    if stage in ("evaluate", "timing"):
        evaluation = values["evaluation"]
        parts.append([evaluation["batch_size"], evaluation["gallery"], values["name"]])
        # Earlier artifacts do not have them.
        parts.append([evaluation.get("split", SPLITS[0]), evaluation.get("precision", PRECISIONS[0])])
    if stage == "timing":
        parts.append(values["evaluation"])
    kind = (stage, model["name"], data["name"], *own)
    node: Any = values
    for name in TRAININGS.get(stage, "").split("."):
        node = node.get(name, {}) if name else {}
    return Work(stage, json.dumps(parts, sort_keys=True, default=str), kind, node.get("epochs", 1))


def _made(path: Path) -> tuple[Work, float] | None:
    """What a record says was made, and in how many seconds; None for one that does not say so."""
    stage = path.parents[1].name
    try:
        record = read_record(path)
        has_approx = stage in ("general", "approx") or "approx" in record["description"]
        return _work(stage, record["notes"]["settings"], ["approx"] * has_approx), record["notes"]["seconds"]
    except (UserError, KeyError, TypeError, AttributeError):
        return None  # damaged, or of another version: a job that needs it says so
