"""Hydra launchers `sttabt_slurm` and `sttabt_submitit_local`: hydra-submitit-launcher's, so that jobs may be ended.

Theirs lets one job that dies end the sweep, and shows nothing until all have ended. Without the package there are none
of these launchers (sttabt.cli.messages says what to install).

How a job comes to go on: SLURM sends SIGUSR2 before a job's time is over, at which submitit's handler puts the job into
the queue again, with the same arguments and so the same folder. When SLURM preempts a job or a node fails, SLURM itself
puts it there (`requeue`). Either way the job runs once more, and its stages go on from their last whole epoch.
The sweep itself only waits, and makes the report: jobs go on when it is interrupted.
"""

import os
import shutil
import signal
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

from sttabt.cli.sweep import Progress, failed_job, log
from sttabt.errors import TERMINATED, UserError
from sttabt.system.scratch import keep_temporary_files
from sttabt.system.signals import end_processes, held, kept_from_children

GRACE = 3.0  # seconds that jobs of this machine have to end in order: a kill loses nothing either

try:
    from hydra_plugins.hydra_submitit_launcher import config as queues
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
except ImportError:
    pass
else:

    @dataclass
    class SlurmSettings(queues.SlurmQueueConf):
        _target_: str = "hydra_plugins.sttabt_submitit_launcher.SlurmLauncher"

    @dataclass
    class LocalSettings(queues.LocalQueueConf):
        _target_: str = "hydra_plugins.sttabt_submitit_launcher.LocalLauncher"

    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="sttabt_slurm", node=SlurmSettings, provider="sttabt")
    store.store(group="hydra/launcher", name="sttabt_submitit_local", node=LocalSettings, provider="sttabt")

    class _Launcher(BaseSubmititLauncher):
        """A job that fails or dies leaves the others alone, one that a signal ends has not failed."""

        progress: Progress | None = None  # the sweeper sets it
        _decision_s = 0  # how long a job that SIGTERM ended waits for what comes

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Every job's result, in their order."""
            with held(), kept_from_children():  # which jobs there are must be known
                jobs = self._submit(job_overrides, initial_job_idx)
                log.info("jobs of %s: %s", self._EXECUTOR, " ".join(job.job_id for job in jobs))
            if self.progress:
                self.progress.lanes = min(len(jobs), self.params.get("array_parallelism") or len(jobs))
            results: dict[int, JobReturn] = {}
            try:
                while len(results) < len(jobs):
                    for index, job in enumerate(jobs):
                        if index not in results and job.done():
                            results[index] = _result(job)
                            if self.progress:
                                completed = results[index].status == JobStatus.COMPLETED
                                self.progress.one_ended(initial_job_idx + index, completed)
                    time.sleep(1)
            except (SystemExit, KeyboardInterrupt):
                self._leave([job.job_id for index, job in enumerate(jobs) if index not in results])
                raise
            return [results[index] for index in range(len(jobs))]

        def _leave(self, jobs: Sequence[str]) -> None:
            """What becomes of jobs that have not ended when the sweep is told to."""
            raise NotImplementedError

        def __call__(self, *arguments: Any, **named: Any) -> JobReturn:
            """In the job's process: run it."""
            keep_temporary_files()
            _leave_slurm_to_submitit()
            exits = _catch_signals()
            try:
                result = super().__call__(*arguments, **named)
                if result.status == JobStatus.COMPLETED or not exits:
                    return result
                # After SIGTERM a stage fails where its loading processes got it as well, and are gone.
            except SystemExit as stop:
                exits.append(stop)
            if exits[0].code == TERMINATED:
                # Only SLURM knows what that meant: SIGUSR2 may follow, which puts the job into the queue again, or
                # SIGKILL, after which it is in the queue already, or cancelled.
                time.sleep(self._decision_s)
            raise exits[0]

        def _submit(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
            import submitit

            common = {field.name for field in fields(queues.BaseQueueConf)}
            parameters = {
                name if name in common else f"{self._EXECUTOR}_{name}": value for name, value in self.params.items()
            }
            made_with = {
                name: parameters.pop(name) for name in (f"{self._EXECUTOR}_max_num_timeout",) if name in parameters
            }
            executor = submitit.AutoExecutor(parameters.pop("submitit_folder"), cluster=self._EXECUTOR, **made_with)
            executor.update_parameters(**parameters)
            state = Singleton.get_state()
            calls = [
                (list(overrides), "hydra.sweep.dir", first + index, "", state)
                for index, overrides in enumerate(job_overrides)
            ]
            return executor.map_array(self, *zip(*calls, strict=True))

    class LocalLauncher(_Launcher):
        _EXECUTOR = "local"

        def _leave(self, jobs: Sequence[str]) -> None:
            """They end with it; a job's id is the process that began it."""
            end_processes([int(job) for job in jobs], GRACE)

    class SlurmLauncher(_Launcher):
        _EXECUTOR = "slurm"
        _decision_s = 600

        def _leave(self, jobs: Sequence[str]) -> None:
            """They go on, and another sweep of the same settings waits for what they make."""
            if jobs:
                log.info("jobs that go on: %s (scancel ends them)", " ".join(dict.fromkeys(jobs)))

        def setup(self, **settings: Any) -> None:
            """Raises UserError where there is no SLURM."""
            super().setup(**settings)
            if shutil.which("sbatch") is None:
                raise UserError(
                    "hardware=slurm needs SLURM's command sbatch, which is not here: start the sweep on a login node,"
                    " or take hardware=local_gpus"
                )


def _result(job: Any) -> JobReturn:
    """The first process' result: with several nodes it is the one that speaks for all."""
    try:
        return job.results()[0]
    except Exception as error:  # submitit raises its own, the job's, or what unpickling the result raises
        text = str(error).partition("You can check full logs")[0]  # submitit's list of paths follows the trace
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip(" -")), type(error).__name__)
        reason = f"it ended without a result, state {job.state}: {last} (what it wrote last is in {job.paths.stderr})"
        return failed_job(RuntimeError(reason))


def _leave_slurm_to_submitit() -> None:
    """Lightning would find SLURM, expect a task a GPU that srun starts, and requeue the job itself on SIGUSR1.

    Here a job has a task a node, which starts a process a GPU as on any other machine, and submitit requeues: in every
    stage, not in training alone, and no more often than asked. The name is how Lightning is told to keep away.
    """
    os.environ["SLURM_JOB_NAME"] = "interactive"
    warnings.filterwarnings("ignore", message=".*`srun` command is available")


def _catch_signals() -> list[SystemExit]:
    """How this process will end once it is told to, the decisive one first: empty until then.

    SLURM signals all processes of a job. Those that load data inherit submitit's handler: each would requeue the job.
    """
    import submitit

    exits: list[SystemExit] = []
    signal.signal(signal.SIGTERM, lambda *_: exits.append(SystemExit(TERMINATED)))
    preemption = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
    requeue, process = signal.getsignal(preemption), os.getpid()
    assert callable(requeue)

    def requeue_once(*given: Any) -> None:
        if os.getpid() != process:
            return
        try:
            requeue(*given)
        except SystemExit as requeued:
            exits.insert(0, requeued)
            raise

    signal.signal(preemption, requeue_once)
    return exits
