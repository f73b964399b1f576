"""Records that are damaged, foreign, or no files at all: each is named in one line, and all others are read."""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttabt.errors import UserError
from sttabt.report import csv_rows, rows
from sttabt.report.__main__ import main
from sttabt.report.csv_rows import write_table
from sttabt.report.gallery import Gallery, read_galleries, read_gallery
from sttabt.report.predictions import PREDICTIONS_FILE, Predictions, read_predictions
from sttabt.report.reading import read_records, read_rows
from sttabt.report.rows import Row
from test_report import make_gallery, make_row, write_rows

Spoil = Callable[[Path], object]  # makes a bad record at the place of a good one
SLOWEST = 5000  # milliseconds that a file may take
GOOD = make_row("dense")


def rewritten(**changes: Any) -> Spoil:
    """A row with other values; one that is `...` is left out."""

    def spoil(path: Path) -> None:
        values = GOOD.to_dict() | changes
        path.write_text(json.dumps({name: value for name, value in values.items() if value is not Ellipsis}))

    return spoil


def text(content: str | bytes) -> Spoil:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def replaced(make: Callable[[Path], object]) -> Spoil:
    """Something that is no regular file."""

    def spoil(path: Path) -> None:
        path.unlink()
        make(path)

    return spoil


def edited(old: str, new: str) -> Spoil:
    """A good row's file in which a text was changed by hand."""
    whole = json.dumps(GOOD.to_dict(), indent=2)
    assert old in whole
    return text(whole.replace(old, new, 1))


NO_FILE = {
    "a folder": (replaced(lambda path: path.mkdir()), "it is no file, but a folder"),
    "a pipe": (replaced(os.mkfifo), "it is no file, but a pipe"),
    "a device": (replaced(lambda path: path.symlink_to("/dev/zero")), "it is no file, but a device"),
    "a link to itself": (replaced(lambda path: path.symlink_to(path)), "Too many levels of symbolic links"),
    "a link to nothing": (replaced(lambda path: path.symlink_to("absent")), "No such file"),
}
DAMAGED = {
    "empty": (text(""), "it is no JSON"),
    "zeros": (text(bytes(500)), "it is no JSON"),
    "cut off": (text(json.dumps(GOOD.to_dict())[:-9]), "or cut off"),
    "no JSON": (text("score: 0.5"), "it is no JSON"),
    "a list": (text("[1, 2]"), "no JSON object"),
    "another encoding": (text(json.dumps({"é": 1}, ensure_ascii=False).encode("latin-1")), "can't decode"),
    "deep lists": (text("[" * 100_000), "nested too deep"),
    "a deep value": (edited('"seed": 0', '"seed": ' + "[" * 900 + "]" * 900), "seed is [[["),
    "400 digits": (edited('"seed": 0', f'"seed": {"9" * 400}'), "a number of 400 digits"),
    "5000 digits": (edited('"seed": 0', f'"seed": {"9" * 5000}'), "a number of 5000 digits"),
    "beyond floats": (edited('"loss": 0.2', '"loss": 1e999'), "not finite: 1e999"),
    "NaN": (edited('"loss": 0.2', '"loss": NaN'), "not finite: NaN"),
    "infinity": (edited('"loss": 0.2', '"loss": -Infinity'), "not finite: -Infinity"),
    "a wrong type": (rewritten(seed="0"), "seed is '0', which is not int"),
    "a missing key": (rewritten(threads=...), "it lacks threads"),
    "an unknown key": (rewritten(warmth=1), "it has unknown warmth"),
    "a key of several lines": (rewritten(**{"a\nb": 1}), "it has unknown a b"),
    "a newer schema": (rewritten(schema=99), "schema is 99, this version reads 7"),
    "no schema": (rewritten(schema=...), "it lacks schema"),
    "a schema that is none": (rewritten(schema=[7]), "schema is"),
    "an older schema alone": (text('{"schema": 3, "attention": []}'), "it lacks"),
    "no costs": (rewritten(macs={"stem": 1e308, "head": 1e308}), "no share"),
}


@pytest.mark.parametrize(("spoil", "message"), [*NO_FILE.values(), *DAMAGED.values()], ids=[*NO_FILE, *DAMAGED])
def test_a_bad_row_is_named_in_a_line_and_the_others_are_read(spoil, message, tmp_path, caplog):
    write_rows(tmp_path, [GOOD, make_row()])
    path = tmp_path / "job-0" / "row.json"
    spoil(path)
    started = time.perf_counter()
    found, left_out = read_records([tmp_path])
    assert time.perf_counter() - started < SLOWEST / 1000
    assert found == [make_row()]
    (line,) = left_out
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 500
    assert message in line
    assert [record.getMessage() for record in caplog.records] == [f"left out {line}"]
    assert os.path.lexists(path), "it is left where it is"
    with pytest.raises(UserError) as alone:
        read_records([path.parent])
    assert line in str(alone.value) and "\n" not in str(alone.value)


def test_a_row_that_is_too_large_is_left_out(tmp_path, monkeypatch):
    write_rows(tmp_path, [GOOD, make_row()])
    path = tmp_path / "job-0" / "row.json"
    path.write_text(path.read_text() + " " * 5000)
    monkeypatch.setattr(rows, "MOST_BYTES", 5000)
    assert read_records([tmp_path]) == (
        [make_row()],
        [f"{path}: it is larger than the 5,000 bytes that such a file may have"],
    )


@contextmanager
def without_rights(path: Path) -> Iterator[None]:
    """Nobody may read the path; the superuser becomes another user, whom rights bind."""
    mode = path.stat().st_mode
    path.chmod(0)
    others = os.geteuid() == 0
    if others:
        os.seteuid(65534)
    try:
        yield
    finally:
        if others:
            os.seteuid(0)
        path.chmod(mode)


@pytest.mark.parametrize("place", ["job-0/row.json", "job-0"])
def test_what_may_not_be_read_is_named(place):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        write_rows(folder, [GOOD, make_row()])
        with without_rights(folder / place):
            found, left_out = read_records([folder])
    (line,) = left_out
    assert found == [make_row()] and line.startswith(f"{folder / place}: ") and "Permission denied" in line


def test_the_command_goes_on_and_says_so(tmp_path, capsys):
    write_rows(tmp_path / "rows", [make_row(share=share) for share in (0.3, 0.5, 0.7)], galleries=True)
    bad = [tmp_path / "rows" / name for name in ("job-0/row.json", "job-1/tokens.npz")]
    bad[0].write_text("{")
    bad[1].write_bytes(b"PK")
    out = f"out={tmp_path / 'out'}"
    assert main([str(tmp_path / "rows"), out, "figure=pareto"]) == 1
    error = capsys.readouterr().err
    assert "left out 2 records that cannot be read, which stay where they are" in error
    assert len((tmp_path / "out" / "pareto.csv").read_text().splitlines()) == 3
    assert main([str(tmp_path / "rows"), out, "figure=glue"]) == 2, "nothing was drawn"
    assert [path.exists() for path in bad] == [True, True]
    bad[0].unlink()
    bad[1].unlink()
    assert main([str(tmp_path / "rows"), out, "figure=pareto"]) == 0


@pytest.mark.parametrize("make", [lambda path: path.write_text("here"), lambda path: path.symlink_to(path)])
def test_a_report_that_cannot_be_written_is_one_line(make, tmp_path, capsys):
    write_rows(tmp_path / "rows", [GOOD])
    make(tmp_path / "out")
    assert main([str(tmp_path / "rows"), f"out={tmp_path / 'out'}", "figure=pareto"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path / 'out'}: " in error and "out=FOLDER" in error


@pytest.mark.parametrize("spoil", ["damaged", "a pipe"])
def test_a_row_is_written_over_one_that_is_none(spoil, tmp_path):
    write_rows(tmp_path, [GOOD])
    path = tmp_path / "job-0" / "row.json"
    {"damaged": text("{"), **{name: each for name, (each, _) in NO_FILE.items()}}[spoil](path)
    make_row().write(path)
    assert Row.read(path) == make_row()


def test_a_row_of_numbers_that_are_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="settings is"):
        make_row(settings={"temperature": float("inf")})
    with pytest.raises(ValueError, match="loss is nan"):
        make_row(loss=float("nan"))


# --- tables


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column schema"),
        (b"name;age\nx;1\n" * 3, "no column schema"),
        (b"PK\x03\x04" + bytes(range(255, 0, -1)) * 20, "can't decode"),
        (b"\x00" * 300_000, "field larger than field limit"),
        (b"schema,seed,seed\n6,1,1\n", "columns come twice: seed"),
        (b'schema,"[[[[\n', "unexpected end of data"),
    ],
)
def test_a_table_of_somebody_else_is_named_once(content, message, tmp_path):
    write_table([GOOD], tmp_path / "mine.csv")
    (tmp_path / "other.csv").write_bytes(content)
    found, (line,) = read_records([tmp_path / "mine.csv", tmp_path / "other.csv"])
    assert found == [GOOD] and line.startswith(f"{tmp_path / 'other.csv'}: ") and message in line


@pytest.mark.parametrize(("spoil", "message"), NO_FILE.values(), ids=NO_FILE)
def test_a_table_that_is_no_file_is_named(spoil, message, tmp_path):
    for name in ("mine.csv", "other.csv"):
        write_table([GOOD], tmp_path / name)
    spoil(tmp_path / "other.csv")
    found, (line,) = read_records([tmp_path / "mine.csv", tmp_path / "other.csv"])
    assert found == [GOOD] and message in line


def edited_cell(column: str, value: str) -> bytes:
    """A table of one row in which a cell was changed by hand."""
    with tempfile.TemporaryDirectory() as folder:
        write_table([GOOD], Path(folder) / "table.csv")
        head, line = list(csv_rows.csv.reader((Path(folder) / "table.csv").read_text().splitlines()))
    line[head.index(column)] = value
    out = io.StringIO()
    csv_rows.csv.writer(out, lineterminator="\n").writerows([head, line])
    return out.getvalue().encode()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("score", "9" * 400, "score is"),
        ("score", "9" * 5000, "is no number"),
        ("score", "NaN", "score is nan"),
        ("score", "[" * 5000, "nested too deep"),
        ("seed", "1e400", "seed is inf"),
        ("loss", "high", "'high' is no number"),
        ("label", '"unclosed', "Unterminated string"),
        ("occupancy_by_boundary.2", "", "not at 0, 1"),
        ("macs.stem", "true", "'true' is no number"),
        ("schema", "8", "schema is 8"),
    ],
)
def test_a_bad_cell_costs_its_line(column, value, message, tmp_path):
    (tmp_path / "table.csv").write_bytes(edited_cell(column, value))
    write_table([make_row()], tmp_path / "mine.csv")
    found, (line,) = read_records([tmp_path / "table.csv", tmp_path / "mine.csv"])
    assert found == [make_row()] and line.startswith(f"{tmp_path / 'table.csv'}, line 2: ") and message in line


def test_bytes_that_are_no_text_cost_their_line(tmp_path):
    write_table([make_row(label="flipped"), GOOD], tmp_path / "table.csv")
    content = (tmp_path / "table.csv").read_bytes()
    (tmp_path / "table.csv").write_bytes(content.replace(b"flipped", b"fl\xffpped", 1))
    found, (line,) = read_records([tmp_path / "table.csv"])
    assert found == [GOOD] and "line 2: " in line


def test_a_table_that_a_spreadsheet_saved_is_read(tmp_path):
    write_table([GOOD, make_row()], tmp_path / "table.csv")
    content = (tmp_path / "table.csv").read_text()
    (tmp_path / "table.csv").write_bytes(content.replace("\n", "\r\n").encode("utf-8-sig"))
    assert read_records([tmp_path / "table.csv"]) == ([GOOD, make_row()], [])


# --- arrays


def packed(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def with_header(shape: tuple[int, ...]) -> bytes:
    """A file whose array says that it has a shape, and has no numbers."""
    buffer, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|b1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("alive.npy", header.getvalue())
    return buffer.getvalue()


def gallery_with(**changes: np.ndarray) -> bytes:
    gallery = make_gallery(0.5)
    return packed(**{name: getattr(gallery, name) for name in gallery.__dataclass_fields__} | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a zip file"),
        (b"text", "not a zip file"),
        (b"\x93NUMPY", "not a zip file"),
        (packed(alive=np.zeros(3)), "is not a file in the archive"),
        (with_header((10**15,)), "Unable to allocate"),
        (with_header((10**6,)), "EOF"),
        (gallery_with(alive=np.ones((2, 5, 17))), "alive holds float64"),
        (gallery_with(alive=np.ones(17, bool)), "alive has shape (17,)"),
        (gallery_with(layers=np.array([4])), "layers has shape (1,), not ()"),
        (gallery_with(layers=np.array(4.0)), "layers holds float64"),
        (gallery_with(labels=np.array(["a", "b"])), "labels holds <U1"),
        (gallery_with(labels=np.array([0, None])), "Object arrays cannot be loaded"),
        (gallery_with(grid=np.array(4)), "grid has shape ()"),
        (gallery_with(alive=np.ones((0, 5, 17), bool)), "it has 0 samples and 4 layers"),
        (gallery_with(alive=np.ones((2, 1, 17), bool), layers=np.array(0)), "it has 2 samples and 0 layers"),
        (gallery_with(images=np.ones((2, 16, 16, 3))), "images holds float64"),
        (gallery_with(images=np.ones((2, 16, 16, 2), np.uint8)), "1 or 3 channels"),
        (gallery_with(class_names=np.arange(3)), "class_names holds int64"),
    ],
)
def test_a_bad_gallery_is_named_and_the_others_are_read(content, message, tmp_path, caplog):
    write_rows(tmp_path, [make_row(share=0.3), make_row(share=0.7)], galleries=True)
    path = tmp_path / "job-0" / "tokens.npz"
    path.write_bytes(content)
    (kept,), (line,) = read_galleries(read_rows([tmp_path]))
    assert kept[0].folder == tmp_path / "job-1"
    assert line.startswith(f"{path}: it is no gallery: ") and message in line and "\n" not in line
    assert [record.getMessage() for record in caplog.records] == [f"left out {line}"]


@pytest.mark.parametrize(("spoil", "message"), NO_FILE.values(), ids=NO_FILE)
def test_arrays_that_are_no_file_are_named(spoil, message, tmp_path):
    write_rows(tmp_path, [make_row()], galleries=True)
    spoil(tmp_path / "job-0" / "tokens.npz")
    found, (line,) = read_galleries(read_rows([tmp_path]))
    assert not found and message in line
    (tmp_path / PREDICTIONS_FILE).write_bytes(b"")
    spoil(tmp_path / PREDICTIONS_FILE)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_predictions(tmp_path)


def test_arrays_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sttabt.report.arrays.MOST_BYTES", 100_000)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, alive=np.zeros(10**6))
    (tmp_path / "tokens.npz").write_bytes(buffer.getvalue())
    assert len(buffer.getvalue()) < 100_000
    with pytest.raises(ValueError, match="larger than 100,000 bytes"):
        read_gallery(tmp_path / "tokens.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": np.zeros(2)}, "indices holds float64"),
        ({"labels": np.array(["a", "b"])}, "labels holds <U1"),
        ({"logits": np.zeros((2, 3), int)}, "logits holds int64"),
        ({"top_classes": np.zeros((2, 0))}, "top_classes holds float64"),
    ],
)
def test_predictions_of_another_kind_are_refused(changes, message):
    none = np.zeros((2, 0), np.float16)
    values = {"indices": np.arange(2), "labels": np.arange(2), "predictions": np.arange(2), "logits": none}
    values |= {"top_classes": none.astype(np.int32), "top_probabilities": none}
    Predictions(**values)
    with pytest.raises(ValueError, match=message):
        Predictions(**(values | changes))


# --- whatever a file holds: a clear error or the right answer

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_subnormal=False), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
    max_leaves=12,
)
FIELDS = sorted(GOOD.to_dict())


def row_or_reason(path: Path) -> Row | str:
    """The row of a file, or the line that names it."""
    write_rows(path.parents[1], [make_row("dense", seed=7)])  # job-0
    found, left_out = read_records([path.parents[1]])
    assert len(found) + len(left_out) == 2
    if left_out:
        assert left_out[0].startswith(f"{path}: ") and left_out[0].isprintable()
        return left_out[0]
    return found[1]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3), st.sampled_from([7, 6, 5, 3, 1]))
@settings(deadline=SLOWEST)
def test_any_value_in_a_row_is_right_or_refused(changes, schema):
    values = GOOD.to_dict() | {"schema": schema} | changes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job-1" / "row.json"
        path.parent.mkdir()
        path.write_text(json.dumps(values))
        found = row_or_reason(path)
    if isinstance(found, Row):
        assert all(found.to_dict()[name] == changes[name] for name in changes if name not in ("schema", "settings"))
        assert found.schema == 7


def flipped(content: bytes, flips: list[tuple[float, int]], kept: float) -> bytes:
    """Some bytes changed, and the end cut off."""
    changed = bytearray(content)
    for place, mask in flips:
        changed[int(place * (len(changed) - 1))] ^= mask
    return bytes(changed[: int(kept * len(changed))])


FLIPS = st.lists(st.tuples(st.floats(0, 1, allow_subnormal=False), st.integers(1, 255)), max_size=4)
KEPT = st.one_of(st.just(1.0), st.floats(0, 1, allow_subnormal=False))


@given(FLIPS, KEPT)
@settings(deadline=SLOWEST)
def test_flipped_bytes_in_a_row_are_right_or_refused(flips, kept):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job-1" / "row.json"
        GOOD.write(path)
        path.write_bytes(flipped(path.read_bytes(), flips, kept))
        found = row_or_reason(path)
        if isinstance(found, Row):
            assert found.to_dict() == json.loads(path.read_text()), "what stands there"


@given(FLIPS, KEPT)
@settings(deadline=SLOWEST)
def test_flipped_bytes_in_a_table_cost_no_other_line(flips, kept):
    with tempfile.TemporaryDirectory() as folder:
        path, mine = Path(folder) / "table.csv", Path(folder) / "mine.csv"
        write_table([GOOD, make_row()], path)
        write_table([make_row("random")], mine)
        path.write_bytes(flipped(path.read_bytes(), flips, kept))
        found, left_out = read_records([path, mine])
        assert make_row("random") in found
        assert all(line.startswith(f"{path}") and line.isprintable() for line in left_out)
        assert len(found) + len(left_out) >= min(2, path.read_bytes().count(b"\n") + 1)


def test_a_table_that_is_cut_behind_its_first_line_is_named(tmp_path):
    path, mine = tmp_path / "table.csv", tmp_path / "mine.csv"
    write_table([GOOD], path)
    write_table([make_row("random")], mine)
    path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\n")
    assert read_records([path, mine]) == (
        [make_row("random")],
        [f"{path}, line 2: it is missing: the table holds no row"],
    )


@given(FLIPS, KEPT, st.booleans())
@settings(deadline=SLOWEST)
def test_flipped_bytes_in_arrays_are_right_or_refused(flips, kept, texts):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / ("tokens.npz" if texts else PREDICTIONS_FILE)
        good: Gallery | Predictions = make_gallery(0.5) if texts else _predictions()
        good.write(path)
        path.write_bytes(flipped(path.read_bytes(), flips, kept))
        try:
            found: Any = read_gallery(path) if texts else read_predictions(name)
        except ValueError as error:
            assert str(error).isprintable()
            return
        # A checksum guards every array: what is read is what was written.
        assert all(np.array_equal(getattr(found, each), getattr(good, each)) for each in found.__dataclass_fields__)


def _predictions() -> Predictions:
    return Predictions.of(np.arange(9), np.arange(9) % 3, np.arange(9) % 2, np.eye(9))
