"""What a sweep says of the time left: by the stages that it still has to make."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sttabt.cli.composition import compose_settings
from sttabt.cli.forecast import Forecast, work_of
from sttabt.cli.sweep import Progress
from sttabt.settings import Settings
from sttabt.store.artifacts import RECORD, Store

JOBS = (("dense", ""), ("random", ""), ("concrete", "-1"), ("concrete", "1"))


def _job(root: Path, method: str, p_logit: str, *others: str) -> Settings:
    own = (
        [f"sparsity.p_logit={p_logit}", "sparsity.training.epochs=8", "sparsity.training.warmup_epochs=0"]
        if p_logit
        else []
    )
    common = ["experiment=debug", f"paths.artifacts={root}", "model.training.epochs=4", "approx.training.epochs=2"]
    common += ["model.training.warmup_epochs=0", "approx.training.warmup_epochs=0"]
    return compose_settings([*common, f"sparsity={method}", *own, *others])


def _made(job: Settings, stage: str, seconds: float) -> None:
    """As a job leaves it: of the description only that it is made of an approximate network is read."""
    settings = asdict(job)
    about = {"approx": "key"} if stage not in ("base", "general") and job.sparsity.reads_approximation else {}
    with Store(job.paths.artifacts).claim(stage, {**about, "settings": settings, "stage": stage}) as claim:
        claim.finish({}, {"settings": settings, "seconds": seconds})


@pytest.fixture
def jobs(tmp_path: Path) -> list[Settings]:
    return [_job(tmp_path, *job) for job in JOBS]


def test_jobs_share_stages(jobs: list[Settings]) -> None:
    stages = [[work.stage for work in work_of(job)] for job in jobs]
    assert stages[0] == ["base", "evaluate", "timing"]
    assert stages[3] == ["base", "approx", "prune", "evaluate", "timing"]
    keys = {work.key for job in jobs for work in work_of(job)}
    assert len(keys) == 1 + 1 + 2 + 4 + 4


def test_only_what_is_still_to_be_made_counts(jobs: list[Settings]) -> None:
    forecast = Forecast(jobs)
    assert forecast.plan() == ""
    _made(jobs[0], "base", 40.0)  # 10 s an epoch
    for stage in ("evaluate", "timing"):
        _made(jobs[0], stage, 1.0)
    # Two of its own seconds are those of torch. 4 evaluations, approx of 2 and two prunings of 8 epochs are left.
    seconds, lacking = forecast.left([0], 44.0, 1)
    assert lacking == "" and seconds == pytest.approx(3 * 2 + 20 + 2 * 80)
    _made(jobs[2], "approx", 30.0)
    _made(jobs[2], "prune", 16.0)
    _made(jobs[2], "evaluate", 1.0)
    _made(jobs[2], "timing", 1.0)
    # A job took 3 s beside its stages; of the two that are left one prunes as the other did.
    seconds, _ = forecast.left([0, 2], 44.0 + 48 + 3, 1)
    assert seconds == pytest.approx(2 * 2 + 16 + 2 * 3)
    assert Forecast(jobs).plan() == "1 of 1 base, 2 of 4 evaluate, 2 of 4 timing, 1 of 1 approx, 1 of 2 prune"


def test_a_training_of_no_epochs_says_nothing_of_one_that_has_some(tmp_path: Path) -> None:
    no_epochs = ["sparsity.training.epochs=0", "sparsity.training.warmup_epochs=0"]
    untrained = [_job(tmp_path, "ltp", "", f"sparsity.mask_weight={weight}", *no_epochs) for weight in (0.1, 0.2)]
    trained = _job(tmp_path, "concrete", "1")
    forecast = Forecast([*untrained, trained])
    _made(untrained[0], "base", 40.0)  # 10 s an epoch
    _made(untrained[0], "prune", 0.01)
    for stage, taken in (("approx", 20.0), ("evaluate", 0.0), ("timing", 0.0)):
        _made(trained, stage, taken)
    seconds, lacking = forecast.left([0, 1], 60.01, 1)
    assert (seconds, lacking) == (pytest.approx(8 * 10), ""), "as long an epoch as those of the others took"
    seconds, _ = forecast.left([0, 2], 60.01, 1)
    assert seconds == pytest.approx(0.01), "and the other without epochs as the first"


def test_a_finished_sweep_has_its_jobs_alone_to_go_through(jobs: list[Settings]) -> None:
    for job in jobs:
        for work in work_of(job):
            _made(job, work.stage, 100.0)
    seconds, lacking = Forecast(jobs).left([0], 5.0, 1)
    assert (seconds, lacking) == (0.0, "")


def test_what_is_remade_is_not_done(jobs: list[Settings], tmp_path: Path) -> None:
    again = [replace(job, remake=["evaluate"]) for job in jobs[:2]]
    for job in again:
        for work in work_of(job):
            _made(job, work.stage, 5.0)
    forecast = Forecast(again)
    assert forecast.plan() == "1 of 1 base"
    assert forecast.left([], 0.0, 1) == (4 * 5.0, "")
    for stage in ("evaluate", "timing"):
        (record,) = [path for path in tmp_path.glob(f"{stage}/*/{RECORD}") if '"random"' not in path.read_text()]
        os.utime(record, ns=(0, record.stat().st_mtime_ns + 1))  # as one that takes its place
    assert (
        forecast.left([0], 10.0, 1)[0] == 2 * 5.0 and forecast.plan() == "1 of 1 base, 1 of 2 evaluate, 1 of 2 timing"
    )


def test_what_nothing_is_known_of_is_named(jobs: list[Settings]) -> None:
    forecast = Forecast(jobs)
    progress = Progress(4, forecast)
    progress.ended = {0}
    progress.done = 1
    assert progress._rest(progress.start + 10) == ", about 30 s left", "jobs are taken to be alike"
    _made(jobs[0], "evaluate", 7.0)
    line = progress._rest(progress.start + 10)
    assert line == ", about 21 s left, and what 1 base, 3 timing, 1 approx, 2 prune take, of which none is made yet"


def test_other_settings_share_nothing(jobs: list[Settings], tmp_path: Path) -> None:
    _made(jobs[0], "base", 1.0)
    for change in ("seed=1", "model.training.epochs=5", "dataset.validation_share=0.3", "hardware.batch_size=8"):
        assert Forecast([_job(tmp_path, "dense", "", change)]).plan() == "", change
    for change in ("approx.factor=2", "evaluation.batch_size=7", "logger=none", "dataset.path=/elsewhere"):
        assert Forecast([_job(tmp_path, "dense", "", change)]).plan() == "1 of 1 base", change


def test_a_damaged_record_is_no_matter(jobs: list[Settings]) -> None:
    _made(jobs[0], "base", 1.0)
    (record,) = Path(jobs[0].paths.artifacts).glob("base/*/artifact.json")
    for content in (b"", b"{}", b"[1]", b'{"notes": 3}', b"\xff"):
        record.write_bytes(content)
        assert Forecast(jobs).plan() == ""
