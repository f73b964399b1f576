"""The suite in one line of Python: the same models as the long way, and clear words for what cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

import sttabt
from conftest import BERT, make_approx, make_backbone, make_images, make_text
from sttabt.cli.composition import compose_settings
from sttabt.core.distill import attention_divergence
from sttabt.core.text import Text
from sttabt.errors import UserError
from sttabt.lit.loggers import JobLoggers
from sttabt.methods import find_method
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.stage import Context
from sttabt.pipeline.stages import pruned_model, run_stages
from sttabt.settings import method_names
from sttabt.settings.methods.backtracking import BacktrackingSettings
from sttabt.store.job import Job


def _vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", patch_size=8, img_size=32, num_classes=5)


def _bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**BERT))


def _encoding(text: Text) -> dict[str, torch.Tensor]:
    return {"input_ids": text.ids, "token_type_ids": text.types, "attention_mask": text.real.long()}


def test_the_package_imports_without_torch() -> None:
    code = "import sys, sttabt; assert 'prune' in dir(sttabt); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(sttabt.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = sttabt.prun


@pytest.mark.parametrize("name", ["test_vit", "bert"])
def test_one_line_gives_the_model_of_the_long_way(name: str) -> None:
    base = make_backbone(name)
    network = make_approx(base, name)
    settings = BacktrackingSettings(method="backtracking", keep_ratio=0.4)
    method = find_method("backtracking")(settings, base.layers, base.outputs)
    inputs = make_text() if name == "bert" else make_images(name)
    given = _encoding(inputs) if isinstance(inputs, Text) else inputs
    pruned = sttabt.prune(base.model, keep_ratio=0.4, approx=network)
    with torch.inference_mode():
        expected = PrunedModel(base, method, network).eval().run(inputs)
        found = pruned.run(sttabt.text(given) if isinstance(given, dict) else given)
        answer = pruned(**given).logits if isinstance(given, dict) else pruned(given)
    assert torch.equal(answer, found.logits)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.plan.alive, expected.plan.alive)
    assert not pruned.training
    assert pruned.base.model is base.model, "shared, not copied"


@pytest.mark.parametrize("method", sorted(method_names()))
def test_every_method_prunes_a_live_model(method: str) -> None:
    with torch.inference_mode():
        logits = sttabt.prune(_vit(), method, approx=2)(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 5)
    with torch.inference_mode():
        assert sttabt.prune(_bert(), method).run(sttabt.text(_encoding(make_text()))).logits.shape == (4, 5)


def test_what_is_not_trained_yet_says_so(caplog: pytest.LogCaptureFixture) -> None:
    sttabt.prune(_vit(), "backtracking", approx=2)
    assert "sttabt.distil" in caplog.text
    sttabt.prune(_vit(), "ltp")
    assert "LTP starts untrained" in caplog.text
    caplog.clear()
    sttabt.prune(_vit(), "backtracking", attention="actual")
    sttabt.prune(_vit(), "forward_topk")
    assert not caplog.text
    sttabt.prune(_vit(), "backtracking", attention="actual", dynamic=True, keep_ratio=0.3)
    assert "keep_ratio=0.3 has no effect: sparsity.dynamic=true chooses the count" in caplog.text


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": "backtrakking"}, "method=backtrakking is unknown: did you mean 'backtracking'?"),
    ({"keep_rato": 0.4}, "keep_rato is not a setting of backtracking: did you mean 'keep_ratio'?"),
    ({"keep_ratio": 1.4}, "keep_ratio=1.4 is out of range: it must be above 0 and at most 1"),
    ({"keep_ratio": "much"}, "keep_ratio='much' cannot be read: it must be a number, above 0 and at most 1"),
    ({"keep_ratio": None}, "keep_ratio=None cannot be read: it must be a number"),
    ({"attention": "aproximate"}, "attention=aproximate is unknown: did you mean 'approximate'?"),
    ({"counts": [17]}, "has 1 entries"),
    ({"method": "dense", "keep_ratio": 0.5}, "keep_ratio is not a setting of dense: it has none"),
    ({"method": "concrete", "batch": 3}, "batch is not a setting of concrete"),
    ({"approx": 7}, "approx.factor=7 does not divide"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_a_mistake_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        sttabt.prune(_vit(), **arguments)
    assert message in str(error.value)


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="a Linear cannot be pruned"):
        sttabt.prune(nn.Linear(2, 2))


def test_counts_give_static_shapes() -> None:
    vit = _vit()
    counts = [12, *[5] * (len(vit.blocks) - 1)]
    pruned = sttabt.prune(vit, counts=counts, approx=2)
    with torch.inference_mode():
        alive = pruned.run(torch.randn(3, 3, 32, 32)).plan.alive
    assert alive.sum(-1).tolist() == [[*counts, 1]] * 3


# --- distil


@pytest.mark.parametrize("form", ["images", "pairs", "encodings"])
def test_distilling_brings_the_attention_nearer_and_leaves_the_base_alone(form: str) -> None:
    torch.manual_seed(1)
    if form == "encodings":
        pruned = sttabt.prune(make_backbone("bert").model, approx=4)
        batches: Any = [_encoding(make_text())]
        inputs: Any = make_text()
    else:
        pruned = sttabt.prune(make_backbone("test_vit"), approx=2)
        inputs = make_images("test_vit", 8)
        labels = torch.zeros(8, dtype=torch.long)
        batches = [inputs] if form == "images" else DataLoader(TensorDataset(inputs, labels), batch_size=4)
    base = {name: value.clone() for name, value in pruned.base.state_dict().items()}
    before = _divergence(pruned, inputs)
    assert sttabt.distil(pruned, batches, epochs=40, learning_rate=3e-3) is pruned
    assert _divergence(pruned, inputs) < 0.9 * before
    assert all(torch.equal(value, base[name]) for name, value in pruned.base.state_dict().items())
    assert not any(module.training for module in pruned.modules())


def _divergence(pruned: PrunedModel, inputs: Any) -> float:
    from sttabt.engine.dense import trace_attention

    assert isinstance(pruned.approx, ApproximateNetwork)
    with torch.no_grad():
        actual, found = trace_attention(pruned.base, inputs), pruned.approx(inputs)
        layers = range(pruned.base.layers)
        maps = [[trace.probabilities(layer) for layer in layers] for trace in (actual, found)]
        return float(attention_divergence(maps[0], maps[1], actual.real))


def test_distilling_nothing_is_refused() -> None:
    for given in (_vit(), "artifacts/base/1"):
        with pytest.raises(UserError, match=f"a {type(given).__name__} is not pruned: give what sttabt.prune gives"):
            sttabt.distil(given, [])  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"a {type(given).__name__} is not pruned"):
            sttabt.calibrate(given, 0.5, [])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="batches are a dict: give a DataLoader or a list of batches"):
        sttabt.distil(sttabt.prune(make_backbone("bert").model, approx=4), _encoding(make_text()))
    with pytest.raises(UserError, match="reads no approximate network"):
        sttabt.distil(sttabt.prune(_vit(), "random"), [])
    with pytest.raises(UserError, match="gave nothing in epoch 2"):
        sttabt.distil(sttabt.prune(_vit(), approx=2), iter([torch.randn(2, 3, 32, 32)]), epochs=2)


# --- text


def test_an_encoding_becomes_a_text() -> None:
    text = make_text()
    found = sttabt.text(_encoding(text))
    assert all(torch.equal(*pair) for pair in zip(found, text, strict=True))
    alone = sttabt.text({"input_ids": text.ids})
    assert alone.real.all()
    assert not alone.types.any()


def test_an_encoding_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(UserError, match="no input_ids, only labels"):
        sttabt.text({"labels": torch.zeros(1)})
    left = {"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.tensor([[0, 1, 1]])}
    with pytest.raises(UserError, match="padding_side='right'"):
        sttabt.text(left)


# --- load


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrunedModel:
    """The model of a job that made every kind of artifact."""
    monkeypatch.chdir(tmp_path)
    job = Job("test", "alone", False, "")
    settings = compose_settings(
        ["experiment=debug", "logger=none", "sparsity=concrete", "sparsity.ema=0.9", "stages=[base,approx,prune]"],
        output=tmp_path,
    )
    run_stages(settings, job)
    return pruned_model(Context(settings, job, JobLoggers(settings, job)))[0]


def test_a_saved_model_comes_back(trained: PrunedModel) -> None:
    (base,), (approx,), (pruned,) = (list(Path("artifacts", stage).glob("*/")) for stage in ("base", "approx", "prune"))
    images = torch.randn(3, 1, 28, 28)
    with torch.inference_mode():
        assert torch.equal(sttabt.load(pruned)(images), trained(images))
        dense = sttabt.load(base)(images)
        assert not torch.equal(dense, trained(images))
        everything = sttabt.load(str(approx), keep_ratio=1.0)(images)
        torch.testing.assert_close(everything, dense, atol=1e-5, rtol=1e-5)
        assert sttabt.load(approx, method="concrete", p_logit=-1)(images).shape == (3, 10)
    with pytest.raises(UserError, match="leave method and settings out"):
        sttabt.load(pruned, keep_ratio=0.1)
    with pytest.raises(UserError, match="nothing is not there: give the folder of a model, or an id of the hub"):
        sttabt.load("artifacts/base/nothing")
    with pytest.raises(UserError, match="is a file: give the folder of a model"):
        sttabt.load(pruned / "artifact.json")
    with pytest.raises(UserError, match=r"base holds no artifact\.json: give a folder that save_pretrained wrote, or"):
        sttabt.load("artifacts/base")
    for folder in (base, approx, pruned):
        _damage(folder)


NEEDED = ("stage", "fingerprint", "description", "version", "bytes", "sha256", "notes")  # entries of a record


def _damage(folder: Path) -> None:
    """Whatever is missing or changed in an artifact's folder, loading it is one line."""
    weights, record = folder / "model.safetensors", folder / "artifact.json"
    whole, said = weights.read_bytes(), json.loads(record.read_text())
    notes = said["notes"]
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for content in (whole[:-1], b"", bytes(flipped), b"<html>"):
        weights.write_bytes(content)
        _refused(folder, str(weights))
    weights.unlink()
    _refused(folder, str(weights))
    weights.write_bytes(whole)
    without = {key: value for key, value in notes["settings"].items() if key != "model"}
    other = {**notes["settings"], "model": {**notes["settings"]["model"], "depth": 3, "arguments": {}}}
    for changed in (
        *({name: value for name, value in said.items() if name != left_out} for left_out in NEEDED),
        {**said, "notes": []},
        {**said, "notes": {**notes, "settings": without}},
        {**said, "notes": {**notes, "settings": other}},
        {**said, "notes": {**notes, "settings": 3}},
        {**said, "stage": "timing"},
    ):
        record.write_text(json.dumps(changed))
        _refused(folder, "")
    for text in ("", "{", "[]", "null", '{"a":' * 20_000, "\0"):
        record.write_text(text)
        _refused(folder, str(record))
    record.unlink()
    _refused(folder, f"{folder} holds no artifact.json")
    record.mkdir()
    _refused(folder, str(record))
    record.rmdir()
    record.write_text(json.dumps(said))
    sttabt.load(folder)


def _refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError) as error:
        sttabt.load(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", [None, 3, "/etc/passwd", "/dev/null", ""])
def test_what_is_no_artifact_is_refused(folder: Any) -> None:
    with pytest.raises(UserError, match=r"give (the folder|that) of|artifact"):
        sttabt.load(folder)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), Fraction(1, 2)])
def test_a_number_of_another_library_is_a_number(value: Any) -> None:
    assert sttabt.prune(_vit(), "forward_topk", keep_ratio=value).method.settings.keep_ratio == 0.5


@pytest.mark.parametrize("share", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2), 1, np.int64(1)])
def test_a_budget_is_any_real_number(share: Any) -> None:
    model = sttabt.prune(_vit(), "forward_topk", budget=share, calibration=[torch.zeros(2, 3, 32, 32)])
    again = sttabt.calibrate(model, sttabt.Budget(macs=share), [torch.zeros(2, 3, 32, 32)])
    assert model.calibration is not None and again.calibration is not None
    assert model.calibration.asked == again.calibration.asked == float(share)
    assert type(again.calibration.asked) in (int, float)


@pytest.mark.parametrize("share", [True, np.True_, torch.tensor(True), "0.5", np.array("0.5"), torch.ones(1), 0.5j])
def test_what_is_no_real_number_is_no_budget(share: Any) -> None:
    with pytest.raises(UserError, match=r"is no share: give a number above 0"):
        sttabt.prune(_vit(), "forward_topk", budget=share, calibration=[torch.zeros(2, 3, 32, 32)])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"input_ids": torch.ones(1, 4, dtype=torch.long)}, r"call model\(\*\*encoding\)"),
        (["some words"], "reads input_ids, a tensor, not a list"),
        (np.ones((1, 4), int), "reads input_ids, a tensor, not a ndarray"),
    ],
)
def test_what_is_no_encoding_is_said(given: Any, expected: str) -> None:
    pruned = sttabt.prune(BertForSequenceClassification(BertConfig(**BERT)).eval(), "tome")
    with pytest.raises(UserError, match=expected):
        pruned(given)
