"""Ctrl-C, and the signals by which others end a process: one line, an exit code, no traceback, within seconds.

A signal raises `Stopped` in the main thread, wherever that is: whatever is written is written so that a kill loses
nothing, and locks, runs of W&B and other processes end with their contexts. What swallows it gets it again. A second
signal ends the process at once, and so does a clean-up that takes too long. No torch: it is there before all else.
"""

from __future__ import annotations

import _thread  # threading's own start takes a lock that the code under a signal may hold
import atexit
import contextlib
import os
import shlex
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
TWICE = 0.5  # seconds within which a second signal is the first one's echo: `timeout` sends to process and group
PR_SET_PDEATHSIG = 1  # of Linux' prctl
PATIENCE = 30.0  # seconds that a clean-up may take


class Stopped(SystemExit):
    """A signal ends this process, with the exit code 128 + its number. No Exception: nothing shall go on after it."""

    @property
    def signal(self) -> str:
        """`SIGINT`, `SIGTERM` or another name."""
        return signal.Signals(int(str(self.code)) - 128).name


@dataclass
class _State:
    command: str = ""
    again: str = "begins again"
    done: Callable[[], str] = str  # what to say of what is done
    process: int = field(default_factory=os.getpid)
    installed: bool = False
    held: int = 0
    received: signal.Signals | None = None
    at: float = 0.0
    deadline: float = 0.0
    raised: Callable[[], object] = lambda: True  # gives None once what was raised is gone
    repeated: bool = False
    over: bool = False


_state = _State()


def run_command(main: Callable[[], int | None], module: str, again: str = "begins again") -> NoReturn:
    """What `python -m MODULE` does: `main`, whose exit code it ends with, or the line of a signal.

    again: what the same command does after a signal, `goes on` or `begins again`.
    """
    _state.command, _state.again = shlex.join(["python", "-m", module, *sys.argv[1:]]), again
    _install()
    code: Any = None
    try:
        code = main()
    except BaseException:
        if _state.received is None:
            raise
    finally:
        _state.over = True
    if _state.received is None:
        for number in ENDING:  # all is done but for the interpreter's own end, where the system's own answer is a kill
            signal.signal(number, signal.SIG_IGN)
        sys.exit(code)
    _kill_workers()  # else multiprocessing waits for them
    # The interpreter's own end would join threads, and can crash in libraries that were half imported.
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    _exit()


def tell_line(done: Callable[[], str]) -> None:
    """From now on the line of a signal ends with `done()`: where what is done lies, or what reports it."""
    _state.done = done


def tell_results(folder: Path) -> None:
    """As `tell_line`, of rows below `folder`."""

    def done() -> str:
        command = shlex.join(["python", "-m", "sttabt.report", str(folder)])
        if any(folder.glob("row.json")) or any(folder.glob("*/row.json")):
            return f"{command} reports what is done"
        return f"no job is done yet that {command} could report"

    tell_line(done)


def check() -> None:
    """Raises Stopped if a signal has come: for places where it may have been swallowed, or waited."""
    if _state.received is not None and os.getpid() == _state.process:
        _raise()


def stopping() -> bool:
    """Whether a signal has come."""
    return _state.received is not None


def caught() -> bool:
    """Whether signals raise Stopped in this process."""
    return _state.installed and os.getpid() == _state.process


@contextmanager
def held(seconds: float = PATIENCE) -> Iterator[Callable[[], None]]:
    """A block that no signal cuts: one that comes meanwhile is raised at its end, or by the function that this yields.

    seconds: how long the block may go on after a signal.
    """
    before = {} if _state.installed else _install()
    _state.held += 1
    _state.deadline = max(_state.deadline, time.monotonic() + seconds)
    try:
        yield check
    finally:
        _state.held -= 1
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.installed = _state.installed and not before
    if not (_state.received is None or before):
        check()


@contextmanager
def kept_from_children() -> Iterator[None]:
    """Processes that are started in this block, and theirs, hear no Ctrl-C of the terminal: who started them ends them.

    They inherit that it is blocked. This process goes on to hear it, by a thread that blocks nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()  # its start would end the blocking
    ended = threading.Event()
    threading.Thread(target=ended.wait, daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        ended.set()


def end_processes(processes: Sequence[int], seconds: float) -> None:
    """Asks processes of this user to end, and ends those that have not after so many seconds, with what they began."""
    deadline = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    left = [each for process in processes for each in _family(process)]
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = [each for process in left for each in _family(process)]
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def end_with_parent(_: int = 0) -> None:
    """In a process of multiprocessing: ends it when its parent does, also by SIGKILL, also before this is called.

    Those that load data would wait for ever to hand over what they have loaded. Linux alone can do so.
    """
    import ctypes
    from multiprocessing import parent_process

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(128 + signal.SIGTERM)


def _install() -> dict[signal.Signals, Any]:
    """The handlers before, of signals that are not ignored: a shell ignores Ctrl-C for what runs in its background."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _handle)
    _state.installed, _state.process = True, os.getpid()
    hook = sys.unraisablehook
    sys.unraisablehook = lambda given: None if isinstance(given.exc_value, Stopped) else hook(given)
    return before


def _handle(number: int, _: FrameType | None) -> None:
    if os.getpid() != _state.process:  # a fork, as one that loads data: it ends with its parent, or by its parent
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    now = time.monotonic()
    if _state.received is None:
        _state.received, _state.at = signal.Signals(number), now
        _state.deadline = max(_state.deadline, now + PATIENCE)
        _say()
        _thread.start_new_thread(_watch, ())
    elif _state.repeated:
        _state.repeated = False
    elif now - _state.at > TWICE:
        _exit()
    else:
        return
    if _state.over:
        _exit()
    if not _state.held:
        _raise()


def _raise() -> NoReturn:
    assert _state.received is not None
    stop = Stopped(128 + _state.received)
    _state.raised = weakref.ref(stop)
    try:
        raise stop
    finally:
        del stop  # else its traceback would keep it


def _say() -> None:
    assert _state.received is not None
    how = "interrupted by Ctrl-C" if _state.received == signal.SIGINT else f"ended by {_state.received.name}"
    command = _state.command or shlex.join(sys.argv)
    done = _state.done()
    line = f"{how}: {command} {_state.again}{f'; {done}' if done else ''}\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode(errors="replace"))  # the stream may be in use just now


def _watch() -> None:
    """Raises again what was swallowed, as by a destructor; ends the process where nothing else does."""
    main = threading.main_thread().ident
    assert _state.received is not None and main is not None
    while time.monotonic() < _state.deadline:
        time.sleep(0.1)
        if not (_state.raised() or _state.held or _state.over or _state.repeated):
            _state.repeated = True
            signal.pthread_kill(main, _state.received)
    _exit()


def _exit() -> NoReturn:
    """At once, and other processes with it."""
    assert _state.received is not None
    for child in _children(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGTERM)
    _kill_workers()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(128 + _state.received)


def _kill_workers() -> None:
    if "multiprocessing" in sys.modules:
        for process in sys.modules["multiprocessing"].active_children():
            process.kill()


def _family(process: int) -> list[int]:
    """The process, unless it has ended, and all that it began."""
    try:
        ended = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return []
    return [*([] if ended else [process]), *(each for child in _children(process) for each in _family(child))]


def _children(process: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:  # it has ended, or this is not Linux
        return []
