"""What a search over settings shares between its trials, and where its study is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sttabt.cli.checks import leaves
from sttabt.cli.sweep import assignments
from sttabt.errors import UserError
from sttabt.search.space import WHERE, Space, describe
from sttabt.settings import TRAININGS, Settings, update_size
from sttabt.store.artifacts import fingerprint
from sttabt.version import __version__

# Settings that decide where and how fast a trial runs, not what it gives.
WITHOUT_RESULT = (
    *("paths", "logger", "evaluation", "stages", "resume", "remake", "skip_approx"),
    *(f"hardware.{name}" for name in ("accelerator", "workers", "threads", "compile")),
    *(
        f"hardware.{name}" for name in ("devices", "nodes", "batch_size", "accumulate_grad_batches")
    ),  # as samples an update, below
)


@dataclass(frozen=True)
class Plan:
    """fixed: the overrides of every trial; settings: of one trial, to read from what all share."""

    fixed: list[str]
    settings: Settings
    space: Space
    sampler: str
    seed: int

    @property
    def made_of(self) -> dict[str, Any]:
        """What decides the trials and their results, in a form that JSON keeps."""
        values, sparsity = asdict(self.settings), self.settings.sparsity
        held = {
            key: value
            for key, value in leaves(values | {"sparsity": sparsity.said(values["sparsity"])})
            if key not in self.space and not any(f"{key}.".startswith(f"{node}.") for node in WITHOUT_RESULT)
        }
        searched = {f"{WHERE}.{key}": domain for key, domain in describe(self.space).items()}
        held |= {f"update.{stage}": update_size(self.settings, stage) for stage in TRAININGS}
        drawn = {"hydra.sweeper.sampler": self.sampler, "hydra.sweeper.seed": self.seed}
        return {**searched, **drawn, **held, "version": __version__}


def study_file(storage: str, plan: Plan) -> Path:
    """Where the study is: `hydra.sweeper.storage`, or a file beside the artifacts, found by what it is made of."""
    if "://" in storage:
        raise UserError(
            f"hydra.sweeper.storage={storage} is no file: give one, e.g. study.journal or study.db (SQLite)"
        )
    if storage:
        return Path(storage).absolute()
    return Path(plan.settings.paths.artifacts) / "search" / fingerprint(plan.made_of) / "study.journal"


def overrides(values: Mapping[str, Any]) -> list[str]:
    """The values of a trial in Hydra's notation."""
    return [override for key, value in values.items() for override in assignments(key, value)]


def by_method(jobs: Sequence[list[str]]) -> list[list[list[str]]]:
    """The jobs, in their order, apart by what they choose for `sparsity`."""
    groups: dict[str, list[list[str]]] = {}
    for job in jobs:
        groups.setdefault(next((o for o in job if o.startswith("sparsity=")), ""), []).append(job)
    return list(groups.values())


def first_values(jobs: Sequence[list[str]]) -> Iterator[tuple[str, int]]:
    """The overrides of the first job that others do not share, and how many values there are of each."""
    for override in jobs[0]:
        key = override.partition("=")[0]
        found = {other for job in jobs for other in job if other.partition("=")[0] == key}
        if len(found) > 1:
            yield override, len(found)
