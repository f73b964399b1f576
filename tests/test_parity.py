"""Agreement with the official implementation, through the command that a user runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sttabt.parity import main

GOLDEN = Path(__file__).parent / "golden"


def test_every_quantity_of_every_case_agrees(capsys: pytest.CaptureFixture) -> None:
    assert main([str(GOLDEN)]) == 0
    printed = capsys.readouterr().out
    assert "357 ok, 0 failed or missing, 17 not compared" in printed
    assert "FAIL" not in printed and "missing" not in printed.splitlines()[-2]
    assert "concrete.soft.grad.approx.layer0.query.weight          -          -  not compared: the official" in printed
    for quantity in (
        "logits.cls_plus_half_max_aux",
        "dense.logits",
        "topk.absatt.0.masks",
        "concrete.soft.grad.p_logit",
        "concrete.hard.loss",
    ):
        assert f" {quantity} " in printed


@pytest.mark.parametrize("name", ["vit_tiny", "bert_tiny"])
@pytest.mark.parametrize("quantity", ["approx.loss.kldiv.total", "topk.approx.0.masks", "concrete.soft.grad.p_logit"])
def test_a_wrong_or_a_missing_quantity_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, quantity: str
) -> None:
    for how in ("wrong", "missing"):
        case = tmp_path / how
        shutil.copytree(GOLDEN / name, case)
        vectors = load_file(case / "vectors.safetensors")
        if how == "wrong":
            vectors[quantity] = (
                vectors[quantity] + torch.full_like(vectors[quantity], 0.01) * vectors[quantity].abs().max()
            )
        else:
            del vectors[quantity]
        save_file(vectors, case / "vectors.safetensors")
        code = main([str(case)])
        printed = capsys.readouterr().out
        if how == "missing" and ".grad." in quantity:
            assert quantity not in printed  # which gradients a case has is its own choice
        else:
            assert code == 1
            assert "1 failed or missing" in printed


def test_a_wrong_or_a_missing_quantity_of_lvvit_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for how in ("wrong", "missing", "unknown"):
        case = tmp_path / how
        shutil.copytree(GOLDEN / "lvvit_tiny", case)
        vectors = load_file(case / "vectors.safetensors")
        value = vectors.pop("logits.cls_only")
        if how != "missing":
            vectors["logits.cls_only" if how == "wrong" else "logits.other"] = value + 0.01
        save_file(vectors, case / "vectors.safetensors")
        assert main([str(case)]) == 1
        assert f"{2 if how == 'unknown' else 1} failed or missing" in capsys.readouterr().out


def test_other_architectures_are_left_out_aloud(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"arch": "gpt"}))
    assert main([str(tmp_path)]) == 0
    assert "not supported yet: architecture gpt" in capsys.readouterr().out


def test_an_empty_folder_is_a_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no case" in capsys.readouterr().err
