"""Agreement with the official implementation, through the command that a user runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sttabt.core.forward import forward_select
from sttabt.engine.online import LayerAttention, run_online_dropped, run_online_masked
from sttabt.parity.__main__ import main
from sttabt.parity.bert import bert_case
from sttabt.parity.case import compare
from sttabt.parity.flops import MODES, Sizes, dense_here
from sttabt.parity.vit import vit_case
from sttabt.report.literature import imagenet_macs

GOLDEN = Path(__file__).parent / "golden"
NAN = float("nan")


def test_every_quantity_of_every_case_agrees(capsys: pytest.CaptureFixture) -> None:
    assert main([str(GOLDEN)]) == 0
    printed = capsys.readouterr().out
    assert "493 ok, 0 failed or missing, 1 not compared" in printed
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


@pytest.mark.parametrize("device", ["tpu", "vulkan"])
def test_a_device_that_is_not_there_is_a_users_mistake(device: str, capsys: pytest.CaptureFixture) -> None:
    assert main([str(GOLDEN), device]) == 2
    error = capsys.readouterr().err
    assert f"the device {device} is not on this machine: leave it out for the CPU" in error and error.count("\n") == 1


QUANTITIES = [
    *("approx.loss.kldiv.total", "topk.approx.0.masks", "concrete.soft.grad.p_logit"),
    *("forward.1.output_masks", "forward.0.logits"),
]
OF_TEXT = [*QUANTITIES, "ltp.soft.masks", "ltp.hard.masks", "ltp.hard.logits", "ltp.hard.loss"]


@pytest.mark.parametrize(
    ("name", "quantity"),
    [*(("vit_tiny", quantity) for quantity in QUANTITIES), *(("bert_tiny", quantity) for quantity in OF_TEXT)],
)
def test_a_wrong_or_a_missing_quantity_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, quantity: str
) -> None:
    for how in ("wrong", "missing"):
        case = tmp_path / how
        shutil.copytree(GOLDEN / name, case)
        vectors = load_file(case / "vectors.safetensors")
        assert quantity in vectors
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


def _ltp_case(folder: Path, **changes: Tensor) -> Path:
    """The BERT case with other vectors; official masks are this project's, at another threshold."""
    shutil.copytree(GOLDEN / "bert_tiny", folder)
    vectors = load_file(folder / "vectors.safetensors")
    save_file(vectors | changes, folder / "vectors.safetensors")
    return folder


def test_a_sample_without_any_token_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    vectors = load_file(GOLDEN / "bert_tiny" / "vectors.safetensors")
    assert vectors["ltp.hard.masks"].any(-1).all(), "as recorded, every sample keeps a token"
    masks, threshold = vectors["ltp.hard.masks"].clone(), vectors["ltp.threshold"].clone()
    last = masks.shape[1] - 1
    threshold[last], masks[:, last] = 2.0, 0.0  # no score is above 1
    assert main([str(_ltp_case(tmp_path / "a", **{"ltp.threshold": threshold, "ltp.hard.masks": masks}))]) == 1
    printed = capsys.readouterr().out
    found = {line.split()[1]: line.split(maxsplit=4)[-1] for line in printed.splitlines() if " ltp." in line}
    reason = "not compared: the official rule leaves a sample without any token"
    assert found["ltp.hard.logits"] == found["ltp.hard.loss"] == reason
    assert found["ltp.hard.masks"] == "ok", "which tokens are dropped is compared nevertheless"
    assert found["ltp.soft.masks"] == "FAIL", "the soft ones are of the recorded threshold"
    masks[0, last, 0] = 1.0
    assert main([str(_ltp_case(tmp_path / "b", **{"ltp.threshold": threshold, "ltp.hard.masks": masks}))]) == 1
    assert "ltp.hard.masks                                 1.00e+00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ours", "theirs", "result"),
    [
        ([1.0, 2.0], [1.0, 2.0], "ok"),
        ([1.0, 2.0], [1.0, 2.1], "FAIL"),
        ([1.0, 2.0], [1.0, NAN], "NaN"),
        ([1.0, NAN], [1.0, NAN], "NaN"),
        ([1.0, NAN], [1.0, 2.0], "FAIL"),
        ([NAN, 2.0], [1.0, NAN], "FAIL"),
        ([1.0], [1.0, 2.0], "FAIL"),
    ],
)
def test_nan_is_compared_with_a_number_and_a_number_never_with_nan(ours, theirs, result: str) -> None:
    check = compare("case", "quantity", torch.tensor(ours), torch.tensor(theirs))
    assert str(check).endswith(result) and check.failed == (result == "FAIL")


# --- FLOPs in the convention of the paper

FLOPS: list[dict[str, Any]] = json.loads((GOLDEN / "flops" / "flops.json").read_text())


def _flops(folder: Path, cases: object) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "flops.json").write_text(json.dumps(cases))
    return main([str(folder)])


def test_the_official_count_is_restated_and_the_own_one_is_within_two_percent(capsys: pytest.CaptureFixture) -> None:
    assert main([str(GOLDEN / "flops")]) == 0
    assert {case["mode"] for case in FLOPS} == set(MODES) and len(FLOPS) == 40
    errors = {
        line.split(maxsplit=1)[1][:44].strip(): float(line[62:72])
        for line in capsys.readouterr().out.splitlines()[1:-1]
    }
    assert len(errors) == 3 * len(FLOPS)
    assert max(error for name, error in errors.items() if name.endswith(".dense")) < 1e-9
    assert max(error for name, error in errors.items() if name.endswith(".total")) < 3e-3
    assert 1e-3 < max(error for name, error in errors.items() if name.endswith(".dense here")) < 1.6e-2


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_count_fails(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    case = next(case for case in FLOPS if case["mode"] == mode)
    for number, (key, factor) in enumerate((("total", 1.01), ("total", 0.99), ("dense", 1.01))):
        assert _flops(tmp_path / str(number), [case | {key: factor * case[key]}]) == 1
        assert f".{key} " in next(line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL"))
    halved = [share / 2 for share in case["token_occupies"]]
    assert _flops(tmp_path / "halved", [case | {"token_occupies": halved}]) == 1


def test_published_points_are_in_the_unit_of_the_figures() -> None:
    """The literature's GFLOPs of DeiT and LV-ViT, among which rows are drawn, are multiply-adds as counted here."""
    points = {name: curve[0][0] for name, curve in imagenet_macs().items()}
    assert dense_here(Sizes("vit", 12, 384, 1536, 6, 197)) / 1e9 == pytest.approx(points["DeiT-S"], rel=0.01)
    assert dense_here(Sizes("vit", 12, 192, 768, 3, 197)) / 1e9 == pytest.approx(points["DeiT-T"], rel=0.02)
    bert = dense_here(Sizes("bert", 12, 768, 3072, 12, 128))
    assert bert == pytest.approx(22.4e9, rel=0.01), "of texts they are twice as many"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "holds no cases"),
        ("[1]", "holds no cases"),
        ("[{}]", "case 0 lacks arch, dense"),
        (json.dumps([FLOPS[0] | {"token_occupies": [1.0]}]), "case 0 has 1 token_occupies"),
    ],
)
def test_a_file_without_cases_is_a_users_mistake(content, message, tmp_path, capsys) -> None:
    (tmp_path / "flops.json").write_text(content)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and str(tmp_path / "flops.json") in error and error.count("\n") == 1


@pytest.mark.parametrize("content", ["{", "[]", "[" * 9999])
def test_a_case_that_is_not_described_is_a_users_mistake(content, tmp_path, capsys) -> None:
    (tmp_path / "meta.json").write_text(content)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'meta.json'} describes no case" in error and error.count("\n") == 1


def test_an_unknown_mode_is_left_out_aloud(tmp_path, capsys) -> None:
    assert _flops(tmp_path, [FLOPS[0] | {"mode": "merging"}]) == 0
    assert "not supported yet: merging of bert" in capsys.readouterr().out


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
