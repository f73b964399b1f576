"""What is used for long and by many at once stays right and does not grow: memory, threads, open files."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sttabt
from conftest import make_approx, make_backbone, make_inputs
from sttabt.cli.composition import compose_settings
from sttabt.lit.stage import TrainingStage
from sttabt.methods import find_method
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.stages import run_stages
from sttabt.run import main
from sttabt.settings import method_settings
from sttabt.store.job import Job

METHODS = ("backtracking", "concrete", "forward_topk", "tome")
MEGABYTE = 2**20


def _model(method: str, frozen: bool) -> tuple[Any, Any]:
    name = "test_vit"
    base = make_backbone(name)
    settings = method_settings(method)(method=method)  # type: ignore[call-arg]
    approx = make_approx(base, name) if settings.reads_approximation else None
    pruned = PrunedModel(base, find_method(method)(settings, base.layers, base.outputs), approx).eval()
    return (sttabt.freeze(pruned) if frozen else pruned), make_inputs(name)


@pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])
@pytest.mark.parametrize("method", METHODS)
def test_four_threads_get_what_one_gets(method: str, frozen: bool) -> None:
    model, inputs = _model(method, frozen)
    batches = [inputs[:count] for count in (1, 2, 3, 4)]
    with torch.inference_mode():
        expected = [model(batch) for batch in batches]
    found: dict[tuple[int, int], torch.Tensor] = {}

    def work(place: int) -> None:
        with torch.inference_mode():
            for turn in range(10):
                found[place, turn] = model(batches[place])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 40
    assert all(torch.equal(logits, expected[place]) for (place, _), logits in found.items())


@pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])
def test_a_forked_child_gets_what_its_parent_gets(frozen: bool) -> None:
    """As a server that forks its workers, or a DataLoader whose transform asks a model."""
    model, inputs = _model("backtracking", frozen)
    with torch.inference_mode():
        expected = model(inputs)
    child = os.fork()
    if child == 0:
        with torch.inference_mode():
            os._exit(0 if torch.equal(model(inputs), expected) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("times", [50, pytest.param(1_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])
@pytest.mark.parametrize("method", METHODS)
def test_many_evaluations_leave_nothing_behind(method: str, frozen: bool, times: int) -> None:
    model, inputs = _model(method, frozen)
    with torch.inference_mode():
        _check_growth(lambda: model(inputs), times, megabytes=8)


@pytest.mark.parametrize("jobs", [pytest.param(60, marks=pytest.mark.long)])
def test_a_sweep_of_many_jobs_does_not_grow(jobs: int, own_folder: None) -> None:
    """In one process, as the basic launcher runs them."""
    small = ["name=test", "model=test_vit", "model.width=32", "model.heads=1", "model.depth=1", "model.patch_size=14"]
    small += ["dataset=digits", "hardware=cpu", "logger=csv", "evaluation.timing_rounds=1", "fast_dev_run=1"]
    numbers = iter(range(10 * jobs))

    def job() -> None:
        number = next(numbers)
        settings = compose_settings([*small, f"sparsity.p_logit={number / 100}"], output=f"output/{number}")
        run_stages(settings, Job("test", "test", True, ""))
        assert Path(settings.paths.output, "row.json").exists()

    _check_growth(job, jobs, megabytes=60)


def test_a_job_of_a_sweep_leaves_no_weights_behind(own_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["name=test", "model=test_vit", "model.width=32", "model.heads=1", "model.depth=1", "model.patch_size=14"]
    small += ["dataset=digits", "hardware=cpu", "logger=none", "evaluation.timing_rounds=0", "fast_dev_run=1"]
    sweep = ["hydra.mode=MULTIRUN", "sparsity=ltp", "sparsity.mask_weight=0.1,0.2"]
    monkeypatch.setattr(sys, "argv", ["sttabt", *small, *sweep])
    gc.collect()
    gc.disable()
    try:
        main()
        left = [each for each in gc.get_objects() if isinstance(each, TrainingStage | PrunedModel)]
    finally:
        gc.enable()
    assert left == []


def _check_growth(work: Callable[[], object], times: int, megabytes: float) -> None:
    for _ in range(max(times // 10, 5)):  # what grows at first: caches, pools, thread-local buffers
        work()
    for _ in range(2):
        before = _used()
        for _ in range(times):
            work()
        memory, threads, files = (after - then for after, then in zip(_used(), before, strict=True))
        if threads <= 0 and files <= 0:  # what tests before this one left may open a file; the work opens one each time
            break
    assert threads <= 0 and files <= 0
    assert memory / MEGABYTE < megabytes


def _used() -> tuple[int, int, int]:
    """Bytes of memory, threads and open files of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    threads, files = (sum(1 for _ in Path("/proc/self", each).iterdir()) for each in ("task", "fd"))
    return pages * resource.getpagesize(), threads, files
