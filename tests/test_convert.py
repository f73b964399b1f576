"""Official checkpoints convert in and out with one command, and lose nothing on the way but what nobody reads."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import make_approx, make_backbone
from sttabt.convert import main
from sttabt.pretrained.weights import load_approx, load_weights, without_unused

GOLDEN = Path(__file__).parent / "golden"
STALE = "bert.embeddings.position_ids"


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("case", ["vit_tiny", "vit_deep_p05", "bert_tiny"])
def test_an_official_checkpoint_goes_in_and_out_unchanged(case: str, tmp_path: Path) -> None:
    files = {"model": "base", "approx_bert": "approx"}
    parts = {entry: load_file(GOLDEN / case / f"{file}.safetensors") for entry, file in files.items()}
    torch.save({**parts, "optimizer": {"lr": 1}, "epoch": 3}, tmp_path / "official.pth")
    there, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    assert main([f"in={tmp_path / 'official.pth'}", f"out={there}"]) == 0
    assert {name.split(".")[0] for name in load_file(there)} == {"base", "approx"}
    assert main([f"in={there}", f"out={back}"]) == 0
    found = torch.load(back, weights_only=True)
    assert found.keys() == parts.keys()
    for entry, state in parts.items():
        used = {name: value for name, value in without_unused(state).items() if name != STALE}
        assert _same(found[entry], used)


@pytest.mark.parametrize("name", ["test_vit", "distilled", "lvvit", "bert"])
def test_what_was_trained_here_goes_out_and_in(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = make_backbone(name)
    network = make_approx(base, name)
    state = {f"base.{key}": value.clone() for key, value in base.state_dict().items()}
    state |= {f"approx.{key}": value for key, value in network.state_dict().items()}
    state["method.p_logit"] = torch.zeros(base.layers)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    out, back = tmp_path / "out.pth", tmp_path / "back.safetensors"
    assert main([f"in={tmp_path / 'model.safetensors'}", f"out={out}"]) == 0
    assert "left out, as official files have no place for it: method.p_logit" in capsys.readouterr().out
    del state["method.p_logit"]
    assert main([f"in={out}", f"out={back}"]) == 0
    assert _same(load_file(back), state)
    for path in (out, back):  # both are read as they are
        other, narrow = make_backbone(name), make_approx(base, name)
        with torch.no_grad():
            for parameter in [*other.parameters(), *narrow.parameters()]:
                parameter.zero_()
        load_weights(other, path, "model.checkpoint")
        load_approx(narrow, path, "approx.checkpoint")
        assert _same(other.state_dict(), base.state_dict()) and _same(narrow.state_dict(), network.state_dict())


@pytest.mark.parametrize("stage", ["base", "approx"])
def test_the_artifact_of_a_single_stage_goes_out(stage: str, tmp_path: Path) -> None:
    base = make_backbone("test_vit")
    module = base if stage == "base" else make_approx(base, "test_vit")
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, tmp_path / "model.safetensors")
    assert main([f"in={tmp_path / 'model.safetensors'}", f"out={tmp_path / 'out.safetensors'}"]) == 0
    names = set(load_file(tmp_path / "out.safetensors"))
    assert ("vit.embeddings.cls_token" if stage == "base" else "bert.embeddings.cls_token") in names
    assert "classifier.weight" in names and ("transfer_embedding.bias" in names) == (stage == "approx")


def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    official = f"in={GOLDEN / 'vit_tiny' / 'base.safetensors'}"
    broken = load_file(GOLDEN / "vit_tiny" / "base.safetensors")
    save_file({key: value for key, value in broken.items() if ".layer.1." not in key}, tmp_path / "gap.safetensors")
    save_file({"encoder.layer.0.conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_file({"base.model.cls_token": torch.zeros(1), "critic.bias": torch.zeros(1)}, tmp_path / "odd.safetensors")
    base = make_backbone("test_vit")
    both = {f"base.{key}": value for key, value in base.state_dict().items()}
    both |= {f"approx.{key}": value for key, value in make_approx(base, "test_vit").state_dict().items()}
    save_file(both, tmp_path / "both.safetensors")
    out = f"out={tmp_path / 'out.safetensors'}"
    for arguments, message in {
        (): "in is missing: give in=FILE",
        (official,): "out is missing: give out=FILE",
        (official, "ot=a"): "ot=a is not a setting of this command: did you mean 'out'?",
        (official, "out="): "cannot read 'out=': give out=FILE once",
        (official, f"out={tmp_path / 'gap.safetensors'}"): "is there already",
        ("in=nowhere", out): "in=nowhere is not a file",
        (official, f"out={tmp_path / 'out.pth'}"): "give it the ending .safetensors",
        (f"in={tmp_path / 'gap.safetensors'}", out): "has no layer 1, of 4: the file is not whole",
        (f"in={tmp_path / 'other.safetensors'}", out): "blocks.0.conv.weight is a name of neither (1 such)",
        (f"in={tmp_path / 'odd.safetensors'}", out): "holds critic.bias, which no model of this project has (1 such)",
        (f"in={tmp_path / 'both.safetensors'}", out): "is to hold two networks: give it the ending .pth",
        (f"in={GOLDEN / 'lvvit_tiny' / 'lvvit.safetensors'}", out): "model.checkpoint reads the file as it is",
    }.items():
        assert main(list(arguments)) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_help_answers_at_once() -> None:
    code = "import sys, sttabt.convert as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert time.monotonic() - started < 10
