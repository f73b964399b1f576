"""What a path leads to is told before it is opened: nothing waits for a pipe, no device is read."""

from __future__ import annotations

import gzip
import os
import socket
from pathlib import Path

import pytest

from sttabt.errors import UserError, nearest, printable
from sttabt.system.paths import not_a_file, not_a_folder, read_bytes

KINDS = {
    "nothing": "",
    "pipe": ", but a pipe",
    "device": ", but a device",
    "socket": ", but a socket",
    "dangling": ", but a link to nothing",
    "loop": " that can be read (Too many levels of symbolic links)",
    "x" * 300: " that can be read (File name too long)",
    "file/inside": "",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("device", "/dev/zero"), ("dangling", "nowhere"), ("loop", "loop"), ("link", "file")):
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)  # the address of a socket has 108 bytes at most
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    return tmp_path


@pytest.mark.parametrize("name", KINDS)
def test_what_is_neither_file_nor_folder_is_named(name: str, folder: Path) -> None:
    assert not_a_file(folder / name) == f"is no file{KINDS[name]}"
    assert not_a_folder(folder / name) == f"is no folder{KINDS[name]}"
    with pytest.raises(OSError, match="it is no file"):
        read_bytes(folder / name)


def test_files_and_folders_are_told_apart(folder: Path) -> None:
    assert not_a_file(folder / "file") == not_a_file(folder / "link") == not_a_folder(folder / "folder") == ""
    assert not_a_file(folder / "folder") == "is no file, but a folder"
    assert not_a_folder(folder / "file") == "is no folder, but a file"
    assert read_bytes(folder / "link") == b"content"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
def test_what_may_not_be_read_is_named(folder: Path) -> None:
    for name in ("file", "folder"):
        (folder / name).chmod(0)
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    os.seteuid(65534)
    try:
        assert not_a_file(folder / "file") == "is no file that can be read (Permission denied)"
        assert not_a_folder(folder / "folder") == "is no folder that can be read (Permission denied)"
        assert not_a_file(folder / "folder" / "inside") == "is no file that can be read (Permission denied)"
    finally:
        os.seteuid(0)


def test_gzip_is_unpacked_and_its_damage_is_an_error(tmp_path: Path) -> None:
    path, content = tmp_path / "a.GZ", os.urandom(1000)
    packed = gzip.compress(content)
    path.write_bytes(packed + packed)
    assert read_bytes(path) == content * 2
    flipped = bytearray(packed)
    flipped[500] ^= 1
    for damaged in (packed[:-9], b"PK\x03\x04", packed + b"x", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(OSError, match=r".+"):
            read_bytes(path)


def test_a_file_that_unpacks_to_far_more_than_it_is_ends_early(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sttabt.system.paths.MOST_BYTES", 10_000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(10_000_000)))
    with pytest.raises(OSError, match="it unpacks to more than 200 times its size"):
        read_bytes(tmp_path / "a.gz")
    (tmp_path / "b.gz").write_bytes(gzip.compress(bytes(10_000)))
    assert len(read_bytes(tmp_path / "b.gz")) == 10_000


def test_a_message_is_one_line_whatever_a_file_is_called() -> None:
    assert str(UserError("a\nb\tc\udcff é 🍏")) == r"a\nb\tc\udcff é 🍏"
    assert printable("a\r\x1b[31m") == r"a\r\x1b[31m"
    assert str(UserError(str(UserError("a\nb")))) == r"a\nb"
    assert nearest("x", map(str, range(100, 200))).endswith("158, 159 and 40 more")
