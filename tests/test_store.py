"""The store: files that are whole, what data holds, what is damaged, and the command that looks after all of it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sttabt.artifacts import main
from sttabt.errors import UserError
from sttabt.store import contents
from sttabt.store.artifacts import DAMAGED, DamagedError, Store
from sttabt.store.contents import digest
from sttabt.system import files
from sttabt.system.faults import SAFE
from sttabt.system.files import replacing, sweep, write_atomically

TENSORS = {"weight": torch.arange(6.0)}


# --- files


def test_what_a_dead_process_left_is_swept_by_the_next_who_writes_there(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from sttabt.system.files import replacing
with replacing(pathlib.Path({str(tmp_path)!r}) / "row.json") as partial:
    partial.write_text("half")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    (litter,) = tmp_path.iterdir()
    assert files.PARTIAL.fullmatch(litter.name)
    with replacing(tmp_path / "row.json") as partial:  # of a process that lives: it stays
        partial.write_text("mine")
        write_atomically(tmp_path / "table.csv", b"other files")
        assert not litter.exists() and partial.exists()
        sweep(tmp_path)
        assert partial.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["row.json", "table.csv"]
    assert (tmp_path / "row.json").read_text() == "mine"


@pytest.mark.parametrize("place", ["write_bytes", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_is_named_and_leaves_what_was_there(
    place: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "row.json", b"old")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*((os, "fsync") if place == "fsync" else (Path, place)), refuse)
    with pytest.raises(UserError) as error:
        write_atomically(tmp_path / "row.json", b"new")
    line = str(error.value)
    assert line.startswith(f"{tmp_path / 'row.json'}: ") and f"({os.strerror(code)}): " in line and SAFE in line
    assert (tmp_path / "row.json").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["row.json"]


# --- contents


def _files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir()}


def test_contents_are_the_same_elsewhere_and_at_another_time(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    for name in ("a.png", "b.png"):
        (here / name).write_text(name)
    found = digest(_files(here), tmp_path / "store")
    shutil.copytree(here, there)
    for path in there.iterdir():
        os.utime(path, (1, 1))
    assert digest(_files(there), tmp_path / "store") == found
    (there / "b.png").write_text("c.png")  # the same size
    os.utime(there / "b.png", (1, 1))  # and time
    assert digest(_files(there), tmp_path / "store") != found
    (there / "b.png").write_text("b.png")
    assert digest(_files(there), tmp_path / "store") == found
    (there / "b.png").rename(there / "c.png")
    assert digest(_files(there), tmp_path / "store") != found, "the name says what it is"


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        (tmp_path / "data" / name).write_text(name)
    read: list[str] = []
    checksum = contents.checksum
    monkeypatch.setattr(contents, "checksum", lambda path: read.append(path.name) or checksum(path))  # type: ignore
    first = digest(_files(tmp_path / "data"), tmp_path)
    digest(_files(tmp_path / "data"), tmp_path)
    assert sorted(read) == ["a", "a", "b", "b"], "changed just now: another change might not show in the time"
    monkeypatch.setattr(contents, "SETTLED", -(10**12))
    for _ in range(3):
        assert digest(_files(tmp_path / "data"), tmp_path) == first
    assert sorted(read) == ["a", "a", "a", "b", "b", "b"]
    (tmp_path / "data" / "b").write_text("B")
    assert digest(_files(tmp_path / "data"), tmp_path) != first
    assert sorted(read)[3:] == ["b", "b", "b", "b"] and read.count("a") == 3


def test_a_damaged_table_of_contents_and_what_cannot_be_read_cost_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("a")
    os.mkfifo(tmp_path / "data" / "pipe")
    (tmp_path / "data" / "gone").symlink_to(tmp_path / "nowhere")
    found = digest(_files(tmp_path / "data"), tmp_path)
    (table,) = (tmp_path / "contents").glob("*.tsv")
    for text in (b"\xff\0\n", b"", b"half\tof\ta\tline", b"x" * 64 + b"\t"):
        table.write_bytes(text)
        assert digest(_files(tmp_path / "data"), tmp_path) == found


# --- what is made again, and what is damaged


def _make(root: Path, stage: str = "base", made_of: dict[str, str] | None = None, **description: Any) -> Path:
    with Store(root).claim(stage, description, made_of) as claim:
        assert not claim.finished
        (claim.folder / "row.json").write_text("{}")
        (claim.folder / "last.ckpt").write_text("a checkpoint")
        claim.finish(TENSORS)
        return claim.folder


def test_a_finished_artifact_has_no_checkpoint_and_one_of_other_weights_is_outdated(tmp_path: Path) -> None:
    folder = _make(tmp_path, "approx", {"base": "1f"}, seed=0)
    assert sorted(path.name for path in folder.iterdir()) == ["artifact.json", "model.safetensors", "row.json"]
    for sha256, outdated in (("1f", ""), ("2f", "base")):
        with Store(tmp_path).claim("approx", {"seed": 0}, {"base": sha256}) as claim:
            assert claim.outdated() == outdated
    with Store(tmp_path).claim("approx", {"seed": 0}, {}) as claim:
        assert claim.outdated() == ""
        claim.begin_again()
        assert not claim.finished


@pytest.mark.parametrize("name", ["model.safetensors", "row.json", "artifact.json"])
@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "missing"])
def test_every_damage_is_found_and_set_aside(
    name: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _make(tmp_path, seed=0)
    _make(tmp_path, seed=1)
    path = folder / name
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        flipped = whole[:1] + bytes([whole[1] ^ 1]) + whole[2:]
        path.write_bytes({"flip": flipped, "truncate": whole[:-2], "empty": b""}[how])
    store = Store(tmp_path)
    if (name, how) == ("artifact.json", "missing"):
        assert store.find("base", {"seed": 0}) is None and store.set_aside(folder) is None
        return
    with pytest.raises(DamagedError, match=rf"{name} is (damaged|missing)"):
        store.load("base", {"seed": 0})
    assert len(list(store.records("base"))) == (1 if name == "artifact.json" else 2), "it blocks nobody"
    aside = store.set_aside(folder)
    assert aside == tmp_path / DAMAGED / f"base-{folder.name}" and aside.is_dir() and not folder.exists()
    assert [record["description"] for _, record in store.records("base")] == [{"seed": 1}]
    assert store.set_aside(folder) is None, "another job has done so"
    again = _make(tmp_path, seed=0)
    assert store.set_aside(again) is None and again.exists(), "a whole one stays"


@pytest.mark.parametrize(
    "text", ["[]", "null", "1" * 10_000, "[" * 100_000, '{"stage": "base"}', '{"description": 3}', "\ud800"]
)
def test_any_record_is_damaged_or_whole(text: str, tmp_path: Path) -> None:
    folder = _make(tmp_path, seed=0)
    (folder / "artifact.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(DamagedError, match=r"artifact\.json is damaged \(.+\): delete \S+ and run the stage again"):
        Store(tmp_path).load("base", {"seed": 0})
    assert "nearest" not in Store(tmp_path).missing_message("base", {"seed": 5})


def test_a_pipe_in_the_place_of_a_record_does_not_hang(tmp_path: Path) -> None:
    folder = _make(tmp_path, seed=0)
    (folder / "artifact.json").unlink()
    os.mkfifo(folder / "artifact.json")
    with pytest.raises(DamagedError, match="it is no file"):
        Store(tmp_path).load("base", {"seed": 0})


# --- the command


def _call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], list[str]]:
    code = main(arguments)
    shown = capsys.readouterr()
    return code, shown.out.splitlines(), shown.err.splitlines()


def _family(root: Path) -> tuple[Path, Path, Path]:
    base = _make(root, "base", seed=0)
    approx = _make(root, "approx", {}, base=base.name)
    return base, approx, _make(root, "prune", {}, base=base.name, approx=approx.name)


def test_list_says_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = _family(tmp_path)
    with Store(tmp_path).claim("base", {"seed": 5}) as claim:
        (claim.folder / "last.ckpt").write_text("half")
    code, lines, _ = _call(capsys, "list", f"artifacts={tmp_path}")
    assert code == 0 and lines[-1].startswith("4 artifacts")
    assert [line.split()[1] for line in lines[1:-1]] == [
        folders[0].name,
        claim.folder.name,
        *(f.name for f in folders[1:]),
    ]
    assert [line.split()[-1] for line in lines[1:-1]] == ["finished", "unfinished", "finished", "finished"]
    code, lines, _ = _call(capsys, "list", f"artifacts={tmp_path}", "stage=approx")
    assert [line.split()[1] for line in lines[1:-1]] == [folders[1].name]


def test_verify_names_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, *_ = _family(tmp_path)
    assert _call(capsys, "verify", f"artifacts={tmp_path}") == (0, ["3 whole, 0 damaged, 0 unfinished"], [])
    content = bytearray((base / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (base / "model.safetensors").write_bytes(content)
    code, lines, _ = _call(capsys, "verify", f"artifacts={tmp_path}")
    assert code == 2 and lines[0] == f"{base / 'model.safetensors'} is damaged (its checksum differs)"
    assert lines[1] == "2 whole, 1 damaged, 0 unfinished"


def test_remove_keeps_what_others_are_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, approx, prune = _family(tmp_path)
    where = f"artifacts={tmp_path}"
    code, _, errors = _call(capsys, "remove", approx.name[:8], where)
    assert code == 2 and errors[0].startswith(f"approx/{approx.name} is a part of prune/{prune.name}: remove these too")
    assert approx.exists()
    assert _call(capsys, "remove", prune.name, where)[0] == 0 and not prune.exists()
    assert _call(capsys, "remove", base.name, where, "dependents=true")[0] == 0
    assert not base.exists() and not approx.exists()


def test_remove_takes_groups_and_no_artifact_that_is_being_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"artifacts={tmp_path}"
    base = _make(tmp_path, seed=0)
    with Store(tmp_path).claim("base", {"seed": 5}) as claim:
        code, _, errors = _call(capsys, "remove", "unfinished", where)
        assert code == 2 and "is being made by another job" in errors[0] and claim.folder.exists()
    assert _call(capsys, "remove", "unfinished", where)[0] == 0
    assert base.exists() and not claim.folder.exists()
    (base / "artifact.json").write_text("{}")
    Store(tmp_path).set_aside(base)
    assert _call(capsys, "remove", "damaged", where)[0] == 0
    assert not [path for path in (tmp_path / DAMAGED).iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to do: list, verify, remove"),
        (["lst"], "lst is unknown: did you mean 'list'?"),
        (["list", "artefacts=x"], "artefacts=x is not a setting of this command: did you mean 'artifacts'?"),
        (["list", "stage=base", "stage=prune"], "cannot read 'stage=prune': give stage=VALUE once"),
        (["list", "artifacts=nowhere"], "artifacts=nowhere is no folder: give the one that paths.artifacts names"),
        (["list", "stage=pruned", "artifacts=."], "stage=pruned is unknown: did you mean 'prune'?"),
        (["verify", "0123"], "0123 has no effect with verify"),
        (["remove", "artifacts=."], "remove needs keys"),
        (["remove", "0123", "artifacts=."], "0123 is no artifact there: the store is empty"),
        (["remove", "0123", "dependents=yes"], "dependents=yes is neither true nor false"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], own_folder: None
) -> None:
    code, out, errors = _call(capsys, *arguments)
    assert code == 2 and not out and len(errors) == 1 and errors[0].startswith(message)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = _call(capsys, "--help")
    assert code == 0 and all(any(line.startswith(name) for line in lines) for name in ("list", "verify", "remove"))
