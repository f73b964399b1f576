"""The command that predicts: what it says is what the model says, of any batch, and mistakes are one line."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import softmax

import sttabt
from made_runs import make_runs, make_tokenizer
from sttabt.predict import main
from sttabt.settings import method_names
from sttabt.testing.models import make_example, make_pruned

NAMES = ["ant", "bee", "cat", "dog", "eel"]


class Folder:
    """A folder with saved models, images and texts, all small."""

    def __init__(self, path: Path) -> None:
        self.path = path
        vit, text = make_pruned(make_example("test_vit"), "backtracking"), make_pruned(make_example("bert"), "ltp")
        gains = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3], "crop": 0.9, "interpolation": "bicubic"}
        vit.save_pretrained(path / "vit", class_names=NAMES, preprocessing=gains)
        text.save_pretrained(path / "bert", class_names=NAMES, tokenizer=make_tokenizer(path / "words"))
        numbers = np.random.default_rng(0)
        for number in range(7):
            place = path / "photos" / ("deep" if number % 2 else "") / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(numbers.integers(0, 256, (40 + 5 * number, 50, 3), np.uint8)).save(place)
        words = ("a good film", "the book", "very very bad", "bad", "a very good book the film", "goodly")
        (path / "texts.txt").write_text("\n".join(words) + "\n")
        rows = [f"{number},{word}" for number, word in enumerate(words)]
        (path / "texts.csv").write_text("\n".join(["id,sentence", *rows]) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("predict"))


@pytest.fixture(autouse=True)
def _here(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.path)


def _lines(capsys: pytest.CaptureFixture, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    assert main(arguments) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_images_get_the_models_class_probability_and_tokens(capsys: pytest.CaptureFixture) -> None:
    """Against the model run by hand on images that Pillow and torch prepare."""
    found = _lines(capsys, "model=vit", "photos")
    assert [each["input"] for each in found] == [f"photos/{n}.png" for n in "0246"] + [
        f"photos/deep/{n}.png" for n in "135"
    ]
    model = sttabt.load("vit")
    for each in found:
        with torch.inference_mode():
            run = model.run(_prepared(each["input"])[None])
        probability, place = softmax(run.logits.double(), -1).max(-1)
        assert each["class"] == NAMES[int(place)]
        assert each["probability"] == pytest.approx(float(probability), abs=2e-4)
        assert each["tokens"] == 17
        assert each["kept"] == pytest.approx(run.plan.alive.double().mean().item(), abs=1e-4)


def _prepared(path: str) -> torch.Tensor:
    """The shorter side is scaled so that the crop, the middle of it, is as large as the model reads."""
    image = Image.open(path)
    size = int(np.floor(32 / 0.9))
    scale = size / min(image.size)
    width, height = (size if side == min(image.size) else int(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 32) / 2.0), round((height - 32) / 2.0)
    pixels = np.asarray(image.crop((left, top, left + 32, top + 32)), np.float32) / 255
    normalised = (pixels - np.array([0.5, 0.4, 0.3], np.float32)) / np.array([0.2, 0.2, 0.3], np.float32)
    return torch.from_numpy(normalised).permute(2, 0, 1)


def test_texts_get_what_the_model_says_of_each_alone(capsys: pytest.CaptureFixture) -> None:
    found = _lines(capsys, "model=bert", "texts.txt")
    texts = Path("texts.txt").read_text().splitlines()
    assert [(each["input"], each["file"], each["line"]) for each in found] == [
        (text, "texts.txt", line) for line, text in enumerate(texts, 1)
    ]
    model = sttabt.load("bert")
    tokenizer = model.preparation.load_tokenizer()  # type: ignore[union-attr]
    for each in found:
        encoding = tokenizer([each["input"]], return_tensors="pt")
        with torch.inference_mode():
            run = model.run(sttabt.text(encoding))
        probability, place = softmax(run.logits.double(), -1).max(-1)
        assert (each["class"], each["tokens"]) == (NAMES[int(place)], encoding["input_ids"].shape[1])
        assert each["probability"] == pytest.approx(float(probability), abs=2e-4)
        assert each["kept"] == pytest.approx(run.plan.occupancy(run.real).double().mean().item(), abs=1e-4)


@pytest.mark.parametrize("kind", ["vit", "bert"])
@pytest.mark.parametrize("method", sorted(method_names()))
def test_batches_and_order_change_nothing(
    kind: str, method: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    given = ["photos/0.png", "photos/2.png", "photos/deep/1.png"] if kind == "vit" else ["texts.csv"]
    pruned = make_pruned(make_example("test_vit" if kind == "vit" else "bert"), method)
    own: dict[str, Any] = {"preprocessing": {"mean": [0.5] * 3, "std": [0.2] * 3}}
    pruned.save_pretrained(tmp_path / "m", **(own if kind == "vit" else {"tokenizer": make_tokenizer(tmp_path / "w")}))
    more = [] if kind == "vit" else ["column=sentence"]
    first = _lines(capsys, f"model={tmp_path / 'm'}", *given, *more)
    for batch in (1, 2):
        _same(_lines(capsys, f"model={tmp_path / 'm'}", *given, *more, f"batch={batch}"), first)
    if kind == "vit":
        _same(_lines(capsys, f"model={tmp_path / 'm'}", *reversed(given)), first[::-1])


def _same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """But for the last digit of a probability, where rounding may go either way."""
    for one, other in zip(found, expected, strict=True):
        assert one == other | {"probability": pytest.approx(other["probability"], abs=1.01e-4)}


@pytest.mark.parametrize("name", ["bert_mean", "siglip_embedding"])
def test_an_encoder_gives_vectors_of_any_batch_and_pictures(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Against the model run by hand on each text, or image, alone."""
    pruned, texts = make_pruned(make_example(name), "backtracking"), name == "bert_mean"
    gains = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3], "crop": 0.9, "interpolation": "bicubic"}
    own: dict[str, Any] = {"tokenizer": make_tokenizer(tmp_path / "w")} if texts else {"preprocessing": gains}
    model = sttabt.load(pruned.save_pretrained(tmp_path / "m", **own))
    given = (f"model={tmp_path / 'm'}", "texts.txt" if texts else "photos")
    found = _lines(capsys, *given, f"show={tmp_path / 'kept'}")
    assert len(found) == len(list((tmp_path / "kept").glob("*.png"))) == (6 if texts else 7)
    for each in found:
        with torch.inference_mode():
            if texts:
                tokenizer = model.preparation.load_tokenizer()  # type: ignore[union-attr]
                run = model.run(sttabt.text(tokenizer([each["input"]], return_tensors="pt")))
            else:
                run = model.run(_prepared(each["input"])[None])
        assert list(each)[-3:] == ["embedding", "tokens", "kept"] and not {"class", "score"} & set(each)
        assert each["embedding"] == pytest.approx(run.logits[0].tolist(), rel=1e-4, abs=1e-5)
        assert each["kept"] == pytest.approx(run.plan.occupancy(run.real).double().mean().item(), abs=1e-4)
    for one, other in zip(_lines(capsys, *given, "batch=2"), found, strict=True):
        assert one == other | {"embedding": pytest.approx(other["embedding"], rel=1.01e-4, abs=1e-5)}


def test_tables_and_standard_input(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _lines(capsys, "model=bert", "texts.txt")
    table = _lines(capsys, "model=bert", "column=sentence", "texts.csv")
    drop = ("file", "line")
    assert [{k: v for k, v in each.items() if k not in drop} for each in table] == [
        {k: v for k, v in each.items() if k not in drop} for each in plain
    ]
    assert [each["line"] for each in table] == list(range(2, 8))

    def say(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    say("a good film\n\nthe book\n")
    found = _lines(capsys, "model=bert", "-")
    assert [(each["input"], each["line"], each["class"]) for each in found] == [
        (plain[0]["input"], 1, plain[0]["class"]),
        (plain[1]["input"], 3, plain[1]["class"]),
    ]
    say("photos/0.png\nphotos/deep/1.png\n")
    assert [each["input"] for each in _lines(capsys, "model=vit", "-")] == ["photos/0.png", "photos/deep/1.png"]
    pair = _lines(capsys, "model=bert", "column=id,sentence", "texts.csv")
    assert pair[0]["input"] == ["0", "a good film"] and pair[0]["tokens"] == plain[0]["tokens"] + 2


def test_what_is_too_long_is_cut_and_said(tmp_path: Path, capsys: pytest.CaptureFixture, caplog: Any) -> None:
    (tmp_path / "long.txt").write_text("good\n" + "very " * 60 + "\n")
    found = _lines(capsys, "model=bert", str(tmp_path / "long.txt"))
    assert [each["tokens"] for each in found] == [3, 24]
    assert (
        f"1 texts are longer than 24 tokens and lose their ends, the first is {tmp_path / 'long.txt'}, line 2"
        in caplog.text
    )


def test_other_files_in_a_folder_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree("photos", tmp_path / "mixed")
    for name in ("notes.txt", "deep/photo.jpgg"):
        (tmp_path / "mixed" / name).write_text("no image")
    assert len(_lines(capsys, "model=vit", str(tmp_path / "mixed"))) == 7
    assert f"{tmp_path / 'mixed'}: passed over 2 that by name are no images" in caplog.text


def test_broken_files_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole = Path("photos/0.png").read_bytes()
    for name, content in (("zero.png", b""), ("half.png", whole[: len(whole) // 2]), ("page.jpg", b"<html>")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "whole.png").write_bytes(whole)
    assert main(["model=vit", str(tmp_path), "batch=2"]) == 1
    shown = capsys.readouterr()
    (line,) = shown.out.splitlines()
    assert json.loads(line)["input"] == str(tmp_path / "whole.png")
    said = shown.err.splitlines()
    assert len(said) == 4 and said[3] == "3 inputs were left out, 1 predicted"
    for name in ("zero.png", "half.png", "page.jpg"):
        assert sum(f"{tmp_path / name} cannot be read as an image" in each for each in said) == 1


def test_where_all_files_are_broken_each_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wanted = {"png": ("vit", "cannot be read as an image"), "txt": ("bert", ", line 1: byte 0xff")}
    for kind, (model, why) in wanted.items():
        names = [str(tmp_path / f"{number}.{kind}") for number in range(2)]
        for name in names:
            Path(name).write_bytes(b"\xff\x01 a")
        assert main([f"model={model}", *names]) == 1
        shown = capsys.readouterr()
        *said, last = shown.err.splitlines()
        assert len(said) == 2 and all(name in line and why in line for name, line in zip(names, said, strict=True))
        assert last == "2 inputs were left out, 0 predicted" and not shown.out


WRONG = [
    (["model=nowhere", "photos"], "nowhere is not there: give the folder of a model"),
    (["model=photos", "photos"], "photos holds no artifact.json: give a folder that save_pretrained wrote"),
    (["model=texts.txt", "texts.txt"], "texts.txt is a file: give the folder of a model"),
    (["model=me/nothing", "photos"], "me/nothing is no folder of an artifact here"),
    (["photos"], "model is missing: give model=FOLDER"),
    (["model=vit"], "no input is given"),
    (["model=vit", "photos", "--show"], "--show: settings are written without dashes, show=VALUE"),
    (["model=vit", "photos", "--batch=2"], "--batch=2: settings are written without dashes, batch=VALUE"),
    (["model=vit", "nothing.png"], "nothing.png is no file"),
    (["model=vit", "words"], "words holds no image"),
    (["model=vit", "texts.txt"], "texts.txt holds text, but the model reads images"),
    (["model=vit", "texts.csv"], "texts.csv holds text, but the model reads images"),
    (["model=bert", "photos/0.png"], "photos/0.png is an image, but the model reads texts"),
    (["model=bert", "photos"], "photos is a folder, but the model reads texts"),
    (["model=bert", "texts.csv", "column=sentense"], "did you mean 'sentence'?"),
    (["model=bert", "texts.csv"], "has the columns id, sentence: say which holds the texts, column=NAME"),
    (["model=bert", "texts.csv", "column=id,sentence,id"], "column=id,sentence,id: the model reads one or two columns"),
    (["model=vit", "photos", "column=a"], "column=a has no effect on images"),
    (["model=vit", "photos", "batch=0"], "batch=0 is no whole number above 0"),
    (["model=vit", "photos", "bach=3"], "did you mean 'batch'?"),
    (["model=vit", "photos", "out=texts.txt"], "out=texts.txt is there already"),
    (["model=vit", "photos", "out=no/where.jsonl"], "no is no folder"),
    (["model=bert", "empty.txt"], "there is nothing to predict in empty.txt"),
    (["model=bert", "empty.csv"], "empty.csv is empty"),
]


@pytest.mark.parametrize(("arguments", "line"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_a_mistake_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture) -> None:
    for name, content in (("empty.txt", b"\n"), ("empty.csv", b"")):
        Path(name).write_bytes(content)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert line in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_a_model_without_its_preparation_says_how_to_save_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pruned = make_pruned(make_example("lvvit"), "dense")
    pruned.save_pretrained(tmp_path / "vit")
    make_pruned(make_example("bert"), "dense").save_pretrained(tmp_path / "bert")
    assert main([f"model={tmp_path / 'vit'}", "photos"]) == 2
    assert "preprocessing={'mean'" in capsys.readouterr().err
    assert main([f"model={tmp_path / 'bert'}", "texts.txt"]) == 2
    assert "tokenizer=..." in capsys.readouterr().err


def test_pictures_show_what_was_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for model, given in (("vit", "photos"), ("bert", "texts.txt")):
        lines = _lines(capsys, f"model={model}", given, f"show={tmp_path / model}", "batch=3")
        pictures = sorted((tmp_path / model).iterdir())
        assert len(pictures) == len(lines)
        assert pictures[0].name == ("01-0.png" if model == "vit" else "01-texts-1.png")
        sizes = {Image.open(path).size for path in pictures}
        assert all(width > 500 for width, _ in sizes)


def test_a_runs_artifacts_predict_with_their_own_names(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any
) -> None:
    make_runs(tmp_path)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save("digit.png")
    for folder in sorted(Path("artifacts").glob("*/*/artifact.json")):
        if folder.parts[1] not in ("base", "approx", "prune"):
            continue
        text = "texts of at most" in (folder.parent / "README.md").read_text()
        (each, *rest) = _lines(capsys, f"model={folder.parent}", "reviews.csv" if text else "digit.png")
        assert each["class"] in (("bad", "good") if text else tuple("0123456789"))
        assert len(rest) == (39 if text else 0), "the column that the model was trained on is read"


def test_an_interruption_leaves_whole_lines(folder: Folder, tmp_path: Path, hears_signals: None) -> None:
    inside = tmp_path / "many.txt"
    inside.write_text("a good film very bad\n" * 200_000)
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "sttabt.predict", "model=bert", str(inside), f"out={out}", "batch=8"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and (not out.exists() or not out.stat().st_size):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.count("\n") == 1 and "Traceback" not in said
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found and out.read_text().endswith("\n")
    (written,) = re.findall(r"(\d+) lines were written to", said)
    assert len(found) - 3 * 16 * 8 <= int(written) <= len(found)
    assert [each["line"] for each in found] == list(range(1, len(found) + 1))


def test_a_reader_that_goes_is_no_failure(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `head` does: it ends like a process that the system ends for that, and says nothing."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["model=bert", "texts.txt"]) == 141
    assert not capsys.readouterr().err


def test_the_readmes_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    section = readme.partition("## Save, share, predict")[2].partition("\n## ")[0]
    code = section.partition("```python\n")[2].partition("```")[0]
    shutil.copytree("photos", tmp_path / "photos")
    (command,) = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert command.startswith("python -m sttabt.predict ") and main(shlex.split(command)[3:]) == 0
    found = [json.loads(line) for line in (tmp_path / "photos.jsonl").read_text().splitlines()]
    assert len(found) == len(list((tmp_path / "kept").glob("*.png"))) == 7
    shown = json.loads(re.findall(r"`(\{[^`]*\})`", section.replace("\n", " "))[0])
    assert list(found[0]) == list(shown) and found[0]["class"] in ("ant", "bee", "cat")
    assert found[0]["tokens"] == shown["tokens"]
