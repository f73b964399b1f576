"""Weights from files, folders, timm and the hub: loaded strictly, or refused in one line that says what to do."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.nn import functional as F
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTConfig, ViTForImageClassification

from sttabt.backbones.lvvit import LvVit, Sizes
from sttabt.backbones.vit import ViT
from sttabt.cli.composition import compose_settings
from sttabt.data import load_splits
from sttabt.errors import UserError
from sttabt.models.approximate import ApproximateNetwork
from sttabt.pretrained.build import build_base
from sttabt.pretrained.huggingface_vit import build_huggingface_vit, vit_of_config
from sttabt.pretrained.lvvit import RELEASED, build_lvvit
from sttabt.pretrained.timm_model import build_timm
from sttabt.pretrained.weights import load_approx, load_weights, verify
from sttabt.run import main
from sttabt.settings import ModelSettings

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
HUGGING = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}


def small_vit(classes: int = 5, size: int = 32, **arguments: object) -> ViT:
    return build_timm("vit_tiny_patch16_224", {**SMALL, **arguments}, classes, 3, size)


def golden_lvvit(auxiliary: bool = False) -> LvVit:
    return LvVit(Sizes(48, 4, 3, skip_lam=2.0), 9, 3, 64, auxiliary).eval()


# --- files of a released model


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("how", ["safetensors", "pth", "nested.pth.tar", "parallel.pth.tar"])
def test_a_released_lvvit_loads_from_any_kind_of_file(how: str, auxiliary: bool, tmp_path: Path) -> None:
    released = load_file(GOLDEN / "lvvit_tiny" / "lvvit.safetensors")
    vectors = load_file(GOLDEN / "lvvit_tiny" / "vectors.safetensors")
    path = tmp_path / f"lvvit.{how}"
    if how == "safetensors":
        save_file(released, path)
    elif how == "pth":
        torch.save(OrderedDict(released), path)
    else:
        before = "module." if how.startswith("parallel") else ""
        state = {f"{before}{name}": value for name, value in released.items()}
        torch.save({"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": state}, path)
    base = golden_lvvit(auxiliary)
    assert load_weights(base, path, "model.checkpoint") is False
    found = "cls_plus_half_max_aux" if auxiliary else "cls_only"
    with torch.inference_mode():
        logits = base(vectors["input.pixel_values"])
    torch.testing.assert_close(logits, vectors[f"logits.{found}"], atol=1e-4, rtol=0)
    assert ("aux_head.weight" in base.model.state_dict()) == auxiliary
    for end in ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias"):
        name = f"blocks.1.{end}"
        assert torch.equal(base.model.state_dict()[name], released[name] / 2), "skip_lam is folded"


def test_files_of_this_project_are_not_folded_again(tmp_path: Path) -> None:
    base = golden_lvvit()
    for before in ("model.", "base.model."):
        state = {f"{before}{name}": value for name, value in base.model.state_dict().items()}
        if before == "base.model.":
            state |= {"approx.transfer_embedding.bias": torch.zeros(1), "method.p_logit": torch.zeros(4)}
        save_file(state, tmp_path / "own.safetensors")
        other = golden_lvvit()
        load_weights(other, tmp_path / "own.safetensors", "model.checkpoint")
        assert all(torch.equal(value, base.state_dict()[name]) for name, value in other.state_dict().items())


def test_official_and_transformers_names_load_too(tmp_path: Path) -> None:
    meta = json.loads((GOLDEN / "vit_tiny" / "meta.json").read_text())["config"]
    vectors = load_file(GOLDEN / "vit_tiny" / "vectors.safetensors")
    state = load_file(GOLDEN / "vit_tiny" / "base.safetensors")
    torch.save(
        {"model": {**state, "vit.encoder.layer.0.p_logit": torch.zeros(1)}, "approx_bert": {}}, tmp_path / "o.pth"
    )
    base = ViT(vit_of_config(meta, meta["num_labels"], 3, meta["image_size"])).eval()
    load_weights(base, tmp_path / "o.pth", "model.checkpoint")
    with torch.inference_mode():
        torch.testing.assert_close(base(vectors["input.pixel_values"]), vectors["dense.logits"], atol=1e-4, rtol=0)


def _save(path: Path, base: ViT, **changes: torch.Tensor) -> Path:
    torch.save({**base.model.state_dict(), **changes}, path)
    return path


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    other = _save(tmp_path / "other.pth", small_vit(embed_dim=64))
    with pytest.raises(
        UserError, match=r"model\.checkpoint=.*other\.pth belongs to another architecture: .*not \(1, 1, 32\)"
    ):
        load_weights(small_vit(), other, "model.checkpoint")
    left_over = _save(tmp_path / "more.pth", small_vit(), extra=torch.zeros(1))
    with pytest.raises(UserError, match="extra is unexpected"):
        load_weights(small_vit(), left_over, "model.checkpoint")
    one_head = _save(tmp_path / "lv.pth", build_lvvit("tiny", SMALL, 5, 3, 32))
    with pytest.raises(UserError, match=r"aux_head\.weight is missing"):
        load_weights(build_lvvit("tiny", SMALL, 5, 3, 32, auxiliary=True), one_head, "model.checkpoint")
    classes = _save(tmp_path / "classes.pth", small_vit(classes=7))
    with pytest.raises(
        UserError, match=r"has a head for 7 classes, but dataset\.classes=5: set dataset\.classes=7.*fine_tune"
    ):
        load_weights(small_vit(), classes, "model.checkpoint")
    assert load_weights(small_vit(), classes, "model.checkpoint", new_head=True) is True


def test_files_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.checkpoint=nowhere is not a file"):
        load_weights(small_vit(), Path("nowhere"), "model.checkpoint")
    whole = _save(tmp_path / "whole.pth", small_vit())
    (tmp_path / "half.pth").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"half\.pth cannot be read, it may be truncated"):
        load_weights(small_vit(), tmp_path / "half.pth", "model.checkpoint")
    torch.save(small_vit(), tmp_path / "module.pth")
    with pytest.raises(
        UserError, match=r"holds more than tensors \(sttabt\.backbones\.vit\.ViT\), which could run code"
    ):
        load_weights(small_vit(), tmp_path / "module.pth", "model.checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list: give a file of tensors by name"):
        load_weights(small_vit(), tmp_path / "list.pth", "model.checkpoint")


def test_a_checksum_is_checked_whether_given_or_in_the_name(tmp_path: Path) -> None:
    path = tmp_path / "deit.pth"
    path.write_bytes(b"weights")
    found = verify(path, "", "model.checkpoint")
    assert len(found) == 64 and verify(path, found[:8].upper(), "model.checkpoint") == found
    with pytest.raises(UserError, match=rf"has the checksum {found}, not model\.sha256=0000"):
        verify(path, "0000" + found[4:], "model.checkpoint")
    wrong, date = tmp_path / "deit-cd65a155.pth", tmp_path / "deit-20261124.pth"
    right = tmp_path / f"deit-{found[:8]}.pth"
    for other in (wrong, date, right):
        other.write_bytes(b"weights")
    with pytest.raises(UserError, match=r"not the cd65a155\.\.\. of its name"):
        verify(wrong, "", "model.checkpoint")
    assert verify(date, "", "model.checkpoint") == verify(right, "", "model.checkpoint") == found


@pytest.mark.parametrize("kind", ["vit", "distilled", "lvvit"])
def test_a_position_embedding_is_resized_with_a_warning(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def build(size: int) -> ViT:
        if kind == "lvvit":
            return build_lvvit("tiny", SMALL, 5, 3, size)
        return build_timm(f"deit_tiny_{'distilled_' if kind == 'distilled' else ''}patch16_224", SMALL, 5, 3, size)

    small, large = build(32), build(48)
    outputs = small.outputs
    with torch.no_grad():
        small.model.pos_embed.normal_()
    load_weights(large, _save(tmp_path / "a.pth", small), "model.checkpoint")
    here, there = large.model.pos_embed.detach(), small.model.pos_embed.detach()
    assert torch.equal(here[:, :outputs], there[:, :outputs])
    image = there[:, outputs:].transpose(1, 2).reshape(1, 32, 4, 4)
    resized = F.interpolate(image, (6, 6), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(here[:, outputs:], resized.flatten(2).transpose(1, 2))
    assert "position embedding is resized from 4x4 to 6x6 patches" in caplog.text


# --- folders and hub ids


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_a_vision_transformer_in_transformers_format(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if kind == "vit":
        theirs = ViTForImageClassification(ViTConfig(**HUGGING, hidden_act="relu"))
    else:
        theirs = DeiTForImageClassificationWithTeacher(DeiTConfig(**HUGGING))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.eval().save_pretrained(tmp_path)
    normalised = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(normalised))
    built = build_huggingface_vit(str(tmp_path), {}, 5, 3, 32, pretrained=True)
    ours = built.base.eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images).logits, atol=1e-5, rtol=1e-5)
    assert built.normalised_by == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)) and not built.new_head
    assert build_huggingface_vit(str(tmp_path), {}, 7, 3, 32, pretrained=True).new_head
    settings = ModelSettings(name="a", huggingface=str(tmp_path), width=32, depth=2, heads=2, patch_size=8)
    assert isinstance(build_base(settings, 5, 3, 32, pretrained=True).base, ViT)
    settings.depth = 3
    with pytest.raises(UserError, match=r"model\.depth=3, but .* has 2: set model\.depth=2"):
        build_base(settings, 5, 3, 32, pretrained=True)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be loaded from that folder: it has none of model\.safetensors"):
        build_huggingface_vit(str(tmp_path), {}, 5, 3, 32, pretrained=True)


def test_a_folder_of_timm_is_a_model_too(tmp_path: Path) -> None:
    base = small_vit().eval()
    timm.models.save_for_hf(base.model, tmp_path, model_args=SMALL)
    loaded = build_timm(f"local-dir:{tmp_path}", {}, 5, 3, 32, pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), base(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "deit_tiny_patch16_224.fb_in1k",
            r"its weights are not on this machine and could not be fetched: load them once",
        ),
        ("hf-hub:nobody/nothing", r"its weights are not on this machine and could not be fetched"),
        (
            "deit_tiny_patch16_224.fb_in2k",
            r"Invalid pretrained tag \(fb_in2k\).*did you mean 'deit_tiny_patch16_224.fb_in1k'",
        ),
    ],
)
def test_pretrained_weights_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_timm(name, {}, 1000, 3, 224, pretrained=True)


def test_a_hub_id_of_a_vision_transformer_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"was not found on the hub or in its cache"):
        build_huggingface_vit("nobody/nothing", {}, 5, 3, 32, pretrained=True)


def test_the_released_lvvit_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("sttabt.pretrained.lvvit.reachable", lambda url: False)
    settings = ModelSettings(name="lv", lvvit="small", width=32, depth=2, heads=2, patch_size=8, arguments=SMALL)
    with pytest.raises(
        UserError, match=r"model\.lvvit=small: the released weights are not in .*checkpoints and could not"
    ):
        build_base(settings, 5, 3, 32, pretrained=True)
    torch.manual_seed(1)
    released = build_lvvit("small", {**SMALL, "skip_lam": 1.0}, 5, 3, 32).eval()  # as if released unfolded
    path = tmp_path / "hub" / "checkpoints" / RELEASED["small"][224].rpartition("/")[2]
    path.parent.mkdir(parents=True)
    _save(path, released)
    built = build_base(settings, 5, 3, 32, pretrained=True)
    weight = "blocks.0.attn.proj.weight"
    assert torch.equal(built.base.model.state_dict()[weight], released.model.state_dict()[weight] / 2)
    assert not built.new_head and built.normalised_by == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert build_base(settings, 6, 3, 32, pretrained=True).new_head


# --- the approximate network


@pytest.mark.parametrize("how", ["official", "converted", "artifact"])
def test_an_approximate_network_loads_from_any_kind_of_file(how: str, tmp_path: Path) -> None:
    meta = json.loads((GOLDEN / "vit_tiny" / "meta.json").read_text())
    config, path = meta["config"], tmp_path / ("a.pth" if how == "official" else "a.safetensors")
    vectors = load_file(GOLDEN / "vit_tiny" / "vectors.safetensors")
    state = load_file(GOLDEN / "vit_tiny" / "approx.safetensors")
    base = ViT(vit_of_config(config, config["num_labels"], 3, config["image_size"]))
    given = ApproximateNetwork(base, meta["factor"])
    given.load_official_state(state)
    if how == "official":
        torch.save({"model": {}, "approx_bert": state}, path)
    else:
        before = "approx." if how == "converted" else ""
        save_file({f"{before}{name}": value for name, value in given.state_dict().items()}, path)
    network = ApproximateNetwork(base, meta["factor"]).eval()
    load_approx(network, path, "approx.checkpoint")
    with torch.inference_mode():
        found = network(vectors["input.pixel_values"]).probabilities(1)
    torch.testing.assert_close(found, vectors["approx.attention.1"], atol=1e-4, rtol=0)
    assert torch.equal(network.transfer_hidden[2].weight, state["transfer_hidden.2.weight"])
    with pytest.raises(UserError, match=r"approx\.checkpoint=.*these weights belong to another architecture"):
        load_approx(ApproximateNetwork(base, 8), path, "approx.checkpoint")


# --- normalisation


def test_images_are_normalised_as_the_weights_want(tmp_path: Path) -> None:
    for part, place in ((part, place) for part in ("train", "val") for place in range(10)):
        folder = tmp_path / part / f"class_{place % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (20 * place, 128, 255)).save(folder / f"{place}.png")
    common = ["name=test", "dataset=image_folder", f"dataset.path={tmp_path}", "dataset.classes=2"]
    common += ["dataset.validation_share=0.2", "dataset.image_size=32", "model.patch_size=16"]
    vit, deit = (compose_settings([*common, f"model={name}"]) for name in ("vit_base", "deit_tiny"))
    images = {}
    for settings in (vit, deit):
        splits = load_splits(settings.dataset, settings.model)
        mean, std = (torch.tensor(values)[:, None, None] for values in (splits.mean, splits.std))
        images[settings.model.name] = splits.test[3].inputs * std + mean
        assert splits.test[3].inputs.max() == pytest.approx((1 - splits.mean[2]) / splits.std[2])
    assert (splits.mean, splits.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    torch.testing.assert_close(images["vit_base"], images["deit_tiny"])
    assert load_splits(vit.dataset, vit.model).mean == (0.5, 0.5, 0.5)
    vit.model.mean, vit.model.std = [], []
    assert load_splits(vit.dataset, vit.model).mean == IMAGENET_DEFAULT_MEAN, "without its own the data's"


# --- through the command line


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.checkpoint=other.pth"], "model.checkpoint={folder}/other.pth belongs to another architecture: "),
        (["model.checkpoint=classes.pth"], "has a head for 3 classes, but dataset.classes=10: set dataset.classes=3"),
        (["model.checkpoint=classes.pth", "model.sha256=00000000"], "not model.sha256=00000000: fetch it again"),
        (
            ["model.pretrained=true"],
            "model.timm=test_vit: its weights are not on this machine and could not be fetched",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = {"patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    _save(tmp_path / "other.pth", build_timm("test_vit", {**arguments, "depth": 3}, 10, 1, 28))
    _save(tmp_path / "classes.pth", build_timm("test_vit", arguments, 3, 1, 28))
    monkeypatch.setattr(sys, "argv", ["sttabt", "experiment=debug", "logger=none", "stages=[base]", *overrides])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.format(folder=tmp_path) in printed
