"""Hydra launcher `sttabt_ray`: the jobs of a sweep beside each other on this machine, as many as its processors hold.

Ray queues them. hydra-ray-launcher 1.2.2 is not used: it excludes the cloudpickle that joblib, and so scikit-learn,
needs; a job that is killed ends its sweep; and it shows nothing until all jobs have ended.
"""

import importlib.util
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from sttabt.cli.sweep import Progress, failed_job
from sttabt.errors import UserError
from sttabt.system.scratch import keep_temporary_files, scratch
from sttabt.system.signals import held

OBJECT_STORE = 100 * 2**20  # bytes: jobs hand over files, and little else goes through Ray


@dataclass
class RayLauncherSettings:
    """What a job takes of the machine."""

    _target_: str = "hydra_plugins.sttabt_ray_launcher.RayLauncher"
    num_cpus: float = 1
    num_gpus: float = 0


ConfigStore.instance().store(group="hydra/launcher", name="sttabt_ray", node=RayLauncherSettings, provider="sttabt")


class RayLauncher(Launcher):
    """Runs every job in a process of its own; one that fails or dies leaves the others alone and is not repeated."""

    progress: Progress | None = None  # the sweeper sets it

    def __init__(self, num_cpus: float, num_gpus: float) -> None:
        self.resources = {"num_cpus": num_cpus, "num_gpus": num_gpus}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Raises UserError where there is no Ray, or jobs would take nothing of the machine and all begin at once."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        if importlib.util.find_spec("ray") is None:
            choice = config.hydra.runtime.choices.hardware
            raise UserError(f'hardware={choice} needs the package ray: pip install "sttabt[launchers]"')
        if self.resources["num_cpus"] <= 0:
            raise UserError(
                f"hydra.launcher.num_cpus={self.resources['num_cpus']:g} would begin all jobs at once: set it, or"
                " hardware.threads, to 1 or more"
            )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Every job's result, in their order. Raises UserError when the machine cannot run a single one."""
        # Held, as an exception of a signal's handler does not pass through Ray's waiting as it is.
        with held() as check, scratch() as folder:
            return self._launch(job_overrides, initial_job_idx, folder, check)

    def _launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int, folder: Path, check: Callable[[], None]
    ) -> Sequence[JobReturn]:
        ray = _start(self.resources, folder)
        try:
            check()
            # A process a job (max_calls), so that none inherits another's state.
            run = ray.remote(**self.resources, max_calls=1, max_retries=0)(_run)
            if self.progress:
                self.progress.lanes = _lanes(ray.cluster_resources(), self.resources)
            waiting: dict[Any, int] = {}
            for index, overrides in enumerate(job_overrides):
                config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
                with open_dict(config):
                    config.hydra.job.id = config.hydra.job.num = initial_job_idx + index
                job = run.remote(self.hydra_context, self.task_function, config, Singleton.get_state())
                waiting[job] = index
            results: dict[int, JobReturn] = {}
            while waiting:
                ended, _ = ray.wait(list(waiting), timeout=1)
                check()
                if not ended:
                    continue
                index = waiting.pop(job := ended[0])
                try:
                    results[index] = ray.get(job)
                except ray.exceptions.WorkerCrashedError:
                    results[index] = failed_job(RuntimeError("its process was killed, by hand or for want of memory"))
                except Exception as error:
                    results[index] = failed_job(error)
                if self.progress:
                    self.progress.one_ended(initial_job_idx + index, results[index].status == JobStatus.COMPLETED)
        finally:
            ray.shutdown()
        return [results[index] for index in range(len(job_overrides))]


def _start(resources: dict[str, float], folder: Path) -> Any:
    """Ray on this machine alone, which lets in nobody else and reports to nobody. folder: for its own files."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # jobs without GPUs: leave CUDA_VISIBLE_DEVICES
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)  # it warns that it lets in none but this user
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local",
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
            include_dashboard=False,
            log_to_driver=False,  # every job's log is a file in its own folder
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE,
        )
    except SystemExit:  # of the handler that Ray sets
        signal.signal(signal.SIGTERM, handler)
        signal.raise_signal(signal.SIGTERM)
        raise
    signal.signal(signal.SIGTERM, handler)
    there = ray.cluster_resources()
    for name, setting in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        if resources[setting] > there.get(name, 0):
            ray.shutdown()
            raise UserError(
                f"hydra.launcher.{setting}={resources[setting]:g} a job is more than this machine's"
                f" {there.get(name, 0):g}: take less, or another hardware={{local_cpus,slurm}}"
            )
    return ray


def _lanes(there: dict[str, float], resources: dict[str, float]) -> int:
    """How many jobs run beside each other."""
    wanted = {"CPU": resources["num_cpus"], "GPU": resources["num_gpus"]}
    return max(1, int(min(there[name] / each for name, each in wanted.items() if each)))


def _run(context: HydraContext, task: TaskFunction, config: DictConfig, state: dict[Any, Any]) -> JobReturn:
    keep_temporary_files()
    Singleton.set_state(state)
    setup_globals()
    return run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
