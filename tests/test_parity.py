"""Agreement with the official implementation, through the command that a user runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sttabt.core.forward import forward_select
from sttabt.engine.online import LayerAttention, run_online_dropped, run_online_masked
from sttabt.parity.__main__ import main
from sttabt.parity.bert import bert_case
from sttabt.parity.vit import vit_case

GOLDEN = Path(__file__).parent / "golden"


def test_every_quantity_of_every_case_agrees(capsys: pytest.CaptureFixture) -> None:
    assert main([str(GOLDEN)]) == 0
    printed = capsys.readouterr().out
    assert "373 ok, 0 failed or missing, 1 not compared" in printed
    assert "FAIL" not in printed and "missing" not in printed.splitlines()[-2]
    assert "concrete.soft.grad.approx.layer0.query.weight          -          -  not compared: the official" in printed
    for quantity in (
        "logits.cls_plus_half_max_aux",
        "dense.logits",
        "topk.absatt.0.masks",
        "concrete.soft.grad.p_logit",
        "concrete.hard.loss",
        "ltp.hard.loss",
    ):
        assert f" {quantity} " in printed


@pytest.mark.parametrize("name", ["vit_tiny", "bert_tiny"])
@pytest.mark.parametrize(
    "quantity",
    [
        *("approx.loss.kldiv.total", "topk.approx.0.masks", "concrete.soft.grad.p_logit"),
        *("forward.1.output_masks", "forward.0.logits", "ltp.soft.masks", "ltp.hard.logits"),
    ],
)
def test_a_wrong_or_a_missing_quantity_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, quantity: str
) -> None:
    for how in ("wrong", "missing"):
        case = tmp_path / how
        shutil.copytree(GOLDEN / name, case)
        vectors = load_file(case / "vectors.safetensors")
        if quantity not in vectors:
            assert (name, quantity[:4]) == ("vit_tiny", "ltp."), "LTP is of the BERT case"
            continue
        if how == "wrong":
            vectors[quantity] = (
                vectors[quantity] + torch.full_like(vectors[quantity], 0.01) * vectors[quantity].abs().max()
            )
        else:
            del vectors[quantity]
        save_file(vectors, case / "vectors.safetensors")
        code = main([str(case)])
        printed = capsys.readouterr().out
        if how == "missing" and quantity.endswith("output_masks"):
            assert code == 1 and quantity.replace("output_masks", "logits") in printed  # nothing to compare it with
        elif how == "missing" and ".grad." in quantity:
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


@pytest.mark.parametrize(("name", "case_of"), [("bert_tiny", bert_case), ("vit_deep_p05", vit_case)])
@pytest.mark.parametrize("run", [run_online_masked, run_online_dropped])
@torch.inference_mode()
def test_forward_top_k_is_the_official_one_where_that_nests_and_keeps_the_class_token(name, case_of, run) -> None:
    folder = GOLDEN / name
    vectors = {key: value[:2] for key, value in load_file(folder / "vectors.safetensors").items()}  # such samples
    meta = json.loads((folder / "meta.json").read_text())
    keeps, official = meta["topk"]["ks"][0], vectors["forward.0.output_masks"].bool()
    assert official[..., 0].all() and (official[:, 1:] <= official[:, :-1]).all()
    case = case_of(folder, meta)
    base, inputs = case.loaded_base(), case.inputs(vectors)
    real = base.real(inputs)

    def select(layer: int, attention: LayerAttention, alive: Tensor) -> Tensor:
        count = (keeps[layer] * real.sum(-1).double()).floor().long()
        return forward_select(attention.received(alive), alive, count, base.outputs)

    found = run(base, inputs, select)
    assert torch.equal(found.plan.alive[:, 1:], official)
    torch.testing.assert_close(found.logits, vectors["forward.0.logits"], atol=1e-4, rtol=0)
