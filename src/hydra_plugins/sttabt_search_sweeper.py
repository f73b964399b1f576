"""Hydra sweeper `search`: Optuna proposes settings, for a front of validation score and multiply-adds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from sttabt.cli.checks import leaves
from sttabt.cli.checks.effects import without_effect
from sttabt.cli.composition import setting_names, unknown_setting
from sttabt.cli.messages import MISTAKES, explain
from sttabt.cli.sweep import Progress, log, refuse_agent, reporting, union_of_grids
from sttabt.cli.sweeper import CheckedSweeper, GridsSettings
from sttabt.errors import UserError
from sttabt.report.rows import ROW_FILE, Row
from sttabt.search.plan import Plan, by_method, first_values, overrides, study_file
from sttabt.search.report import report_search
from sttabt.search.space import WHERE, Space, fit_space, read_space
from sttabt.search.study import Study, Trial, check_optuna, check_sampler, open_study
from sttabt.settings import TunedSettings, method_names
from sttabt.settings.renamed import new_name
from sttabt.settings.schedules import KEY as SCHEDULES


@dataclass
class SearchSweeperSettings(GridsSettings):
    _target_: str = "hydra_plugins.sttabt_search_sweeper.SearchSweeper"
    space: dict[str, Any] = field(default_factory=dict)  # of a setting {low, high} with or without log, or {choices}
    trials: int = 20  # with a result, those of earlier commands among them
    sampler: str = "tpe"  # tpe | nsga2 (generations of 10) | random
    seed: int = 0  # of the sampler
    storage: str = ""  # a file; "" = paths.artifacts/search/<what made it>/study.journal


ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchSweeperSettings, provider="sttabt")


class SearchSweeper(CheckedSweeper):
    """Runs as many trials as the study lacks, `max_batch_size` of them at once, and shows its front.

    Of the experiment's grids the first of a method that has all searched settings gives what all trials share.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None,
        grids: Sequence[dict[str, Any]],
        choose: Sequence[str],
        space: Mapping[str, Any],
        trials: int,
        sampler: str,
        seed: int,
        storage: str,
    ) -> None:
        super().__init__(max_batch_size, params, grids)
        self.space: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(dict(space)))  # type: ignore[assignment]
        self.trials, self.sampler, self.seed, self.storage = trials, sampler, seed, storage
        if choose:
            log.info("hydra.sweeper.choose=%s has no effect on a search, which shows its front", list(choose))

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Ask the study for trials, run them, tell it, until it has `trials` results; then make the report.

        Raises UserError before the first trial if the space, the study or the ends of a range are wrong,
        JobsFailedError at the end if a trial failed.
        """
        check_optuna()
        plan = self.plan(arguments)
        refuse_agent(self.trials)
        for line in without_effect(plan.settings, plan.fixed):
            log.warning(line)
        file = study_file(self.storage, plan)
        with open_study(file, plan.space, plan.made_of, self.sampler, self.seed) as study:
            missing = max(0, self.trials - len(study.done))
            log.info("study %s: %d of %d trials are done", file, self.trials - missing, self.trials)
            self.begin()
            results: list[JobReturn] = []
            jobs: list[list[str]] = []
            progress = Progress(missing)
            try:
                while len(jobs) < missing:
                    asked = study.ask(min(self.at_once() or 1, missing - len(jobs)))
                    batch = [[*plan.fixed, *overrides(trial.values)] for trial in asked]
                    ended = self.launch(batch, len(jobs), progress)
                    for number, (trial, job, result) in enumerate(zip(asked, batch, ended, strict=True), len(jobs)):
                        self._tell(study, trial, result, job, number)
                    jobs += batch
                    results += ended
            finally:  # also of the trials that had ended when a signal came
                if study.done:
                    with reporting():
                        self.write_cards({plan.settings.paths.artifacts})
                        report_search(study.done, plan, self.folder / "report")
        self.raise_failures(results, jobs)
        return results

    def plan(self, arguments: list[str]) -> Plan:
        """What all trials share and what differs. Raises UserError for a search that cannot work."""
        check_sampler(self.sampler)
        for name, value, low in (("trials", self.trials, 1), ("seed", self.seed, 0)):
            if value < low:
                raise UserError(f"hydra.sweeper.{name}={value} is out of range: it must be at least {low}")
        given = self.given(arguments)
        for key, values in given.items():
            if len(values) > 1:
                listed = ",".join(value.partition("=")[2] for value in values)
                raise UserError(
                    f"{key}={listed} names several values, but in a search each trial has one: give one, or leave"
                    " hparams_search out"
                )
        space = {new_name(key): domain for key, domain in read_space(self.space).items()}
        searched = {key: domain for key, domain in space.items() if key not in {name.lstrip("+") for name in given}}
        if not searched:
            raise UserError(f"{', '.join(space)}: all are given, so that nothing is left to search: leave one out")
        grids = [{key: values for key, values in grid.items() if key not in searched} for grid in self.grids]
        return self._fit(self._fixed(union_of_grids(grids, given), searched), searched)

    def _fixed(self, jobs: list[list[str]], space: Space) -> list[str]:
        """The first job of a method that has all searched settings."""
        problem: Exception | None = None
        for own in by_method(jobs):
            try:
                method = OmegaConf.select(self.compose(own[0]), "sparsity.method")
            except MISTAKES as mistake:
                problem = problem or mistake
                continue
            known = setting_names(method if method in method_names() else None)
            # Names of schedules are checked with the trials.
            opened = [f"{SCHEDULES}."] if SCHEDULES in known else []
            unknown = [key for key in space if key not in known and not key.startswith(tuple(opened))]
            if unknown:
                problem = UserError(f"{WHERE}: {unknown_setting(unknown[0])}")
                continue
            for key in space:
                if any(name.startswith(f"{key}.") for name in known):
                    raise UserError(f"{WHERE}: {key} is a group of settings: search one of them")
            for override, count in first_values(own):
                log.info("all trials have %s, the first of the experiment's %d values", override, count)
            return own[0]
        assert problem is not None, "there is at least one job"
        raise problem

    def _fit(self, fixed: list[str], space: Space) -> Plan:
        """The plan, once all ends of the space have been checked: each with the first ends of the others."""
        first = {key: domain.ends[0] for key, domain in space.items()}
        corners = [first, *(first | {key: end} for key, domain in space.items() for end in domain.ends[1:])]
        checked = []
        for corner in corners:
            try:
                checked.append(self.settings([*fixed, *overrides(corner)]))
            except MISTAKES as mistake:
                raise UserError(
                    f"{WHERE}: a trial with {' '.join(overrides(corner))} cannot run: {explain(mistake)}"
                ) from mistake
        settings = checked[0]
        if "evaluate" not in settings.stages:
            raise UserError(f"stages={settings.stages} gives a search no results: add evaluate")
        if settings.hardware.nodes > 1 and isinstance(self.launcher, BasicLauncher):
            raise UserError(
                f"hardware.nodes={settings.hardware.nodes} would be as many searches of one study:"
                " choose hardware=slurm"
            )
        for sparsity in (each.sparsity for each in checked if not each.sparsity.trains):
            without = " with sparsity.training.epochs=0" if isinstance(sparsity, TunedSettings) else ""
            raise UserError(
                "hparams_search goes by the validation score, which only methods that train have:"
                f" sparsity.method={sparsity.method} does not{without}"
            )
        return Plan(fixed, settings, fit_space(space, dict(leaves(asdict(settings)))), self.sampler, self.seed)

    def _tell(self, study: Study, trial: Trial, result: JobReturn, job: list[str], number: int) -> None:
        """Tell the study the trial's result; a job without one has failed."""
        if result.status == JobStatus.COMPLETED:
            folder = Path(self.settings(job, number).paths.output)
            try:
                measured = Row.read(folder / ROW_FILE).validation
                if measured is None:
                    raise ValueError("it has no validation score")
                study.tell(trial, measured["score"], measured["macs_share"], folder)
                return
            except (OSError, ValueError) as error:
                result.status = JobStatus.FAILED
                result.return_value = error
        study.fail(trial)
