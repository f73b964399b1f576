"""How many threads a process takes, and when it warns that others want its cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sttabt.system import cores

ALL = len(os.sched_getaffinity(0))

LIMITS = {  # by name: /proc/self/cgroup, files below /sys/fs/cgroup, the cores that are granted of eight
    "none": ("", {}, 8),
    "version 2": ("0::/", {"cpu.max": "250000 100000"}, 2),
    "version 2 without a limit": ("0::/", {"cpu.max": "max 100000"}, 8),
    "the group above": ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
    "less than a core": ("0::/", {"cpu.max": "50000 100000"}, 1),
    "more than there are": ("0::/", {"cpu.max": "9900000 100000"}, 8),
    "version 1": ("3:cpuset:/\n1:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "400000",
                                                   "cpu/a/cpu.cfs_period_us": "100000"}, 4),
    "version 1 without a limit": ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    "damaged": ("0::/", {"cpu.max": "?"}, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_a_container_grants_what_its_quota_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, files, granted = LIMITS[name]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for file, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{f}": t for f, t in files.items()}}.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"{text}\n")
    assert cores.granted_cores(tmp_path) == granted


def test_this_machine_grants_no_more_than_affinity_leaves() -> None:
    assert 1 <= cores.granted_cores() <= ALL


@pytest.mark.parametrize(("text", "others"), [("1.0 1.0 1.0 4/90 7", 3), ("0 0 0 0/9 7", 0), ("?", 0), (None, 0)])
def test_threads_of_others_are_counted(text: str | None, others: float, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/loadavg").write_text(text)
    assert cores.others_running(tmp_path) == others


def test_a_crowded_machine_is_told_with_what_to_do() -> None:
    assert cores.crowd(threads=2, cores=2, others=0.4) is None
    assert cores.crowd(threads=1, cores=2, others=9) is None
    assert cores.crowd(threads=2, cores=64, others=40) is None
    assert str(cores.crowd(threads=2, cores=2, others=2)).endswith("or set hardware.threads=1")
    assert str(cores.crowd(threads=8, cores=8, others=3)).endswith("or set hardware.threads=5")
