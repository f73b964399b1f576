"""Models that were saved: the same logits bit for bit, in another process, from the hub; mistakes in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoConfig, BertConfig, BertForSequenceClassification

import sttabt
from conftest import TEXTS, VISION, make_inputs
from hub_server import hub_server
from made_runs import make_runs, make_tokenizer
from sttabt.errors import UserError
from sttabt.models.pruned import PrunedModel
from sttabt.store.artifacts import MODEL_STAGES, Claim, load_folder
from sttabt.testing.models import make_example, make_pruned

CASES = [
    *((name, "backtracking") for name in (*VISION, *TEXTS)),
    *(("lvvit_auxiliary", "concrete"), ("distilbert", "concrete"), ("electra", "ltp")),
    *(("digits", method) for method in ("dense", "concrete", "ltp", "dynamicvit", "diffrate", "power_bert", "tome")),
    *(("bert", method) for method in ("concrete", "dynamicvit")),
]


def _logits(model: PrunedModel, inputs: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.run(inputs).logits


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_model_comes_back_bit_for_bit(name: str, method: str, tmp_path: Path) -> None:
    """With weights of the method that are not where it starts, and everything that is kept."""
    pruned = make_pruned(make_example(name), method)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in pruned.method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert pruned.save_pretrained(tmp_path / "model") == tmp_path / "model"
    found, inputs = sttabt.load(tmp_path / "model"), make_inputs(name)
    assert torch.equal(_logits(found, inputs), _logits(pruned, inputs))
    with torch.inference_mode():
        assert torch.equal(found.run(inputs).plan.counts, pruned.run(inputs).plan.counts)
    assert not found.training and found.method.settings == pruned.method.settings
    assert [parameter.requires_grad for parameter in found.parameters()] == [True] * len(list(found.parameters()))
    assert {path.name for path in tmp_path.iterdir()} == {"model"}, "nothing half-written is left"


def test_a_budget_comes_back(tmp_path: Path) -> None:
    images = torch.randn(8, 3, 32, 32)
    vit = timm.create_model("test_vit", patch_size=8, img_size=32, num_classes=5)
    pruned = sttabt.prune(vit, "forward_topk", budget=0.6, calibration=[images])
    found = sttabt.load(pruned.save_pretrained(tmp_path / "model"))
    assert found.calibration == pruned.calibration and found.method.settings == pruned.method.settings
    assert torch.equal(_logits(found, images), _logits(pruned, images))


def test_fixed_counts_of_texts_come_back(tmp_path: Path) -> None:
    """They want texts of one length."""
    pruned = make_pruned(make_example("bert"), "backtracking", counts=[12, 6, 3])
    found = sttabt.load(pruned.save_pretrained(tmp_path / "model"))
    ids = torch.randint(1, 60, (2, 14))
    text = sttabt.text({"input_ids": ids})
    assert found.method.settings == pruned.method.settings
    assert torch.equal(_logits(found, text), _logits(pruned, text))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_keep_their_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    pruned = make_pruned(make_example("digits"), "backtracking").to(dtype)
    found = sttabt.load(pruned.save_pretrained(tmp_path / "model"))
    assert {each.dtype for each in found.parameters()} == {dtype}
    images = make_inputs("digits").to(dtype)
    assert torch.equal(_logits(found, images), _logits(pruned, images))


def test_what_a_library_has_lies_beside_as_it_knows_it(tmp_path: Path) -> None:
    vit = timm.create_model("deit_tiny_patch16_224", depth=2, img_size=32, num_classes=3, drop_path_rate=0.2)
    folder = sttabt.prune(vit, "tome").save_pretrained(tmp_path / "vit", class_names=["ant", "bee", "cat"])
    said = json.loads((folder / "config.json").read_text())
    assert said["architecture"] == "deit_tiny_patch16_224" and said["label_names"] == ["ant", "bee", "cat"]
    assert said["pretrained_cfg"]["mean"] == list(vit.pretrained_cfg["mean"])
    again = timm.create_model(said["architecture"], num_classes=3, **said["model_args"])
    assert str(again) == str(vit)
    found = sttabt.load(folder)
    assert str(found.base.model) == str(vit)
    assert found.preparation is not None and found.preparation.class_names == ("ant", "bee", "cat")
    assert found.preparation.inputs["std"] == list(vit.pretrained_cfg["std"])

    bert: Any = make_example("bert").model.model
    names = ["one", "two", "three", "four", "five"]
    own = sttabt.prune(bert, "forward_topk")
    folder = own.save_pretrained(tmp_path / "bert", tokenizer=make_tokenizer(tmp_path / "words"), class_names=names)
    config = AutoConfig.from_pretrained(folder)
    assert config.id2label == dict(enumerate(names)) and config.hidden_size == bert.config.hidden_size
    model = BertForSequenceClassification(config)
    assert set(model.state_dict()) == set(bert.state_dict())
    found = sttabt.load(folder)
    assert found.preparation is not None
    tokenizer = found.preparation.load_tokenizer()
    assert tokenizer(["a very good film"])["input_ids"] == [[2, 5, 11, 6, 8, 3]]
    again_saved = found.save_pretrained(tmp_path / "again")
    assert (again_saved / "tokenizer.json").is_file(), "the tokenizer goes on"
    assert sttabt.load(again_saved).preparation.class_names == tuple(names)  # type: ignore[union-attr]


def test_a_model_of_transformers_may_have_more_than_ten_classes(tmp_path: Path) -> None:
    """Numbers as text sort otherwise: 10 stands before 2."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=12, **sizes))
    found = sttabt.load(sttabt.prune(bert, "random").save_pretrained(tmp_path / "model"))
    assert found.preparation is not None
    assert found.preparation.class_names == tuple(f"LABEL_{place}" for place in range(12))


def test_an_earlier_saved_model_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    first, second = (make_pruned(make_example("digits"), method) for method in ("backtracking", "ltp"))
    folder = first.save_pretrained(tmp_path / "model")
    second.save_pretrained(folder)
    assert sttabt.load(folder).method.settings.method == "ltp"
    before = _files(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt beside a saved model: give a new folder"):
        first.save_pretrained(folder)
    (folder / "notes.txt").unlink()
    with torch.no_grad():
        first.base.model.head.bias[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        first.save_pretrained(folder)
    assert _files(folder) == before and [path.name for path in tmp_path.iterdir()] == ["model"]
    for place in ("file", "other"):
        (tmp_path / place).mkdir() if place == "other" else (tmp_path / place).write_text("")
    (tmp_path / "other" / "x").write_text("")
    for place, line in (("file", "is a file"), ("other", "is not empty, and no saved model")):
        with pytest.raises(UserError, match=line):
            second.save_pretrained(tmp_path / place)


class _Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_what_would_not_come_back_is_not_written(tmp_path: Path) -> None:
    pruned = make_pruned(make_example("digits"), "forward_topk")
    head = pruned.base.model.head
    pruned.base.model.head = _Doubled(*reversed(head.weight.shape))
    with pytest.raises(UserError, match=r"computes something else: merge or take out") as caught:
        pruned.save_pretrained(tmp_path / "model")
    assert "\n" not in str(caught.value)
    pruned.base.model.head = nn.Sequential(head)
    with pytest.raises(UserError, match="its configuration makes another one"):
        pruned.save_pretrained(tmp_path / "model")
    pruned.base.model.head = head
    assert pruned.train().save_pretrained(tmp_path / "model") and pruned.training, "its modes stay"
    with pytest.raises(UserError, match="save the model that was frozen"):
        sttabt.freeze(pruned.eval()).save_pretrained(tmp_path / "frozen")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"class_names": ["a"]}, "give 5 names"),
        ({"class_names": "abcde"}, "give 5 names"),
        ({"preprocessing": {"meen": [0.5]}}, "did you mean 'mean'"),
        ({"preprocessing": {"mean": [0.5, 0.5]}}, "must be 1 numbers, one a channel"),
        ({"tokenizer": object()}, "has no effect on a model of images"),
    ],
)
def test_a_mistake_in_what_is_given_is_one_line(given: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        make_pruned(make_example("digits"), "dense").save_pretrained(tmp_path / "model", **given)
    assert not list(tmp_path.iterdir())


def test_a_damaged_folder_is_one_line(tmp_path: Path) -> None:
    folder = make_pruned(make_example("digits"), "backtracking").save_pretrained(tmp_path / "model")
    whole = _files(folder)
    for name, content in whole.items():
        if name == "README.md":
            continue
        for spoiled in (content[:-3], b"", content.replace(b"1", b"2", 1)):
            (folder / name).write_bytes(spoiled)
            with pytest.raises(UserError) as caught:
                sttabt.load(folder)
            assert name in str(caught.value) and "\n" not in str(caught.value)
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match="leave method and settings out"):
        sttabt.load(folder, keep_ratio=0.2)
    (folder / "README.md").write_text("mine")
    sttabt.load(folder)


def _use_block(card: Path) -> str:
    text = card.read_text().partition("## Use\n")[2]
    return text.partition("```python\n")[2].partition("```")[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with artifacts, and what the runs logged."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, make_runs(folder)


def test_what_cards_and_runs_say_runs_as_it_stands(runs: tuple[Path, list[str]]) -> None:
    """The lines of all cards, and the last line of each run, in one process."""
    folder, lines = runs
    make_pruned(make_example("distilled"), "backtracking").save_pretrained(folder / "vit")
    text = make_pruned(make_example("bert"), "ltp")
    text.save_pretrained(folder / "bert", tokenizer=make_tokenizer(folder / "own_words"))
    text.save_pretrained(folder / "ids")
    own = next(name for name in VISION if type(make_example(name).model).__module__.endswith("transformers_vit"))
    make_pruned(make_example(own), "ltp").save_pretrained(folder / "own")
    saved = "\n".join(_use_block(folder / name / "README.md") for name in ("vit", "bert", "ids", "own"))
    assert saved.count("sttabt.load(") == 4 and saved.count("model(images).logits") == 1 and "load_tokenizer()" in saved
    card = ModelCard.load(folder / "vit" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("sttabt", "image-classification")
    assert "back-tracking top-k" in card.text and "keep_ratio" in card.text
    cards = sorted(folder.glob("artifacts/*/*/README.md"))
    assert sorted(path.parts[-3] for path in cards) == ["approx", "base", "base", "prune", "prune"]
    said = [line.removeprefix("model: ") for line in lines if line.startswith("model: ")]
    assert len(said) == 4 and lines[-1] == f"model: {said[-1]}"
    assert said[1].endswith('method="backtracking", keep_ratio=0.3)') and 'load("artifacts/approx/' in said[1]
    assert said[2].endswith('method="forward_topk", keep_ratio=0.4)') and 'load("artifacts/base/' in said[2]
    for line in (said[0], said[3]):
        assert re.fullmatch(r'sttabt\.load\("artifacts/prune/[0-9a-f]{16}"\)', line)
    code = "\n".join([saved, *map(_use_block, cards), *said, f"assert {said[1]}.method.settings.keep_ratio == 0.3"])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)


def test_a_model_of_a_run_is_saved_with_what_the_run_knew(
    runs: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs[0])
    for record in sorted(Path("artifacts", "prune").glob("*/artifact.json")):
        made = sttabt.load(record.parent)
        folder = made.save_pretrained(tmp_path / "saved")
        found = sttabt.load(folder)
        assert found.preparation is not None and made.preparation is not None
        assert found.preparation.class_names == made.preparation.class_names
        assert found.preparation.inputs == made.preparation.inputs
        card = (folder / "README.md").read_text()
        assert "](../" not in card and 'sttabt.load("saved")' in card and card.count("## Use") == 1
        assert "## Results" in card, "what was measured goes on"
        inputs = make_inputs("bert" if made.base.may_pad else "digits")
        assert torch.equal(_logits(found, inputs), _logits(made, inputs))
        if made.base.may_pad:
            assert found.preparation.class_names == ("bad", "good") and found.preparation.inputs["tokens"] == 16
            assert found.preparation.load_tokenizer()("good")["input_ids"] == [2, 6, 3]
        else:
            assert found.preparation.class_names == tuple("0123456789")
            assert found.preparation.inputs["interpolation"] == "bilinear", "digits have a preparation of their own"


def test_a_trained_model_loads_without_what_it_is_made_of(runs: tuple[Path, list[str]], tmp_path: Path) -> None:
    (folder,) = (each for each in runs[0].glob("artifacts/prune/*/") if "images" in (each / "README.md").read_text())
    shutil.copytree(folder, tmp_path / "prune" / folder.name)
    found = sttabt.load(tmp_path / "prune" / folder.name)
    assert found.preparation is not None and found.preparation.class_names == tuple("0123456789")


def test_a_configuration_that_is_none_is_one_line(tmp_path: Path) -> None:
    """Whoever wrote the checksums, too."""
    folder = make_pruned(make_example("digits"), "ltp").save_pretrained(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    tensors, record = load_folder(folder)
    for changed in (
        {},
        {**config, "model_args": {**config["model_args"], "depth": 2}},
        {**config, "model_args": {**config["model_args"], "patch_size": [0, 0]}},
        {**config, "model_args": {**config["model_args"], "embed_dim": 49}},
        {**config, "layers": {**config["layers"], "norm": "os.system"}},
        {**config, "global_pool": "none"},
    ):
        (folder / "config.json").write_text(json.dumps(changed))
        Claim(folder, "saved", record["description"]).finish(tensors, record["notes"])
        with pytest.raises(UserError) as caught:
            sttabt.load(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    (folder / "config.json").write_text(json.dumps(config))
    for notes in ({**record["notes"], "format": 2}, {**record["notes"], "backbone": "Popen"}, {}):
        Claim(folder, "saved", record["description"]).finish(tensors, notes)
        with pytest.raises(UserError) as caught:
            sttabt.load(folder)
        assert "\n" not in str(caught.value)


HUB = """
import sys, torch, sttabt
from sttabt.testing.models import make_example, make_pruned
images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
with torch.inference_mode():
    if sys.argv[1] == "push":
        model = make_pruned(make_example("digits"), "backtracking")
        print(model.push_to_hub("me/pruned", private=True, class_names=list("abcde")))
        expected = model(images)
        for name, line in (("me/other", "no saved model of sttabt"), ("me/nothing", "the hub gives none")):
            try:
                sttabt.load(name)
            except sttabt.UserError as error:
                assert line in str(error) or "is no saved model" in str(error), error
            else:
                raise AssertionError(name)
        torch.save(expected, "expected.pt")
    found = sttabt.load("me/pruned")
    assert torch.equal(found(images), torch.load("expected.pt"))
    assert found.preparation.class_names == tuple("abcde")
"""


def test_the_hub_takes_a_model_and_gives_it_back_then_without_a_network(tmp_path: Path) -> None:
    (tmp_path / "hub.py").write_text(HUB)
    environment = {name: v for name, v in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_own", "HF_HUB_DISABLE_XET": "1"}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "hub.py", *arguments],
            **{"cwd": tmp_path, "env": environment | more, "text": True, "capture_output": True, "check": False},
        )

    with hub_server() as server:
        server.repositories["me/other"] = {"config.json": b"{}"}
        done = run("push", HF_ENDPOINT=server.address)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith("me/pruned")
        assert server.created == [{"name": "pruned", "organization": "me", "visibility": "private"}]
        assert server.tokens == {"Bearer hf_own"}
        files = server.repositories["me/pruned"]
        assert {"model.safetensors", "config.json", "artifact.json", "README.md"} <= set(files)
        assert b'sttabt.load("me/pruned")' in files["README.md"]
    done = run("load", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr


def test_what_the_hub_cannot_give_is_one_line() -> None:
    with pytest.raises(UserError, match="me/nothing is no folder of an artifact here, and the hub's cache has none"):
        sttabt.load("me/nothing")
    pruned = make_pruned(make_example("digits"), "dense")
    with pytest.raises(UserError, match="no id of the hub: give USER/MODEL"):
        pruned.push_to_hub("model")
    with pytest.raises(UserError, match="cannot be reached"):
        pruned.push_to_hub("me/model")
    assert "saved" not in MODEL_STAGES and re.search(r"saved", sttabt.load.__doc__ or "")
