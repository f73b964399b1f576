"""How many CPU cores this process may use, and how many other threads want them."""

from __future__ import annotations

import os
import time
from pathlib import Path

SAMPLES, INTERVAL = 10, 0.02  # of the threads that run now, and the seconds between two


def granted_cores(root: Path = Path("/")) -> int:
    """Those that affinity and the quotas of control groups (versions 1 and 2) leave, at least 1.

    What others do at the moment is no part of it: the bits of a training follow the number of threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(int(min([cores, *_quotas(root)])), 1)


def others_running(root: Path = Path("/")) -> float:
    """Other threads of the machine that run or wait for a core, as the mean of some looks; 0 where it does not say."""
    found = 0
    for _ in range(SAMPLES):
        try:
            running = (root / "proc/loadavg").read_text().split()[3]  # 3/512
            found += max(int(running.partition("/")[0]) - 1, 0)  # this one runs, too
        except (OSError, ValueError, IndexError):
            return 0.0
        time.sleep(INTERVAL)
    return found / SAMPLES


def crowd(threads: int, cores: int, others: float) -> str | None:
    """The warning where `threads` of this process and those of others do not fit onto `cores`; None where they do."""
    if threads < 2 or others + threads < cores + 1:
        return None
    fitting = max(cores - round(others), 1)
    return (
        f"this machine is crowded: {others:.0f} other threads want its {cores} cores, so that {threads} threads may"
        f" take several times as long: wait for them to end, or set hardware.threads={fitting}"
    )


def _quotas(root: Path) -> list[float]:
    """In cores, of this process's control groups and those above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            found += _quota(folder)
            if folder == top:
                break
    return found


def _quota(folder: Path) -> list[float]:
    """[] without a limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return [int(quota) / int(period)] if int(quota) > 0 else []
    except (OSError, ValueError, ZeroDivisionError):  # max: no limit
        return []
