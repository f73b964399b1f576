"""How often a forward waits for a device: as often as what an image holds decides something, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sttabt
from conftest import make_backbone, make_inputs
from pretended import from_device, pretended_device, to_device
from sttabt.core.text import MeasuredText, Text
from sttabt.errors import UserError
from sttabt.models.fixed import FixedModel
from sttabt.models.pruned import PrunedModel
from sttabt.settings import method_names, method_settings
from sttabt.testing.contract import Case
from sttabt.testing.models import make_example, make_pruned

IMAGES, TEXT = ("digits", "lvvit_auxiliary"), "bert"
CASES = [
    Case(method, backbone, settings)
    for method in method_names()
    for settings in method_settings(method).examples
    for backbone in (*IMAGES, TEXT)
    if not Case(method, backbone, settings).refusal()
]


def allowed(case: Case, model: PrunedModel) -> int:
    """Copies to the host of one forward."""
    method, layers = model.method, model.base.layers
    if case.method == "ltp":  # what a layer keeps decides the shapes of the next
        found = layers - 1
    elif case.method == "ats":
        found = len(model.method.deciding)
    elif case.method in ("diffrate", "power_bert"):  # the numbers that were learned
        found = 1
    elif case.method == "cascade":  # which samples go on, and their plan, where there is one
        found = 1 + method.tracks
    else:  # the plan; of random, which draws on the CPU, a number of each sample
        found = 0 if method.is_static else 1
    if model.base.may_pad:  # how long the texts are, and whether their ids are in the tables
        found += 1
    if model.base.may_pad and case.method == "dense":  # the library asks for its own mask
        found += 1
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@torch.inference_mode()
def test_a_forward_waits_for_what_decides(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = case.make()
    expected = model.run(example.inputs)
    most, model, inputs = allowed(case, model), model.to(dtype), example.inputs
    inputs = inputs if isinstance(inputs, Text) else inputs.to(dtype)
    with pretended_device(monkeypatch) as device:
        found = to_device(model).run(to_device(inputs))
        waits, alive = [*device.waits], from_device(found.plan.alive)
    assert len(waits) <= most, "\n".join(waits)
    if dtype == torch.float32:
        assert torch.equal(alive, expected.plan.alive)
        torch.testing.assert_close(from_device(found.logits), expected.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["backtracking", "random"])
@torch.inference_mode()
def test_what_an_image_holds_is_asked_with_the_plan(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names the image, before the base model runs."""
    model, example = Case(method, "digits").make()
    example.inputs[2, 0, 3, 3] = torch.nan
    with pretended_device(monkeypatch), pytest.raises(UserError, match="image 2 of the batch holds NaN or infinity"):
        to_device(model).run(to_device(example.inputs))


WRONG_TEXTS: dict[str, tuple[str, Callable[[Text], object]]] = {
    "input_ids holds 60, but the model knows 0 to 59": ("bert", lambda text: text.ids[1].fill_(60)),
    "token_type_ids holds -1": ("bert", lambda text: text.types[2, :1].fill_(-1)),
    "text 3 of the batch has no real token": ("bert", lambda text: text.real[3].fill_(False)),
    "padding in front of a text": ("bert", lambda text: text.real[2, :1].fill_(False)),
    "input_ids holds 0, the id of padding": ("roberta", lambda text: text.ids[2, 1:2].fill_(0)),
}


@pytest.mark.parametrize("message", WRONG_TEXTS)
@torch.inference_mode()
def test_what_a_text_holds_is_asked_with_its_length(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, in one line, before a table is read behind its end."""
    backbone, spoil = WRONG_TEXTS[message]
    model, example = Case("forward_topk", backbone).make()
    spoil(example.inputs)
    with pytest.raises(UserError, match=message):
        model.run(example.inputs)
    with pretended_device(monkeypatch) as device, pytest.raises(UserError, match=message):
        to_device(model).run(to_device(example.inputs))
    assert "prepare" in device.waits[0]


@torch.inference_mode()
def test_what_a_text_holds_is_asked_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's dense forward, which time is measured against, reads its tables without a look."""
    model, example = Case("forward_topk", "bert").make()
    example.inputs.ids[1].fill_(60)
    with pretended_device(monkeypatch), pytest.raises(UserError, match="input_ids holds 60"):
        sttabt.calibrate(to_device(model), sttabt.Budget(time=0.5), [to_device(example.inputs)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@torch.inference_mode()
def test_fixed_counts_never_wait_and_mark_what_they_could_not_read(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = make_example("digits")
    counts = [20, *[5] * (example.model.layers - 1)]
    model = FixedModel(make_pruned(example, "backtracking", counts=counts))
    expected = model(example.inputs)
    example.inputs[2, 0, 3, 3] = value
    with pretended_device(monkeypatch) as device:
        found = from_device(to_device(model)(to_device(example.inputs)))
        assert not device.waits
    assert found[2].isnan().all()
    torch.testing.assert_close(found[[0, 1, 3]], expected[[0, 1, 3]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [
    "dense", "tome", "pitome", "evit", "diffrate", "class_attention", "dynamicvit", "forward_topk", "power_bert",
])  # fmt: skip
@torch.inference_mode()
def test_an_image_that_nobody_asked_for_has_no_logits(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And changes nothing of the others in its batch."""
    for value in (torch.nan, torch.inf):
        model, example = Case(method, "digits").make()
        expected = model.run(example.inputs).logits
        example.inputs[2, 0, 3, 3] = value
        with pretended_device(monkeypatch):
            found = from_device(to_device(model).run(to_device(example.inputs)).logits)
        assert found[2].isnan().all()
        torch.testing.assert_close(found[[0, 1, 3]], expected[[0, 1, 3]], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_guard_sees_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor([1.0, 0.0, 3.0])
    waiting: list[Callable[[Any], object]] = [
        lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x.tolist(), lambda x: x.cpu(),
        lambda x: x.nonzero(), lambda x: x[x > 1], lambda x: torch.tensor([1], device=x.device),
        lambda x: x.index_put((x > 1,), x[0]), lambda x: torch.ones(2).to(x.device),
    ]  # fmt: skip
    free: list[Callable[[Any], object]] = [
        lambda x: x[1:] + 1, lambda x: x.argsort()[:2], lambda x: torch.arange(3, device=x.device),
        lambda x: x.where(x > 1, 0), lambda x: torch.ones(2).to(x.device, non_blocking=True), lambda x: x.half(),
    ]  # fmt: skip
    with pretended_device(monkeypatch) as device:
        for number, run in enumerate([*free, *waiting], start=1):
            run(to_device(x))
            assert len(device.waits) == max(number - len(free), 0), f"operation {number}"


def test_lengths_are_not_taken_from_a_text_that_was_made_again() -> None:
    base, text = make_backbone("bert"), make_inputs("bert")
    measured = MeasuredText.of(text, [1] * len(text.ids))
    assert base.lengths(measured) == (1,) * len(text.ids)
    assert base.lengths(measured._replace(real=text.real)) == text.real.sum(-1).tolist()
