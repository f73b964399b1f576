"""Hydra sweeper `grids`: Hydra's basic sweeper over a union of grids; a failed job does not stop the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn

from sttabt.cli.checks.effects import Unused
from sttabt.cli.forecast import Forecast
from sttabt.cli.sweep import Progress, jobs_at_budget, log, refuse_agent, report_sweep, reporting
from sttabt.cli.sweeper import CheckedSweeper, GridsSettings
from sttabt.report.rows import ROW_FILE


@dataclass
class GridsSweeperSettings(GridsSettings):
    _target_: str = "hydra_plugins.sttabt_grids_sweeper.GridsSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="grids", node=GridsSweeperSettings, provider="sttabt")


class GridsSweeper(CheckedSweeper):
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
        super().__init__(max_batch_size, params, grids)
        self.choose = list(choose)

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Check every job, run them all, make the report.

        Raises UserError before the first job runs if any job's settings are wrong, JobsFailedError at the end, and
        Stopped after a signal, once the jobs that had ended are reported.
        """
        jobs = self.jobs(arguments)
        refuse_agent(len(jobs))
        checked = [self.check(job, number, len(jobs)) for number, job in enumerate(jobs)]
        stages = {stage for settings in checked for stage in settings.stages}
        stores = {settings.paths.artifacts for settings in checked}
        unused = Unused()
        for settings, job in zip(checked, jobs, strict=True):
            unused.add(settings, job)
        for line in unused.lines():
            log.warning(line)
        self.begin()

        results: list[JobReturn] = []
        forecast = Forecast(checked)
        if done := forecast.plan():
            log.info("done already: %s", done)
        progress = Progress(len(jobs), forecast)
        try:
            for batch in self.split_overrides_to_chunks(jobs, self.at_once()):
                results += self.launch(batch, len(results), progress)
        finally:  # also of the jobs that had ended when a signal came
            if "evaluate" in stages and any(self.folder.rglob(ROW_FILE)):
                with reporting():
                    self.write_cards(stores)
                    if "report" in stages:
                        report_sweep([self.folder], self.folder / "report", choose=self.choose)
        self.raise_failures(results, jobs)
        return results

    def jobs(self, arguments: list[str]) -> list[list[str]]:
        """Every job's overrides."""
        return jobs_at_budget(self.grids, self.given(arguments))
