"""Training on several devices, and on several nodes: a process a device, started for one stage and gone after it.

Everything else of a run stays in the process that the user started, one a node. Of several nodes the first makes the
artifacts and the results; the others train when it trains, and find what it made in the same folder of artifacts.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch.distributed import DistError, TCPStore
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sttabt.errors import UserError
from sttabt.place import Place
from sttabt.settings import HardwareSettings

PATIENCE = timedelta(days=30)  # of a node that waits for what the first one trains or evaluates
GRACE = 10  # seconds between asking processes to end and ending them
INTERRUPTED = 128  # plus a signal's number: the exit code of a process that it ended
FAILED = "failed"
REPEATABLE = (logging.StreamHandler, logging.FileHandler)  # handlers that another process can have, too

log = logging.getLogger(__name__)
logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its tables tell nothing that we do not


def prepare_process(hardware: HardwareSettings) -> None:
    """What a process that trains or evaluates needs before its threads start: each of these has its own switch."""
    # Soft masks go down to 1e-25. Their products are numbers so small that a CPU takes many times as long for each: a
    # step of training at p_logit -2 took seven times that at 1. As 0 they are as good.
    torch.set_flush_denormal(True)
    if hardware.threads:
        torch.set_num_threads(hardware.threads)


class Nodes:
    """This node among those that were started with the same command; with `hardware.nodes=1` there is no other.

    number: 0 for the first; job: the same on all nodes, another for every job of a process.
    Raises UserError when the environment does not say who is who.
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

    def agree(self, name: str, value: str = "") -> str:
        """The first node's value under a `name`, for which the others wait."""
        if self.store is None:
            return value
        name = f"{self.job}/{name}"
        try:
            if self.first:
                self.store.set(name, value)
                return value
            return self.store.get(name).decode()
        except DistError as error:
            raise UserError("the first node has ended: its log says why") from error

    @contextmanager
    def making(self, name: str, needed: bool) -> Iterator[bool]:
        """Around what all nodes do together if the first says that it is `needed`; yields whether it is.

        At its end the others wait for the first one. Raises UserError there when that failed.
        """
        needed = self.agree(name, str(needed)) == str(True)
        try:
            yield needed
        except BaseException:
            if self.first:
                self.agree(f"{name}/end", FAILED)
            raise
        if self.agree(f"{name}/end") == FAILED:
            raise UserError(f"the first node failed while it made {name}: its log says why")

    def end(self) -> None:
        """The first node, whose process holds what they agree on, waits for the others."""
        if self.store is not None:
            names = [f"{self.job}/end/{number}" for number in range(1, self.count)]
            if self.first:
                self.store.wait(names, PATIENCE)
            else:
                self.store.set(names[self.number - 1], "")


def launch(
    work: Callable[..., Any], arguments: tuple[Any, ...], hardware: HardwareSettings, nodes: Nodes, name: str
) -> Any:
    """`work(*arguments)` in `hardware.devices` processes of each node; what the first of this node returns.

    Every process gets copies of the arguments. name: of this work, the same on all nodes and used once.
    Raises UserError as `work` does in any process, and SystemExit when this process was told to end.
    """
    backend, endpoint, settings = "c10d", "localhost:0", {}
    if hardware.nodes > 1:
        backend, settings = "static", {"rank": nodes.number}
        endpoint = f"{nodes.host}:{nodes.agree(f'port/{name}', str(_free_port()))}"
    handlers = [_Handler.of(handler) for handler in logging.getLogger().handlers if type(handler) in REPEATABLE]
    # As bytes: multiprocessing would put tensors into memory that processes share, who then train in each other's.
    packed = pickle.dumps((work, arguments, hardware, handlers))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with tempfile.TemporaryDirectory() as logs:
            config = LaunchConfig(
                min_nodes=hardware.nodes,
                max_nodes=hardware.nodes,
                nproc_per_node=hardware.devices,
                run_id=name,
                rdzv_backend=backend,
                rdzv_endpoint=endpoint,
                rdzv_configs=settings,
                max_restarts=0,
                shutdown_timeout=GRACE,
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            results = elastic_launch(config, _work)(packed)
    except SignalException as stop:
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from stop
        log.warning("told to end by %s; the same command goes on from the last whole epoch", stop.sigval.name)
        raise SystemExit(INTERRUPTED + stop.sigval) from stop
    except ChildFailedError as failed:
        _raise_as_here(failed)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return results[min(results)]


ALONE = Nodes(HardwareSettings(), "")


@dataclass(frozen=True)
class _Handler:
    """A handler of log lines that can be made again in another process."""

    file: str | None
    formatter: logging.Formatter | None

    @classmethod
    def of(cls, handler: logging.Handler) -> _Handler:
        return cls(getattr(handler, "baseFilename", None), handler.formatter)

    def make(self) -> logging.Handler:
        handler = logging.FileHandler(self.file) if self.file else logging.StreamHandler()
        handler.setFormatter(self.formatter)
        return handler


@functools.cache
def _connected(nodes: int) -> tuple[Place, TCPStore]:
    """Once a process, as the jobs of a sweep share it."""
    place = Place.found(nodes)
    first = place.number == 0
    log.info("node %d of %d, the first is %s:%d", place.number, nodes, place.host, place.port)
    return place, TCPStore(place.host, place.port, world_size=nodes, is_master=first, timeout=PATIENCE)


def _work(packed: bytes) -> Any:
    work, arguments, hardware, handlers = pickle.loads(packed)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM gives it to all; the process that the user started decides
    first = os.environ["RANK"] == "0"
    root = logging.getLogger()
    root.setLevel(logging.INFO if first else logging.ERROR)
    for handler in handlers:
        root.addHandler(handler.make())
    prepare_process(hardware)
    if not (hardware.threads or "OMP_NUM_THREADS" in os.environ):
        torch.set_num_threads(max((os.cpu_count() or 1) // hardware.devices, 1))
    return work(*arguments)


def _raise_as_here(failed: ChildFailedError) -> NoReturn:
    """Raises a UserError of another process as one of this; anything else with the traceback that it had there."""
    _, failure = failed.get_first_failure()
    told = failure.message
    if isinstance(told, dict):
        told = told.get("message", told)
    details = told if isinstance(told, str) else str(told)
    start = f"{UserError.__name__}: "
    if details.startswith(start):
        raise UserError(details.removeprefix(start)) from failed
    raise RuntimeError(f"process {failure.local_rank} that trained failed: {details}\n{failed}") from failed


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]
