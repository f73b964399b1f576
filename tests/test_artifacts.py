"""The artifact store: found by what made it, made once, never half."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sttabt.errors import UserError
from sttabt.store.artifacts import Store, fingerprint, load_folder

DESCRIPTION = {"model": {"name": "vit", "width": 96}, "seed": 0}
TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


def _finished(root: Path, description: dict = DESCRIPTION) -> Path:
    with Store(root).claim("base", description) as claim:
        claim.finish(TENSORS, {"accuracy": 0.9})
        return claim.folder


def test_fingerprint_ignores_order_and_notices_every_value() -> None:
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2}) != fingerprint({"b": 1})
    assert len(fingerprint({})) == 16
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"a": float("nan")})


def test_finished_artifact_is_found_and_loads_what_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("base", DESCRIPTION) is None
    folder = _finished(tmp_path)
    assert store.find("base", DESCRIPTION) == folder
    with store.claim("base", DESCRIPTION) as claim:
        assert claim.finished
    tensors, record = store.load("base", DESCRIPTION)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert record["notes"] == {"accuracy": 0.9}
    assert record["description"] == DESCRIPTION
    assert sorted(path.name for path in folder.iterdir()) == ["artifact.json", "model.safetensors"]


def test_tied_and_strided_and_no_tensors_are_written(tmp_path: Path) -> None:
    weight = torch.rand(4, 3)
    for seed, tensors in enumerate(({"a": weight, "b": weight, "c": weight.T}, {})):
        with Store(tmp_path).claim("base", {"seed": seed}) as claim:
            claim.finish(tensors)
        loaded, _ = Store(tmp_path).load("base", {"seed": seed})
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_become_no_artifact(value: float, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with (
        pytest.raises(UserError, match=r"stage base gave weights that are not finite \(weight\): nothing is kept"),
        store.claim("base", DESCRIPTION) as claim,
    ):
        claim.finish({"steps": torch.tensor(7), "weight": torch.tensor([1.0, value])})
    assert store.find("base", DESCRIPTION) is None and not list(claim.folder.iterdir())


def test_load_of_other_settings_names_the_first_that_differs(tmp_path: Path) -> None:
    folder = _finished(tmp_path)
    with pytest.raises(UserError, match=r"was made with model\.width=96, not with 64"):
        load_folder(folder, {"model": {"name": "vit", "width": 64}, "seed": 0})


def test_missing_message_names_the_nearest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert "none of that stage" in store.missing_message("base", DESCRIPTION)
    near = _finished(tmp_path, {**DESCRIPTION, "seed": 1})
    _finished(tmp_path, {"model": {"name": "bert", "width": 768}, "seed": 2})
    with pytest.raises(UserError, match=rf"the nearest, {near.name}, differs in seed \(1 there, 0 here\)$"):
        store.load("base", DESCRIPTION)


@pytest.mark.parametrize("size", [0, 20, -1])
def test_truncated_weights_are_refused(tmp_path: Path, size: int) -> None:
    weights = _finished(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged .*: delete .* and run the stage again"):
        Store(tmp_path).load("base", DESCRIPTION)


def test_a_changed_bit_is_refused(tmp_path: Path) -> None:
    weights = _finished(tmp_path) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        Store(tmp_path).load("base", DESCRIPTION)


@pytest.mark.parametrize("change", ["truncate", "edit"])
def test_a_damaged_record_is_refused(tmp_path: Path, change: str) -> None:
    record = _finished(tmp_path) / "artifact.json"
    if change == "truncate":
        record.write_text(record.read_text()[:30])
    else:
        content = json.loads(record.read_text())
        content["description"]["seed"] = 5
        record.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"artifact\.json is damaged"):
        Store(tmp_path).load("base", DESCRIPTION)


@pytest.mark.parametrize("renames", [0, 1])
def test_an_interrupted_write_is_no_artifact_and_can_be_done_again(tmp_path: Path, renames: int) -> None:
    """The process dies at its first rename (weights) or at its second (record)."""
    code = f"""
import os, pathlib, torch
from sttabt.store.artifacts import Store
rename, left = pathlib.Path.replace, [{renames}]
def die(self, target):
    if not left[0]:
        os._exit(9)
    left[0] -= 1
    return rename(self, target)
pathlib.Path.replace = die
with Store({str(tmp_path)!r}).claim("base", {DESCRIPTION!r}) as claim:
    claim.finish({{"weight": torch.zeros(1000)}})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    store = Store(tmp_path)
    assert store.find("base", DESCRIPTION) is None
    with store.claim("base", DESCRIPTION) as claim:  # the dead process holds no lock
        assert not claim.finished
        claim.finish(TENSORS)
    assert torch.equal(store.load("base", DESCRIPTION)[0]["weight"], TENSORS["weight"])
    assert not list(claim.folder.glob("*.partial"))


def test_an_error_in_the_work_leaves_the_artifact_unfinished_and_free(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Store(tmp_path).claim("base", DESCRIPTION) as claim:
        raise RuntimeError("out of memory")
    with Store(tmp_path).claim("base", DESCRIPTION) as claim:
        assert not claim.finished


def test_two_processes_make_an_artifact_once(tmp_path: Path) -> None:
    code = f"""
import logging, pathlib, sys, time, torch
from sttabt.store.artifacts import Store
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
root = pathlib.Path({str(tmp_path)!r})
(root / ("ready" + sys.argv[1])).touch()
while len(list(root.glob("ready*"))) < 2:
    time.sleep(0.01)
with Store(root).claim("base", {DESCRIPTION!r}) as claim:
    if not claim.finished:
        print("made")
        time.sleep(1)
        claim.finish({{"weight": torch.ones(3)}})
print(Store(root).load("base", {DESCRIPTION!r})[0]["weight"].sum().item())
"""
    command = [sys.executable, "-c", code]
    jobs = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    outputs = sorted(job.communicate(timeout=60)[0].splitlines() for job in jobs)
    assert outputs[0] == ["made", "3.0"]
    assert outputs[1][0].startswith("waiting for another job")
    assert outputs[1][1:] == ["3.0"]
    assert [job.returncode for job in jobs] == [0, 0]


def test_a_free_artifact_is_claimed_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _finished(tmp_path)
    assert not caplog.records
