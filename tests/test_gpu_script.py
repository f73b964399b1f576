"""scripts/gpu.sh, rehearsed on the CPU: its steps, its time limits, and what it leaves."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sttabt.bench.goals import format_goals

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu.sh"
STEPS = ["tests", "bench", "single", "training"]
MOST_FILES, MOST_BYTES = 8, 16 * 2**20  # what comes back from such a machine


def _run(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    given = {"DEVICE": "cpu", "OUT": str(folder), "PYTHON": sys.executable, **environment}
    return subprocess.run(
        [SCRIPT], env={**os.environ, **given}, capture_output=True, text=True, timeout=1200, preexec_fn=_in_background
    )


def _in_background() -> None:
    """As a shell starts a command there: without Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _results(folder: Path) -> dict[str, str]:
    """By step."""
    lines = [line.strip("| ").split(" | ") for line in (folder / "steps.md").read_text().splitlines()[2:]]
    return {line[0]: line[-1] for line in lines}


def _speed(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "bench.jsonl").read_text().splitlines()]


def test_tests_for_a_card_need_no_package_that_is_not_there() -> None:
    texts = {path.name: path.read_text() for path in Path(__file__).parent.glob("test_*.py")}
    there = {name: text for name, text in texts.items() if re.search(r"mark[.]gpu", text)}
    assert {"test_gpu.py", "test_graphed.py"} <= there.keys() and Path(__file__).name not in there
    assert [name for name, text in there.items() if re.search(r"hypothesis|mark\.timeout", text)] == []


@pytest.mark.timeout(1300)
def test_the_rehearsal_leaves_rows_tables_and_a_log(tmp_path: Path) -> None:
    ended = _run(tmp_path, **{f"LIMIT_{step}": "1000" for step in STEPS})
    assert _results(tmp_path) == dict.fromkeys(STEPS, "ok") and ended.returncode == 0, ended.stdout[-5000:]
    files = sorted(tmp_path.iterdir())
    assert len(files) <= MOST_FILES and all(0 < file.stat().st_size <= MOST_BYTES for file in files)
    rows = _speed(tmp_path)
    assert {row["batch"] for row in rows} == {1, 2} and {"training step", "compiled"} <= {row["group"] for row in rows}
    tables = (tmp_path / "bench.md").read_text()
    assert "test_vit" in tables and tables.startswith(format_goals())
    with (tmp_path / "training.csv").open() as table:
        assert [row["method"] for row in csv.DictReader(table)] == ["dense", "concrete"]
    log = (tmp_path / "log.txt").read_text()
    assert " passed" in log and "failed" not in log.split("gpu: bench,")[0]


@pytest.mark.timeout(1300)
def test_a_step_that_runs_out_of_time_leaves_the_others(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("not a result: it stays")
    ended = _run(tmp_path, LIMIT_tests="1", LIMIT_bench="1", LIMIT_single="1000", LIMIT_training="1")
    late = "stopped at its limit"
    assert _results(tmp_path) == {"tests": late, "bench": late, "single": "ok", "training": late}
    assert ended.returncode == 1 and mine.exists()
    assert {row["batch"] for row in _speed(tmp_path)} == {1}
    assert not (tmp_path / "training.csv").exists()
