"""Ctrl-C, SIGTERM and their kind: one line, the exit code, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sttabt

PATIENCE = 200  # seconds, of a machine that is busy with more than this
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(sttabt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
HELD = "from sttabt.system.signals import held, check, run_command, tell_line, kept_from_children, end_with_parent\n"

pytestmark = pytest.mark.usefixtures("own_folder", "hears_signals")


class Program:
    """A process of its own session, as a terminal starts it; its output goes into files."""

    def __init__(self, *arguments: str) -> None:
        with Path("out").open("w") as out, Path("err").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], stdout=out, stderr=err, env=ENVIRONMENT, start_new_session=True
            )

    @classmethod
    def of(cls, body: str) -> Program:
        """`main` with that body, run as a command."""
        lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
        Path("program.py").write_text(
            f"import os, signal, subprocess, sys, time\n{HELD}\ndef main():\n{lines}\n\nif __name__ == '__main__':\n"
            "    run_command(main, 'sttabt.program', 'goes on')\n"
        )
        return cls("program.py", "a=1", "b='x y'")

    def wait_for(self, said: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not said():
            assert self.process.poll() is None and time.monotonic() < deadline, self.err
            time.sleep(0.02)

    def wait_for_output(self, text: str) -> None:
        self.wait_for(lambda: text in self.out)

    def send(self, number: signal.Signals, group: bool = True) -> None:
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self) -> int:
        """The exit code; all of the session must be gone a few seconds later."""
        code = self.process.wait(PATIENCE)
        deadline = time.monotonic() + 15
        while _session(self.process.pid):
            assert time.monotonic() < deadline, _session(self.process.pid)
            time.sleep(0.1)
        return code

    @property
    def out(self) -> str:
        return Path("out").read_text()

    @property
    def err(self) -> str:
        return Path("err").read_text()


def _session(leader: int) -> list[str]:
    listed = subprocess.run(["ps", "-o", "pid,stat,args", "-s", str(leader)], capture_output=True, text=True).stdout
    return [line for line in listed.splitlines()[1:] if line.split()[1][0] not in "ZX"]


READY = "print('ready', flush=True)\n"
COMMAND = """python -m sttabt.program a=1 'b='"'"'x y'"'"'' goes on"""


@pytest.mark.parametrize(
    ("number", "code", "start"),
    [
        (signal.SIGINT, 130, "interrupted by Ctrl-C: "),
        (signal.SIGTERM, 143, "ended by SIGTERM: "),
        (signal.SIGHUP, 129, "ended by SIGHUP: "),
        (signal.SIGUSR1, 138, "ended by SIGUSR1: "),
        (signal.SIGUSR2, 140, "ended by SIGUSR2: "),
    ],
)
def test_a_signal_is_one_line_and_its_exit_code(number: signal.Signals, code: int, start: str) -> None:
    program = Program.of(f"tell_line(lambda: 'done is x')\n{READY}time.sleep(60)")
    program.wait_for_output("ready")
    program.send(number)
    assert program.end() == code
    assert program.err == f"{start}{COMMAND}; done is x\n"


@pytest.mark.parametrize(
    "body",
    [
        "class A:\n    def __del__(self): time.sleep(60)\nA()\ntime.sleep(60)",
        "try: time.sleep(60)\nexcept BaseException: pass\ntime.sleep(60)",
        "try: time.sleep(60)\nexcept SystemExit: raise ImportError('half imported')",
        "try: time.sleep(60)\nexcept SystemExit as stop: raise SystemExit(1) from stop",
        "import threading\nthreading.Thread(target=time.sleep, args=(60,)).start()\ntime.sleep(60)",
        "import atexit\natexit.register(lambda: 1 / 0)\ntime.sleep(60)",
    ],
    ids=["destructor", "caught", "another error", "another exit", "thread", "atexit"],
)
def test_what_swallows_a_signal_does_not_keep_it(body: str) -> None:
    program = Program.of(READY + body)
    program.wait_for_output("ready")
    begun = time.monotonic()
    program.send(signal.SIGINT)
    assert program.end() == 130
    assert time.monotonic() - begun < 20
    assert program.err.startswith(f"interrupted by Ctrl-C: {COMMAND}\n")


def test_a_second_signal_ends_at_once_and_an_echo_is_none() -> None:
    program = Program.of(f"try:\n    {READY}    time.sleep(60)\nfinally:\n    time.sleep(25)")
    program.wait_for_output("ready")
    begun = time.monotonic()
    program.send(signal.SIGINT)
    time.sleep(0.1)
    program.send(signal.SIGINT)  # as `timeout` does
    time.sleep(1)
    assert program.process.poll() is None
    program.send(signal.SIGINT)
    assert program.end() == 130
    assert time.monotonic() - begun < 15
    assert program.err == f"interrupted by Ctrl-C: {COMMAND}\n"


def test_a_held_block_is_not_cut() -> None:
    program = Program.of(
        f"with held() as check:\n    {READY}    time.sleep(1.5)\n    print('whole', flush=True)\nprint('never')"
    )
    program.wait_for_output("ready")
    program.send(signal.SIGTERM)
    assert program.end() == 143
    assert program.out == "ready\nwhole\n"


def test_other_processes_hear_nothing_and_end_with_it() -> None:
    program = Program.of(
        "import multiprocessing\n"
        "with kept_from_children():\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    for _ in range(2): context.Process(target=time.sleep, args=(60,)).start()\n"
        f"multiprocessing.Process(target=time.sleep, args=(60,)).start()\n{READY}time.sleep(60)"
    )
    program.wait_for_output("ready")
    program.send(signal.SIGINT)
    assert program.end() == 130
    assert program.err == f"interrupted by Ctrl-C: {COMMAND}\n"


def test_a_process_ends_with_a_parent_that_is_killed() -> None:
    program = Program.of(
        "import multiprocessing\n"
        "def child():\n    end_with_parent()\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "multiprocessing.get_context('fork').Process(target=child).start()\ntime.sleep(60)"
    )
    program.wait_for_output("ready")
    program.send(signal.SIGKILL, group=False)
    assert program.end() == -signal.SIGKILL


def test_what_the_shell_ignores_stays_ignored() -> None:
    program = Program.of(f"{READY}time.sleep(3)\nprint('done')")
    program.process.kill()
    program.process.wait()
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "os.execv(sys.executable, [sys.executable, 'program.py'])"
    )
    program = Program("-c", code)
    program.wait_for_output("ready")
    program.send(signal.SIGINT)
    assert program.end() == 0 and program.err == ""


# --- the commands

DEBUG = ("experiment=debug", "fast_dev_run=1", "logger=none", "evaluation.timing_rounds=0")


def _has_loaded(program: Program, library: str) -> bool:
    """Whether it has that library in its memory, as while it is imported."""
    return library in Path(f"/proc/{program.process.pid}/maps").read_text()


@pytest.mark.parametrize("group", [True, False], ids=["terminal", "kill"])
def test_a_sweep_that_is_stopped_while_torch_is_imported(group: bool) -> None:
    program = Program("-m", "sttabt.run", "-m", *DEBUG, "sparsity=dense,random")
    program.wait_for(lambda: _has_loaded(program, "libtorch_cpu"))
    program.send(signal.SIGINT, group)
    assert program.end() == 130
    (sweep,) = Path("runs").iterdir()
    assert program.err == (
        f"interrupted by Ctrl-C: python -m sttabt.run -m {' '.join(DEBUG)} sparsity=dense,random goes on;"
        f" no job is done yet that python -m sttabt.report {sweep} could report\n"
    )
    assert "interrupted in job 1/2: it and all that follow are not done" in program.out
    assert "Traceback" not in program.out


def test_a_sweep_that_is_stopped_reports_the_jobs_that_have_ended_and_goes_on() -> None:
    sweep = ("-m", "sttabt.run", "-m", *DEBUG, "sparsity=dense,random")
    program = Program(*sweep)
    program.wait_for_output("job 2/2 begins")
    program.send(signal.SIGINT)
    assert program.end() == 130
    (folder,) = Path("runs").iterdir()
    assert program.err.endswith(f"; python -m sttabt.report {folder} reports what is done\n")
    assert program.err.count("\n") == 1
    assert "| dense " in (folder / "report/table.md").read_text() and (folder / "report/index.html").exists()
    again = Program(*sweep)
    assert again.end() == 0, again.err
    assert "done already: 1 of 1 base, 1 of 2 evaluate" in again.out


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (("sttabt.report", "."), "_multiarray_umath"),
        (("sttabt.bench", "model=deit_tiny"), "libtorch_cpu"),
        (("sttabt.parity", str(Path(__file__).parent / "golden")), "libtorch_cpu"),
        (("sttabt.convert", "in=a.pth", "out=b.safetensors"), "libtorch_cpu"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_other_commands(arguments: tuple[str, ...], loaded: str) -> None:
    Path("row.json").write_text("{}")
    Path("a.pth").write_bytes(b"")
    program = Program("-m", *arguments)
    program.wait_for(lambda: _has_loaded(program, loaded))
    program.send(signal.SIGINT)
    assert program.end() == 130
    assert program.err.startswith(f"interrupted by Ctrl-C: python -m {arguments[0]} ")
    assert program.err.endswith(" begins again\n") and program.err.count("\n") == 1
