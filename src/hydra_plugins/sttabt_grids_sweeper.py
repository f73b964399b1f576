"""Hydra sweeper `grids`: Hydra's basic sweeper over a union of grids; a failed job does not stop the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from sttabt.cli.composition import read_job
from sttabt.cli.messages import MISTAKES, explain
from sttabt.cli.sweep import (
    JobsFailedError,
    Progress,
    assignments,
    failure,
    log,
    refuse_agent,
    report_sweep,
    union_of_grids,
)
from sttabt.errors import UserError


@dataclass
class GridsSweeperSettings:
    _target_: str = "hydra_plugins.sttabt_grids_sweeper.GridsSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None
    grids: list[dict[str, Any]] = field(default_factory=list)
    choose: list[str] = field(default_factory=list)


ConfigStore.instance().store(group="hydra/sweeper", name="grids", node=GridsSweeperSettings, provider="sttabt")


class GridsSweeper(BasicSweeper):
    """Runs the union of `hydra.sweeper.grids`; without grids the jobs are the basic sweeper's.

    choose: settings of the method, as rows name them, of which the report shows the best by validation loss.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None,
        grids: Sequence[dict[str, Any]],
        choose: Sequence[str],
    ) -> None:
        super().__init__(max_batch_size, params)
        self.grids = [dict(grid) for grid in OmegaConf.to_container(OmegaConf.create(list(grids)))]  # type: ignore
        self.choose = list(choose)

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Check every job, run them all, make the report.

        Raises UserError before the first job runs if any job's settings are wrong, JobsFailedError at the end.
        """
        assert self.config is not None and self.launcher is not None
        jobs = self.jobs(arguments)
        refuse_agent(len(jobs))
        folder = Path(self.config.hydra.sweep.dir)
        stages = {stage for number, job in enumerate(jobs) for stage in self._check(job, number, len(jobs), folder)}
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")

        results: list[JobReturn] = []
        progress = Progress(len(jobs))
        launcher: Any = self.launcher
        beside = hasattr(launcher, "progress")  # one of ours, which says itself which of its jobs ended
        if beside:
            launcher.progress = progress
            log.info("jobs in processes of their own: %d, whose logs go into %s", len(jobs), folder)
        for batch in self.split_overrides_to_chunks(jobs, self._batch_size()):
            if len(batch) == 1 and not beside:
                log.info("job %d/%d begins: %s", len(results) + 1, len(jobs), " ".join(batch[0]))
            try:
                ended = self.launcher.launch(batch, initial_job_idx=len(results))
            except (SystemExit, KeyboardInterrupt):
                if beside:
                    log.error("interrupted when %d of %d jobs had ended", progress.done, len(jobs))
                else:
                    log.error(
                        "interrupted in job %d/%d: it and all that follow are not done", len(results) + 1, len(jobs)
                    )
                raise
            results += ended
            if not beside:
                progress.finished(len(ended), sum(result.status != JobStatus.COMPLETED for result in ended))

        completed = [result for result in results if result.status == JobStatus.COMPLETED]
        if completed and {"evaluate", "report"} <= stages:
            report_sweep(folder, self.choose)
        self._raise_failures(results, jobs, folder)
        return results

    def jobs(self, arguments: list[str]) -> list[list[str]]:
        """Every job's overrides."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given: dict[str, list[str]] = {}
        for override in parser.parse_overrides([*self._parse_config(), *arguments]):
            given[override.get_key_element()] = [job[0] for job in self.split_arguments([override], None)[0]]
        grids = [{key: assignments(key, values) for key, values in grid.items()} for grid in self.grids]
        return union_of_grids(grids, given)

    def _check(self, job: list[str], number: int, total: int, folder: Path) -> list[str]:
        assert self.hydra_context is not None and self.config is not None
        try:
            config = self.hydra_context.config_loader.load_sweep_config(self.config, job)
            return read_job(config, folder / str(number)).stages
        except MISTAKES as mistake:
            raise UserError(f"job {number + 1}/{total} ({' '.join(job)}): {explain(mistake)}") from mistake

    def _batch_size(self) -> int | None:
        """The basic launcher runs one job after the other: given one at a time, progress shows between them."""
        return self.max_batch_size or (1 if isinstance(self.launcher, BasicLauncher) else None)

    def _raise_failures(self, results: Sequence[JobReturn], jobs: Sequence[list[str]], folder: Path) -> None:
        errors = {n: result._return_value for n, result in enumerate(results) if result.status != JobStatus.COMPLETED}
        if errors:
            lines = [failure(n + 1, len(jobs), jobs[n], error, folder / str(n)) for n, error in errors.items()]
            mistakes = all(isinstance(error, UserError) for error in errors.values())
            raise JobsFailedError(lines, exit_code=2 if mistakes else 1)
