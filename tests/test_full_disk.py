"""A disk that refuses at any point of a run: one line, nothing half written counts, and the same command goes on."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from long.trials import trials
from sttabt.errors import UserError
from sttabt.pipeline.stages import run_stages
from sttabt.settings import Settings
from sttabt.store.artifacts import Store
from sttabt.store.inventory import FINISHED, UNFINISHED, entries
from sttabt.system.faults import system_fault
from test_stages import JOB, _settings

pytestmark = pytest.mark.usefixtures("own_folder")


@contextmanager
def _refusing(what: str, code: int, after: int) -> Iterator[list[bool]]:
    """Every call but the first `after` ones fails; whether one has."""
    refused: list[bool] = []
    owner, name = {"write": (os, "fsync"), "rename": (Path, "replace")}[what]
    own, calls = getattr(owner, name), itertools.count()

    def call(*arguments: object) -> object:
        if next(calls) < after:
            return own(*arguments)
        refused.append(True)
        raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield refused


def _weights(settings: Settings) -> dict[str, str]:
    records = Store(settings.paths.artifacts).records()
    return {f"{folder.parent.name}/{folder.name}": record["sha256"] for folder, record in records}


@pytest.mark.parametrize("what", ["write", "rename"])
@pytest.mark.parametrize("points", [2, pytest.param(100, marks=pytest.mark.long)])
def test_a_disk_that_is_full_at_every_write_point(what: str, points: int) -> None:
    settings = _settings("sparsity.training.epochs=2", "sparsity.training.warmup_epochs=0")
    run_stages(settings, JOB)
    expected = _weights(settings)
    with trials(f"a disk that is full at every point of a run ({what})") as found:
        for after in range(points):
            shutil.rmtree("artifacts")
            with _refusing(what, errno.ENOSPC, after) as refused:
                try:
                    run_stages(settings, JOB)
                except (UserError, OSError) as error:
                    line = str(error) if isinstance(error, UserError) else system_fault(error)
                    assert line and "\n" not in line and os.strerror(errno.ENOSPC) in line
            if not refused:
                break
            states = (
                [each.state for each in entries(Path("artifacts"), whole=True)] if Path("artifacts").is_dir() else []
            )
            if wrong := [state for state in states if state not in (FINISHED, UNFINISHED)]:
                found.trial(f"after {after} calls: {wrong}")
                continue
            run_stages(settings, JOB)
            left = [*Path("artifacts").rglob("*.partial"), *Path("artifacts").rglob("*.ckpt")]
            found.trial(None if _weights(settings) == expected and not left else f"after {after} calls: {left}")
    assert found.survived >= min(points, 10)
