"""What the sweepers of `hydra_plugins` share: jobs are checked before they run, and one that fails stops no other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from sttabt.cli.composition import read_job
from sttabt.cli.messages import MISTAKES, explain
from sttabt.cli.sweep import Grid, JobsFailedError, Progress, assignments, failure, log
from sttabt.errors import UserError
from sttabt.report.reading import read_rows
from sttabt.settings import Settings
from sttabt.settings.renamed import new_values
from sttabt.system.signals import check, tell_results


@dataclass
class GridsSettings:
    """What any sweeper is given: an experiment that is a sweep has grids, whichever sweeper runs it."""

    max_batch_size: int | None = None  # jobs that a launcher is given at once
    params: dict[str, str] | None = None
    grids: list[dict[str, Any]] = field(default_factory=list)
    choose: list[str] = field(default_factory=list)


class CheckedSweeper(BasicSweeper, ABC):
    """A sweeper of this package; `grids` are those of the experiment, in Hydra's notation."""

    def __init__(
        self, max_batch_size: int | None, params: dict[str, str] | None, grids: Sequence[dict[str, Any]]
    ) -> None:
        super().__init__(max_batch_size, params)
        listed: list[dict[str, Any]] = OmegaConf.to_container(OmegaConf.create(list(grids)))  # type: ignore[assignment]
        self.grids: list[Grid] = [
            {key: assignments(key, values) for key, values in new_values(grid).items()} for grid in listed
        ]

    @abstractmethod
    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Run the jobs; raises UserError before the first one if a setting is wrong, JobsFailedError at the end."""

    def given(self, arguments: list[str]) -> dict[str, list[str]]:
        """The command line: of every key the assignments `key=value` that it names."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        found: dict[str, list[str]] = {}
        for override in parser.parse_overrides([*self._parse_config(), *arguments]):
            found[override.get_key_element()] = [job[0] for job in self.split_arguments([override], None)[0]]
        return found

    def compose(self, job: list[str]) -> DictConfig:
        """The config of a job that has not begun. Raises one of MISTAKES."""
        assert self.hydra_context is not None and self.config is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, job)

    def settings(self, job: list[str], number: int = 0) -> Settings:
        """The checked settings of the job of that number, the first is 0. Raises one of MISTAKES."""
        return read_job(self.compose(job), self.folder / str(number))

    @property
    def folder(self) -> Path:
        """Of this sweep; each job has one of its own in it, named by its number."""
        assert self.config is not None
        return Path(self.config.hydra.sweep.dir)

    def begin(self) -> None:
        """Make the folder and keep the sweep's own settings in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        assert self.config is not None
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        tell_results(self.folder)

    def launch(self, batch: list[list[str]], done: int, progress: Progress) -> list[JobReturn]:
        """Run jobs that follow `done` others of this sweep, beside each other where the launcher can."""
        launcher: Any = self.launcher
        beside = hasattr(launcher, "progress")  # one of ours, which says itself which of its jobs ended
        if beside:
            launcher.progress = progress
            log.info("jobs in processes of their own: %d, whose logs go into %s", len(batch), self.folder)
        elif len(batch) == 1:
            log.info("job %d/%d begins: %s", done + 1, progress.total, " ".join(batch[0]))
        try:
            ended = list(launcher.launch(batch, initial_job_idx=done))
            check()  # a signal may have ended a job as a failure
        except (SystemExit, KeyboardInterrupt):
            if beside:
                log.error("interrupted when %d of %d jobs had ended", progress.done, progress.total)
            else:
                log.error("interrupted in job %d/%d: it and all that follow are not done", done + 1, progress.total)
            raise
        if not beside:
            progress.finished(len(ended), failed(ended))
        return ended

    def check(self, job: list[str], number: int, total: int) -> Settings:
        """As `settings`; raises UserError that names the job."""
        try:
            return self.settings(job, number)
        except MISTAKES as mistake:
            raise UserError(f"job {number + 1}/{total} ({' '.join(job)}): {explain(mistake)}") from mistake

    def write_cards(self, stores: Collection[str]) -> None:
        """The cards of the models in these artifact stores that this sweep's jobs have measured: each once, now, as a
        card that every job wrote anew would have more and more results to read.
        """
        from sttabt.pipeline.card import write_cards

        try:
            measured = {row.config_hash for row in read_rows([self.folder])}
        except UserError:
            return  # no job has a result
        for store in stores:
            write_cards(Path(store), measured)

    def at_once(self) -> int | None:
        """The basic launcher runs one job after the other: given one at a time, progress shows between them."""
        return self.max_batch_size or (1 if isinstance(self.launcher, BasicLauncher) else None)

    def raise_failures(self, results: Sequence[JobReturn], jobs: Sequence[list[str]]) -> None:
        """Raises JobsFailedError with a line for each job that failed, if any did."""
        errors = {n: result._return_value for n, result in enumerate(results) if result.status != JobStatus.COMPLETED}
        if errors:
            lines = [failure(n + 1, len(jobs), jobs[n], error, self.folder / str(n)) for n, error in errors.items()]
            mistakes = all(isinstance(error, UserError) for error in errors.values())
            raise JobsFailedError(lines, exit_code=2 if mistakes else 1)


def failed(results: Sequence[JobReturn]) -> int:
    """How many of them failed."""
    return sum(result.status != JobStatus.COMPLETED for result in results)
