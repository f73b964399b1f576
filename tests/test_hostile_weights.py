"""Weight files as they come: wrapped, renamed, cast, damaged, or no weights at all. The right weights, or one line.

Nothing in them is ever run, and nothing is waited for.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conftest import make_approx, make_backbone
from sttabt.backbones.base import Backbone
from sttabt.convert import main as convert
from sttabt.errors import UserError
from sttabt.pretrained.classes import names_beside
from sttabt.pretrained.hub import find_pretrained
from sttabt.pretrained.names import official_state
from sttabt.pretrained.reading import hub_weights
from sttabt.pretrained.weights import load_approx, load_weights, verify

SECONDS = 5.0  # for any file
NAME = "no_bias"  # the smallest vision transformer among the examples

Weights = dict[str, Tensor]


@cache
def original() -> Weights:
    return {name: value.clone() for name, value in make_backbone(NAME).model.state_dict().items()}


def blank() -> Backbone:
    base = make_backbone(NAME)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.zero_()
    return base


def loaded(path: Path) -> Weights:
    base = blank()
    started = time.monotonic()
    try:
        load_weights(base, path, "model.checkpoint")
    finally:
        assert time.monotonic() - started < SECONDS
    return base.model.state_dict()


def same(found: Weights, expected: Weights | None = None) -> bool:
    expected = original() if expected is None else expected
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def refused(call: Callable[[], Any], *parts: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        call()
    assert time.monotonic() - started < SECONDS
    message = str(error.value)
    for part in parts:
        assert part in message
    assert "\n" not in message
    assert "weights_only" not in message
    assert len(message) < 700


# --- what is put around weights


def renamed(before: str) -> Weights:
    return {f"{before}{name}": value for name, value in original().items()}


@pytest.mark.parametrize(
    "before",
    ["module.", "_orig_mod.", "net.", "model.module.", "module._orig_mod.", "a.b.c.", "model.", "base.model."],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_prefix_before_all_names_is_taken_off_and_said(
    before: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / f"a.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(renamed(before), path)
    assert same(loaded(path))
    own = before in ("model.", "base.model.")  # this project's files
    assert own or f"a.{suffix}: '{before}' before all names is taken off" in caplog.text


@pytest.mark.parametrize(
    "entry",
    ["model", "state_dict", "model_state_dict", "ema", "net", "generator", "state_dict.model", "checkpoint.state_dict"],
)
@pytest.mark.parametrize("before", ["", "module."])
def test_weights_inside_an_entry_are_found(entry: str, before: str, tmp_path: Path) -> None:
    content: Any = renamed(before)
    for name in reversed(entry.split(".")):
        content = {"epoch": 3, "args": argparse.Namespace(lr=0.1), name: content}
    torch.save(content, tmp_path / "a.pth")
    assert same(loaded(tmp_path / "a.pth"))


def test_of_several_entries_the_model_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    averages = {name: value + 1 for name, value in original().items()}
    torch.save({"ema": averages, "optimizer": {"state": {}}, "model": original()}, tmp_path / "a.pth")
    assert same(loaded(tmp_path / "a.pth"))
    assert "of its entries model, ema 'model' is taken" in caplog.text


@pytest.mark.parametrize("kind", ["official", "official in a wrapper", "transformers in a wrapper"])
def test_other_names_behind_a_prefix_are_read_too(kind: str, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in official_state(make_backbone(NAME)).items()}
    before = {"official": "", "official in a wrapper": "net.", "transformers in a wrapper": "model.vit."}[kind]
    torch.save({f"{before}{name}": value for name, value in state.items()}, tmp_path / "a.pth")
    assert same(loaded(tmp_path / "a.pth"))


@pytest.mark.parametrize("before", ["module.", "_orig_mod."])
def test_a_prefix_of_an_approximate_network_is_taken_off(before: str, tmp_path: Path) -> None:
    base = make_backbone(NAME)
    network, other = make_approx(base, NAME), make_approx(base, NAME)
    state = {name: value.clone() + 1 for name, value in network.state_dict().items()}
    torch.save({"model_state_dict": {f"{before}{name}": value for name, value in state.items()}}, tmp_path / "a.pth")
    load_approx(other, tmp_path / "a.pth", "approx.checkpoint")
    assert same(other.state_dict(), state)
    lacking = {name: value for name, value in official_state(network.backbone).items() if "pos" not in name}
    torch.save({"approx_bert": {name: value.clone() for name, value in lacking.items()}}, tmp_path / "b.pth")
    refused(lambda: load_approx(other, tmp_path / "b.pth", "approx.checkpoint"), "belong to another architecture")


def test_names_that_do_not_fit_are_shown_with_the_nearest(tmp_path: Path) -> None:
    state = {("blocks.0.norm1.wight" if name == "blocks.0.norm1.weight" else name): v for name, v in original().items()}
    save_file(state, tmp_path / "a.safetensors")
    refused(
        lambda: loaded(tmp_path / "a.safetensors"),
        "blocks.0.norm1.weight is missing (the nearest there is blocks.0.norm1.wight)",
        "(2 in all)",
    )
    torch.save({**renamed("net."), "extra": torch.zeros(1)}, tmp_path / "b.pth")
    refused(lambda: loaded(tmp_path / "b.pth"), "cls_token is missing (the nearest there is net.cls_token)")


# --- numbers of another kind


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn],
    ids=str,
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_that_are_no_floating_point_numbers_are_refused_by_name(
    dtype: torch.dtype, suffix: str, tmp_path: Path
) -> None:
    path, name = tmp_path / f"a.{suffix}", "blocks.1.attn.proj.weight"
    state = {**original(), name: original()[name].to(dtype)}
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    refused(lambda: loaded(path), f"model.checkpoint={path}: {name} holds {dtype}, which is quantised or no weight")
    official = {key: value.clone() for key, value in official_state(make_backbone(NAME)).items()}
    official["classifier.bias"] = official["classifier.bias"].to(dtype)
    torch.save({"model": official}, tmp_path / "b.pth")
    refused(lambda: loaded(tmp_path / "b.pth"), f"classifier.bias holds {dtype}")


def test_quantised_and_sparse_tensors_are_refused_by_name(tmp_path: Path) -> None:
    name = "blocks.1.attn.proj.weight"
    kinds = {
        "quint8": torch.quantize_per_tensor(original()[name], 0.1, 0, torch.quint8),
        "sparse": original()[name].to_sparse(),
        "without numbers": original()[name].to("meta"),
    }
    for kind, value in kinds.items():
        torch.save({**original(), name: value}, tmp_path / "a.pth")
        refused(lambda: loaded(tmp_path / "a.pth"), name, kind)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_half_and_double_precision_keep_their_values(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    state = {name: value.to(dtype) for name, value in original().items()}
    (save_file if suffix == "safetensors" else torch.save)(state, tmp_path / f"a.{suffix}")
    found = loaded(tmp_path / f"a.{suffix}")
    assert all(torch.equal(found[name], value.float()) for name, value in state.items())


def test_doubles_that_single_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    state = {name: value.double() for name, value in original().items()}
    state["norm.bias"][2] = 1e39
    torch.save(state, tmp_path / "a.pth")
    refused(lambda: loaded(tmp_path / "a.pth"), "norm.bias holds 1e+39, which float32 cannot")


def test_counters_of_batch_norms_are_integers(tmp_path: Path) -> None:
    base, other = make_backbone("lvvit"), make_backbone("lvvit")
    save_file({f"model.{name}": value for name, value in base.model.state_dict().items()}, tmp_path / "a.safetensors")
    load_weights(other, tmp_path / "a.safetensors", "model.checkpoint")
    assert same(other.model.state_dict(), base.model.state_dict())


# --- files that are no weights


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"
)
NO_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty (0 bytes): fetch it again"),
    "zeros": (b"\0" * 4096, "begins with zeros"),
    "text": (b"the weights are in the other folder\n", "is text, no weights"),
    "JSON": (b'{"hidden_size": 32}', "is text, no weights"),
    "a web page": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page, not weights"),
    "another web page": (b"<HTML><head></head></HTML>", "is a web page, not weights"),
    "a pointer of Git LFS": (POINTER, "is a pointer of Git LFS, not the weights: run git lfs pull"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is neither a .safetensors nor a torch file"),
    "a few bytes": (b"\x07\x01", "is truncated (2 bytes): fetch it again"),
    "a pickle of a list": (pickle.dumps([1, 2]), "cannot be read"),
    "an empty archive": (b"PK\x05\x06" + bytes(18), "cannot be read"),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin", "pth.tar"])
@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_what_is_no_weights_file_is_named(case: str, suffix: str, tmp_path: Path) -> None:
    content, message = NO_WEIGHTS[case]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    refused(lambda: loaded(path), f"model.checkpoint={path} {message}")


CONTENTS: dict[str, tuple[Any, str]] = {
    "integer keys": ({0: torch.zeros(1), 1: torch.zeros(1)}, "names its tensors by int (0), not by text"),
    "integer keys inside": ({"state_dict": {0: torch.zeros(1)}}, "names its tensors by int (0)"),
    "a list": ([torch.zeros(1)], "holds a list: give a file of tensors by name"),
    "a tensor": (torch.zeros(3), "holds a Tensor: give a file of tensors by name"),
    "no tensors": ({"epoch": 3, "lr": 0.1}, "holds no tensors by name, but epoch, lr"),
    "an empty state": ({"state_dict": {}}, "holds no tensors by name, but state_dict"),
    "nothing": ({}, "holds no tensors by name, but nothing"),
    "None": (None, "holds a NoneType"),
    "two networks": (
        {"critic": {"a": torch.zeros(1)}, "actor": {"a": torch.zeros(1)}},
        "holds no tensors by name, but critic, actor",
    ),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_files_without_tensors_by_name_are_named(case: str, tmp_path: Path) -> None:
    content, message = CONTENTS[case]
    torch.save(content, tmp_path / "a.pth")
    refused(lambda: loaded(tmp_path / "a.pth"), f"model.checkpoint={tmp_path / 'a.pth'} {message}")


def test_entries_that_hold_each_other_end(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    refused(lambda: loaded(tmp_path / "a.pth"), "holds no tensors by name")


def test_a_whole_module_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    refused(lambda: loaded(tmp_path / "a.pth"), "holds more than tensors (torch.nn.modules.linear.Linear)", "could run")


def test_places_that_are_no_file(tmp_path: Path) -> None:
    folder, pipe = tmp_path / "folder", tmp_path / "pipe.pth"
    folder.mkdir()
    refused(lambda: loaded(folder), f"{folder} is a folder: give a file in it: give a .safetensors file")
    save_file(original(), folder / "model.safetensors")
    refused(lambda: loaded(folder), f"is a folder: give a file in it, {folder / 'model.safetensors'}")
    os.mkfifo(pipe)
    refused(lambda: loaded(pipe), "is no file, but a pipe")
    refused(lambda: loaded(Path("/dev/zero")), "is no file, but a device")
    refused(lambda: loaded(tmp_path / "none.pth"), "is not a file")
    refused(lambda: loaded(folder / "model.safetensors" / "a.pth"), "is not a file")
    refused(lambda: loaded(tmp_path / ("a" * 300)), "cannot be opened")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    refused(lambda: loaded(tmp_path / "loop.pth"), "cannot be opened")


def test_a_read_only_file_is_read(tmp_path: Path) -> None:
    save_file(original(), tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").chmod(0o400)
    assert same(loaded(tmp_path / "a.safetensors"))


def test_the_name_does_not_decide_what_a_file_is(tmp_path: Path) -> None:
    save_file(original(), tmp_path / "a.pth")
    torch.save(original(), tmp_path / "b.safetensors")
    torch.save(original(), tmp_path / "c.weights", _use_new_zipfile_serialization=False)
    assert all(same(loaded(tmp_path / name)) for name in ("a.pth", "b.safetensors", "c.weights"))


@pytest.mark.parametrize("size", [2**62, 2**31, 10**6], ids=str)
def test_a_header_that_is_longer_than_its_file(size: int, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", size) + b'{"a":')
    refused(lambda: loaded(tmp_path / "a.safetensors"), "a.safetensors cannot be read, it may be truncated or damaged")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' * 20_000,
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(200_000)) + b"}",
        b'{"a":{"dtype":"F32","shape":[9999999999999,9999999999999],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1' + b"0" * 400 + b"]}}",
        b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":3}',
        b"{}",
    ],
    ids=["deep", "long", "overflowing", "digits", "kind", "number", "empty"],
)
def test_hostile_headers(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refused(lambda: loaded(tmp_path / "a.safetensors"), f"model.checkpoint={tmp_path / 'a.safetensors'}")


# --- code


class Canary:
    """Whoever loads its pickle with code makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def canaries(folder: Path, canary: Path) -> dict[str, Path]:
    """A canary in every kind of file that holds a pickle."""
    singing = Canary(canary)
    content = {**original(), "bird": singing}
    torch.save(content, folder / "zip.pth")
    torch.save(content, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(singing, folder / "alone.pth")
    torch.save({"state_dict": original(), "epoch": singing}, folder / "beside.pth.tar")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (folder / f"pickle{protocol}.pth").write_bytes(pickle.dumps(content, protocol))
    (folder / "named.safetensors").write_bytes(pickle.dumps(content))
    with zipfile.ZipFile(folder / "archive.bin", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(singing))
        archive.writestr("a/version", "3")
        archive.writestr("a/byteorder", "little")
    script = torch.jit.script(nn.Linear(2, 2))
    script.save(str(folder / "script.pt"))
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    canary, files = tmp_path / "canary", tmp_path / "files"
    files.mkdir()
    network = make_approx(make_backbone(NAME), NAME)
    for name, path in canaries(files, canary).items():
        refused(lambda path=path: loaded(path), f"model.checkpoint={path} ")
        refused(lambda path=path: load_approx(network, path, "approx.checkpoint"), f"approx.checkpoint={path} ")
        assert convert([f"in={path}", f"out={tmp_path / 'out.safetensors'}"]) == 2
        hub = tmp_path / f"hub {name}"
        hub.mkdir()
        (hub / "config.json").write_text("{}")
        path.rename(hub / "pytorch_model.bin")
        refused(lambda hub=hub: hub_weights(str(hub)), f"model.huggingface={hub / 'pytorch_model.bin'} ")
    assert not canary.exists()


# --- at random


@cache
def written(kind: str) -> bytes:
    """A file of every kind that is read."""
    path = Path(os.environ["PYTEST_HOSTILE"]) / f"whole.{kind}"
    if kind == "safetensors":
        save_file(original(), path)
    else:
        state = {"epoch": 3, "state_dict": original()} if kind == "pth.tar" else original()
        torch.save(state, path, _use_new_zipfile_serialization=kind != "legacy")
    return path.read_bytes()


@pytest.fixture(autouse=True)
def _folder_of_whole_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_HOSTILE", str(tmp_path_factory.getbasetemp()))


KINDS = ("safetensors", "pth", "pth.tar", "legacy")
PARTS = 10_000  # of a file; hypothesis refuses to draw floats where torch has switched subnormal ones off
PLACES = st.integers(0, PARTS)
SLOWLY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def right_or_refused(path: Path, content: bytes) -> bool:
    """Whether the weights are the right ones; anything else than them is one line, within seconds."""
    path.write_bytes(content)
    try:
        return same(loaded(path))
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        assert "weights_only" not in str(error)
        return True


@pytest.mark.parametrize("kind", KINDS)
@SLOWLY
@given(share=st.integers(0, PARTS - 1))
def test_truncated_files(kind: str, tmp_path: Path, share: int) -> None:
    whole = written(kind)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(whole[: share * len(whole) // PARTS])
    refused(lambda: loaded(path), str(path))


@pytest.mark.parametrize("kind", KINDS)
@SLOWLY
@given(start=PLACES, length=st.integers(1, 4096))
def test_files_with_a_hole_of_zeros(kind: str, tmp_path: Path, start: int, length: int) -> None:
    whole = written(kind)
    place = start * (len(whole) - 1) // PARTS
    content = whole[:place] + bytes(min(length, len(whole) - place)) + whole[place + length :]
    if kind in ("pth", "pth.tar"):  # whose tensors have checksums
        assert right_or_refused(tmp_path / f"a.{kind}", content)
    else:
        _right_or_seen_by_checksum(tmp_path / f"a.{kind}", content)


@pytest.mark.parametrize("kind", KINDS)
@SLOWLY
@given(flips=st.lists(st.tuples(PLACES, st.integers(1, 255)), min_size=1, max_size=3))
def test_files_with_flipped_bits(kind: str, tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    content = bytearray(written(kind))
    for place, bits in flips:
        content[place * (len(content) - 1) // PARTS] ^= bits
    if kind in ("pth", "pth.tar"):
        assert right_or_refused(tmp_path / f"a.{kind}", bytes(content))
    else:
        _right_or_seen_by_checksum(tmp_path / f"a.{kind}", bytes(content))


@pytest.mark.parametrize("kind", KINDS)
@SLOWLY
@given(place=st.integers(0, 900), bits=st.integers(1, 255))
def test_flipped_bits_in_what_describes_the_tensors(kind: str, tmp_path: Path, place: int, bits: int) -> None:
    content = bytearray(written(kind))
    content[place] ^= bits
    if kind in ("pth", "pth.tar"):
        assert right_or_refused(tmp_path / f"a.{kind}", bytes(content))
    else:
        _right_or_seen_by_checksum(tmp_path / f"a.{kind}", bytes(content))


def _right_or_seen_by_checksum(path: Path, content: bytes) -> None:
    """Where a format has no checksum of its own, `model.sha256` sees what reading cannot."""
    if not right_or_refused(path, content):
        whole = path.with_name(f"whole {path.name}")
        whole.write_bytes(written(path.name.removeprefix("a.")))
        expected = verify(whole, "", "model.checkpoint")
        refused(lambda: verify(path, expected, "model.checkpoint"), f"not model.sha256={expected}")


# --- beside them


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a":' * 20_000, "\0" * 100], ids=repr)
@pytest.mark.parametrize("name", ["config.json", "artifact.json"])
def test_a_damaged_description_beside_a_checkpoint_is_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    refused(lambda: names_beside(tmp_path / "model.safetensors"), f"model.checkpoint: {tmp_path / name}")


def test_parts_that_lie_elsewhere_are_not_read(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text("{}")
    save_file(original(), tmp_path / "secret.safetensors")
    index = {"weight_map": dict.fromkeys(original(), "../secret.safetensors")}
    (hub / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(lambda: hub_weights(str(hub)), "it has none of model.safetensors, pytorch_model.bin")
    assert find_pretrained(str(hub)) == str(hub)


# --- sttabt.convert


def test_the_converter_refuses_what_it_cannot_read_or_write(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    official = {name: value.clone() for name, value in official_state(make_backbone(NAME)).items()}
    source, out = tmp_path / "official.pth", tmp_path / "out.safetensors"
    torch.save({"model": {f"vit.{name}": value for name, value in official.items()}}, source)
    wrong = tmp_path / "int8.pth"
    torch.save({"model": {**official, "layernorm.bias": official["layernorm.bias"].char()}}, wrong)
    page = tmp_path / "page.pth"
    page.write_bytes(b"<!doctype html>")
    fused = tmp_path / "fused.safetensors"
    save_file({"model.cls_token": torch.zeros(1), "model.blocks.0.attn.qkv.weight": torch.zeros(2)}, fused)
    taken, folder, shut = tmp_path / "taken.safetensors", tmp_path / "folder", tmp_path / "shut"
    taken.write_bytes(b"mine")
    folder.mkdir()
    cases = {
        (source, folder): f"out={folder} is a folder: give a file in it",
        (source, taken): f"out={taken} is there already",
        (source, shut / "a.safetensors"): f"{shut} is no folder",
        (source, Path("/proc/a.safetensors")): "/proc/a.safetensors is not there",
        (tmp_path, out): f"in={tmp_path} is a folder",
        (wrong, out): "layernorm.bias holds torch.int8",
        (page, out): "is a web page",
        (fused, tmp_path / "out.pth"): "a fused projection is not three of one shape",
    }
    for (given_in, given_out), message in cases.items():
        assert convert([f"in={given_in}", f"out={given_out}"]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
    assert taken.read_bytes() == b"mine"
    assert not out.exists()
    assert convert([f"in={source}", f"out={out}"]) == 0
    assert not list(tmp_path.glob("*.partial"))
    assert load_file(out).keys() == {f"base.model.{name}" for name in original()}


@pytest.mark.parametrize("kind", KINDS)
@SLOWLY
@given(place=PLACES, bits=st.integers(1, 255), share=st.integers(PARTS // 3, PARTS))
def test_the_converter_ends_on_any_damage(kind: str, tmp_path: Path, place: int, bits: int, share: int) -> None:
    content = bytearray(written(kind)[: share * len(written(kind)) // PARTS])
    content[place * (len(content) - 1) // PARTS] ^= bits
    (tmp_path / f"a.{kind}").write_bytes(bytes(content))
    (tmp_path / "out.safetensors").unlink(missing_ok=True)
    started = time.monotonic()
    assert convert([f"in={tmp_path / f'a.{kind}'}", f"out={tmp_path / 'out.safetensors'}"]) in (0, 2)
    assert time.monotonic() - started < SECONDS
