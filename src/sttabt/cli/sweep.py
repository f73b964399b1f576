"""Which jobs a sweep has, how far it is, and what it says at its end. The Hydra plugin is in `hydra_plugins`."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from sttabt.cli.forecast import Forecast
from sttabt.errors import UserError
from sttabt.settings import BudgetSettings, Settings, method_names, method_settings
from sttabt.settings.budget import ASKED
from sttabt.settings.effects import no_effect
from sttabt.system.faults import system_fault
from sttabt.system.signals import held, stopping

# A grid: for every key the assignments `key=value` that it takes.
Grid = Mapping[str, Sequence[str]]

OFF = ("0", "0.0")  # of a budget: none is asked for
REPORT_S = 300.0  # how long a report may take once a signal has come
LITERALS = ("null", "true", "false", "nan", "inf")  # text only in quotes

log = logging.getLogger(__name__)


class JobsFailedError(Exception):
    """Some jobs of a sweep failed; the text has a line for each. `exit_code` is 2 if all were a user's mistake."""

    def __init__(self, lines: Sequence[str], exit_code: int) -> None:
        super().__init__("\n".join(lines))
        self.exit_code = exit_code


def union_of_grids(grids: Sequence[Grid], given: Grid) -> list[list[str]]:
    """The jobs of a sweep: all products of all grids, in their order and without repetition.

    `given` is the command line. Of it,
    - a key that no grid has multiplies every grid;
    - a key that some grids have replaces it there, and leaves the other grids alone;
    - a choice that other keys live under (`sparsity` of `sparsity.keep_ratio`) keeps the grids of that choice; a
      choice without a grid gets one of the command line alone.
    """
    if not grids:
        return _product(given)
    nodes = {key for grid in grids for key in grid if any(other.startswith(f"{key}.") for g in grids for other in g)}
    settings = {key: values for key, values in given.items() if key not in nodes}
    kept: list[Grid] = list(grids)
    alone: list[Grid] = []
    for node in nodes & given.keys():
        narrowed = [{**grid, node: [v for v in grid.get(node, given[node]) if v in given[node]]} for grid in kept]
        kept = [grid for grid in narrowed if grid[node]]
        found = {value for grid in kept for value in grid[node]}
        others = [value for value in given[node] if value not in found]
        if others:
            alone.append({node: others, **settings})
    named = {key for grid in kept for key in grid}
    jobs: list[list[str]] = []
    for grid in kept:
        replaced = {key: settings.get(key, values) for key, values in grid.items()}
        added = {key: values for key, values in settings.items() if key not in named}
        fixed = {key: values for key, values in added.items() if len(values) == 1}
        jobs += _product({**fixed, **replaced, **added})
    for grid in alone:
        jobs += _product(grid)
    return [job for index, job in enumerate(jobs) if job not in jobs[:index]]


def jobs_at_budget(grids: Sequence[Grid], given: Grid) -> list[list[str]]:
    """`union_of_grids`, where a budget on the command line takes the place of the knobs of the grids, and of a budget
    of the other kind that they have.

    A method of the grids that has nothing to move, as dense, runs without it: the others are compared with it. So does
    a grid without a budget, where others have one: its knobs stay.
    Raises UserError for budgets of both kinds on the command line.
    """
    kinds = {name: own for name in ASKED if (own := _asked(given.get(f"budget.{name}", [])))}
    if not kinds:
        return union_of_grids(grids, given)
    if len(kinds) > 1:
        raise UserError(f"{' and '.join(map(_listed, kinds.values()))} cannot both be kept: give one")
    [(kind, budgets)] = kinds.items()
    asked, grids = set(budgets), _of_one_kind(grids, kind, given)
    found = {f"sparsity.{name}" for method in method_names() for name in method_settings(method).found_by_budget()}
    knobs = {each for grid in grids for key in found & grid.keys() - given.keys() for each in grid[key]}
    still = {f"sparsity={name}" for name in method_names() if method_settings(name).dial_name() is None}
    listed = set() if "sparsity" in given else still
    moved: list[list[str]] = []
    for job in union_of_grids(grids, given):
        gone = asked if listed & set(job) else knobs if asked & set(job) else set()
        moved.append([each for each in job if each not in gone])
    return [job for index, job in enumerate(moved) if job not in moved[:index]]


def _asked(budgets: Sequence[str]) -> list[str]:
    """Those of the assignments that ask for a share."""
    return [each for each in budgets if each.partition("=")[2] not in OFF]


def _listed(budgets: Sequence[str]) -> str:
    """Assignments of one key as a command line has them: `budget.time=0.5,0.35`."""
    return f"{budgets[0].partition('=')[0]}={','.join(each.partition('=')[2] for each in budgets)}"


def _of_one_kind(grids: Sequence[Grid], kind: str, given: Grid) -> list[Grid]:
    """The grids, where the command line's budget stands in place of one of another kind. What has no effect beside it
    goes as well: it would only be warned of, and keep jobs apart that are the same.
    """
    own = f"budget.{kind}"
    others = {f"budget.{name}" for name in ASKED} - {own}
    idle = _idle_beside(kind)
    moved: list[Grid] = []
    gone: dict[str, None] = {}
    for grid in grids:
        if others & grid.keys():
            gone |= dict.fromkeys(key for key in grid if key in others | idle)
            grid = {own if key in others else key: values for key, values in grid.items() if key not in idle}
            grid[own] = given[own]
        moved.append(grid)
    if gone:
        budget = _listed(_asked(given[own]))
        log.info("%s takes the place of %s in the grids; jobs that are alike run once", budget, " and ".join(gone))
    return moved


def _idle_beside(kind: str) -> set[str]:
    """The settings of a budget that have no effect where a share of that kind is asked for."""
    settings = Settings()
    setattr(settings.budget, kind, 1.0)
    keys = {f"budget.{declared.name}" for declared in fields(BudgetSettings)}
    return {key for key in keys if no_effect(settings, key)}


def assignments(key: str, values: Any) -> list[str]:
    """`key=value` in Hydra's notation for each of a grid's values; a single value is a list of one."""
    listed = values if isinstance(values, list) else [values]
    return [f"{key}={_notation(value)}" for value in listed]


def refuse_agent(jobs: int) -> None:
    """Raises UserError when a W&B agent, which gives its run's id to one job, starts several."""
    if jobs > 1 and os.environ.get("WANDB_SWEEP_ID"):
        raise UserError(
            f"a W&B agent started a sweep of {jobs} jobs, but it has one run: add hydra.mode=RUN to the command of the"
            " W&B sweep, and choose one method (docs/wandb_sweep.yaml)"
        )


class Progress:
    """One line a finished job, with an estimate of the time left.

    forecast: knows which stages the jobs share and find done; without it all jobs are taken to be alike. lanes: how
    many run beside each other.
    """

    def __init__(self, total: int, forecast: Forecast | None = None) -> None:
        self.total, self.done, self.start, self.last = total, 0, time.monotonic(), time.monotonic()
        self.forecast, self.lanes, self.ended = forecast, 1, set[int]()

    def finished(self, jobs: int, failed: int) -> None:
        """Say that `jobs` more jobs ended, `failed` of them badly."""
        self.ended |= set(range(self.done, self.done + jobs))
        self.done += jobs
        now = time.monotonic()
        outcome = f"failed ({failed} of {jobs}) after" if failed else "done in"
        log.info("job %d/%d %s %s%s", self.done, self.total, outcome, duration(now - self.last), self._rest(now))
        self.last = now

    def one_ended(self, number: int, completed: bool) -> None:
        """Say that job `number`, the first is 0, ended, of several that run beside each other."""
        self.ended.add(number)
        self.done += 1
        now = time.monotonic()
        outcome = "done" if completed else "failed"
        ended = f"{self.done} of {self.total} ended in {duration(now - self.start)}"
        log.info("job %d/%d %s: %s%s", number + 1, self.total, outcome, ended, self._rest(now))

    def _rest(self, now: float) -> str:
        if self.done == self.total:
            return ""
        elapsed = now - self.start
        seconds, lacking = self.forecast.left(self.ended, elapsed, self.lanes) if self.forecast else (0.0, "all")
        if lacking and not seconds:
            return f", about {duration(elapsed / self.done * (self.total - self.done))} left"
        unknown = f", and what {lacking} take, of which none is made yet" if lacking else ""
        return f", about {duration(seconds)} left{unknown}"


def duration(seconds: float) -> str:
    """Rounded to what matters: `21 s`, `3 min`, `2.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def report_sweep(folders: Sequence[Path], out: Path, choose: Sequence[str] = (), along: Sequence[str] = ()) -> None:
    """Make the report of all rows below the sweep's folders; print the table, log where the files are.

    Rows that cannot be compared, as of several models, get no report but a warning. choose, along: see `make_report`.
    """
    from sttabt.report.build import make_report
    from sttabt.report.reading import count_left_out

    try:
        files = make_report(folders, out, choose=choose, along=along)
    except UserError as error:
        log.warning("no report of this sweep: %s", error)
        return
    sys.stdout.write(f"\n{files.table.read_text(encoding='utf-8')}\n")
    log.info("table: %s", files.table)
    for name, path in files.figures.items():
        log.info("%s: %s", name, path)
    log.info("page: %s", files.page)
    if files.left_out:
        log.warning("%s", count_left_out(files.left_out))


@contextmanager
def reporting() -> Iterator[None]:
    """Around a sweep's report. After a signal it is made nevertheless; a signal that comes now stops it."""
    with held(REPORT_S) if stopping() else nullcontext():
        if stopping():
            log.info("a report of the jobs that have ended, which another Ctrl-C stops:")
        yield


def failed_job(error: BaseException) -> JobReturn:
    """What a launcher returns for a job that returned nothing itself."""
    result = JobReturn(status=JobStatus.FAILED)
    result.return_value = error
    return result


def failure(number: int, total: int, overrides: Sequence[str], error: BaseException, folder: Path) -> str:
    """One line about a job that failed."""
    fault = system_fault(error)
    kind = "" if isinstance(error, UserError) or fault else f"{type(error).__name__}: "
    reason = " ".join((fault or str(error)).split())
    return f"job {number}/{total} ({' '.join(overrides)}) failed: {kind}{reason} (its log is in {folder})"


def _product(grid: Grid) -> list[list[str]]:
    return [list(job) for job in itertools.product(*grid.values())]


def _notation(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(_notation(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_notation(item)}' for key, item in value.items())}}}"
    if isinstance(value, str) and (value.lower() in LITERALS or not re.fullmatch(r"[A-Za-z_][\w./-]*", value)):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value)
