"""Training on several devices, and on several nodes: a process a device, started for one stage and gone after it.

Everything else of a run stays in the process that the user started, one a node. Of several nodes the first makes the
artifacts and the results; the others train when it trains, and find what it made in the same folder of artifacts.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import active_children
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import DistError, TCPStore
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sttabt.errors import TERMINATED, UserError
from sttabt.settings import HardwareSettings
from sttabt.store.place import Place
from sttabt.system.cores import crowd, granted_cores, others_running
from sttabt.system.logfile import LogFile
from sttabt.system.scratch import scratch
from sttabt.system.signals import ENDING, caught, end_with_parent, kept_from_children

PATIENCE = timedelta(hours=1)  # of a node that waits for the others to come
INTERVAL = 0.2  # seconds between two questions whether another node is as far
GRACE = 10  # seconds between asking processes to end and ending them
FAILED, ENDED = "failed", "ended"
LOST = re.compile(  # as gloo and NCCL say it
    "Connection (reset|closed|refused)|[Bb]roken pipe|[Rr]emote process|Socket closed"
)
REPEATABLE = (logging.StreamHandler, LogFile)  # handlers that another process can have, too

log = logging.getLogger(__name__)
logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its tables tell nothing that we do not


def prepare_process(hardware: HardwareSettings) -> None:
    """What a process that trains or evaluates needs before its threads start: each of these has its own switch."""
    # Soft masks go down to 1e-25. Their products are numbers so small that a CPU takes many times as long for each: a
    # step of training at p_logit -2 took seven times that at 1. As 0 they are as good.
    torch.set_flush_denormal(True)
    choose_threads(hardware)


def choose_threads(hardware: HardwareSettings) -> None:
    """`hardware.threads`, or where it is 0 torch's choice within what a container grants. Warns of a crowd."""
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    elif "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > (granted := granted_cores()):
        torch.set_num_threads(granted)
    if hardware.accelerator == "cpu":
        _warn_of_crowd(torch.get_num_threads())


@functools.cache  # once a process: in a sweep's later jobs its own threads would count as others
def _warn_of_crowd(threads: int) -> None:
    if warning := crowd(threads, os.cpu_count() or 1, others_running()):
        log.warning("%s", warning)


def found_hardware(hardware: HardwareSettings) -> HardwareSettings:
    """The same with a GPU or the CPU in the place of `auto`, said in one line."""
    if hardware.accelerator != "auto":
        return hardware
    chosen = "gpu" if torch.cuda.is_available() else "cpu"
    called = torch.cuda.get_device_name() if chosen == "gpu" else "CUDA finds no GPU here"
    log.info("hardware.accelerator=auto is %s (%s)", chosen, called)
    return replace(hardware, accelerator=chosen)


class Nodes:
    """This node among those that were started with the same command; with `hardware.nodes=1` there is no other.

    Use as a context around all that they do together: what fails on one of them ends the others, too.
    number: 0 for the first; job: the same on all nodes, another for every job of a process.
    Raises UserError when the environment does not say who is who, or others do not come.
    """

    def __init__(self, hardware: HardwareSettings, job: str) -> None:
        self.count, self.job = hardware.nodes, job
        self.number, self.host, self.store = 0, "", None
        if self.count > 1:
            place, self.store = _connected(self.count)
            self.number, self.host = place.number, place.host

    @property
    def first(self) -> bool:
        return self.number == 0

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self.store is None:
            return
        self.store.set(self._name(FAILED if error else ENDED, self.number), "")
        if self.first and not error:  # its process holds what they agree on
            for number in range(1, self.count):
                self._wait(self._name(ENDED, number), number)

    def agree(self, what: str, value: str = "") -> str:
        """The first node's value, for which the others wait. Raises UserError when the first one failed."""
        if self.store is None:
            return value
        name = self._name(what, 0)
        if self.first:
            self.store.set(name, value)
            return value
        self._wait(name, 0)
        return self.store.get(name).decode()

    @contextmanager
    def making(self, what: str, needed: bool) -> Iterator[bool]:
        """Around what all nodes do together if the first says that it is `needed`; yields whether it is.

        At its end the others wait for the first one.
        """
        yield self.agree(what, str(needed)) == str(True)
        self.agree(f"{what}/end")

    def _name(self, what: str, number: int) -> str:
        return f"{self.job}/{number}/{what}"

    def _wait(self, name: str, number: int) -> None:
        """Until that node has set `name`. Asks again and again: a wait of the store would hear no signal."""
        assert self.store is not None
        try:
            while not self.store.check([name]):
                if self.store.check([self._name(FAILED, number)]):
                    raise UserError(f"node {number} failed: its log says why")
                time.sleep(INTERVAL)
        except DistError as error:
            raise UserError("the first node has ended: its log says why") from error


def launch(
    work: Callable[..., Any], arguments: tuple[Any, ...], hardware: HardwareSettings, nodes: Nodes, name: str
) -> Any:
    """`work(*arguments)` in `hardware.devices` processes of each node; what the first of this node returns.

    Every process gets copies of the arguments. name: of this work, the same on all nodes and used once.
    Raises UserError as `work` does in any process, and SystemExit after SIGTERM.
    """
    backend, endpoint, settings = "c10d", "localhost:0", {}
    if hardware.nodes > 1:
        backend, settings = "static", {"rank": nodes.number, "timeout": int(PATIENCE.total_seconds())}
        endpoint = f"{nodes.host}:{nodes.agree(f'port/{name}', str(free_port()))}"
    # torch 2.11 has no such argument, and waits for 30 seconds.
    waits: dict[str, Any] = {"shutdown_timeout": GRACE} if hasattr(LaunchConfig, "shutdown_timeout") else {}
    handlers = [_Handler.of(handler) for handler in logging.getLogger().handlers if type(handler) in REPEATABLE]
    # As bytes: multiprocessing would put tensors into memory that processes share, who then train in each other's.
    # In a file: who starts a process would wait until it has imported torch to take more than a pipe holds.
    packed = pickle.dumps((work, arguments, hardware, handlers))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with scratch() as folder, _ended(), kept_from_children():
            (folder / "work").write_bytes(packed)
            config = LaunchConfig(
                min_nodes=hardware.nodes,
                max_nodes=hardware.nodes,
                nproc_per_node=hardware.devices,
                run_id=name,
                rdzv_backend=backend,
                rdzv_endpoint=endpoint,
                rdzv_configs=settings,
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
                signals_to_handle="" if caught() else "SIGTERM,SIGINT",  # those that are given back below
                **waits,
            )
            results = elastic_launch(config, _work)(folder / "work")
    except SignalException as stop:
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from stop
        log.warning("interrupted by %s: the same command resumes from the last checkpoint", stop.sigval.name)
        raise SystemExit(TERMINATED) from stop
    except ChildFailedError as failed:
        _raise_as_here(failed)
    except DistError as error:
        raise UserError(f"the {hardware.nodes} nodes did not meet to train: {error}") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return results[min(results)]


class ParentDecides(Callback):
    """Keeps Lightning's handlers away: its own of SIGTERM would talk to the other processes, who are ending, too."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


ALONE = Nodes(HardwareSettings(), "")


@dataclass(frozen=True)
class _Handler:
    """A handler of log lines that can be made again in another process."""

    file: str | None
    stdout: bool
    formatter: logging.Formatter | None

    @classmethod
    def of(cls, handler: logging.Handler) -> _Handler:
        stdout = getattr(handler, "stream", None) is sys.stdout
        return cls(getattr(handler, "baseFilename", None), stdout, handler.formatter)

    def make(self) -> logging.Handler:
        stream = sys.stdout if self.stdout else sys.stderr
        handler = LogFile(self.file) if self.file else logging.StreamHandler(stream)
        handler.setFormatter(self.formatter)
        return handler


@contextmanager
def _ended() -> Iterator[None]:
    """Ends the processes that a signal left to nobody: torch's agent knows them once all have started."""
    before = active_children()
    try:
        yield
    finally:
        for process in active_children():
            if process not in before:
                process.kill()


@functools.cache
def _connected(nodes: int) -> tuple[Place, TCPStore]:
    """Once a process, as the jobs of a sweep share it."""
    place = Place.found(nodes)
    first = place.number == 0
    log.info("node %d of %d, the first is %s:%d", place.number, nodes, place.host, place.port)
    try:
        return place, TCPStore(place.host, place.port, world_size=nodes, is_master=first, timeout=PATIENCE)
    except DistError as error:
        raise UserError(f"the {nodes} nodes did not meet at {place.host}:{place.port}: {error}") from error


def _obey_parent() -> None:
    """A terminal and SLURM signal all processes; the one that the user started decides, and ends this one with it.

    Not by handlers in Python, which wait for what a process asks of the others.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    end_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _work(packed: Path) -> Any:
    _obey_parent()
    work, arguments, hardware, handlers = pickle.loads(packed.read_bytes())
    first = os.environ["RANK"] == "0"
    root = logging.getLogger()
    root.setLevel(logging.INFO if first else logging.ERROR)
    for handler in handlers:
        root.addHandler(handler.make())
    prepare_process(hardware)
    if not (hardware.threads or "OMP_NUM_THREADS" in os.environ):
        torch.set_num_threads(max(granted_cores() // hardware.devices, 1))
    return work(*arguments)


def _raise_as_here(failed: ChildFailedError) -> NoReturn:
    """Raises a UserError of another process as one of this, and one for a process that was killed or is gone; anything
    else with the traceback that it had there.
    """
    _, failure = failed.get_first_failure()
    told = failure.message
    if isinstance(told, dict):
        told = told.get("message", told)
    details = told if isinstance(told, str) else str(told)
    start = f"{UserError.__name__}: "
    if details.startswith(start):
        raise UserError(details.removeprefix(start)) from failed
    for each in failed.failures.values():
        if each.exitcode < 0 and each.exitcode != -signal.SIGTERM:  # by which the agent ends the others
            name = signal.Signals(-each.exitcode).name
            raise UserError(
                f"process {each.local_rank} that trained was ended by {name}, by hand or for want of memory:"
                " the same command goes on"
            ) from failed
    if LOST.search(details):
        raise UserError(
            "another process that trained is gone, and its connection: the log of its node says why; the same command,"
            " on every node, goes on"
        ) from failed
    raise RuntimeError(f"process {failure.local_rank} that trained failed: {details}\n{failed}") from failed
