"""What every method must do on every backbone (sttabt.testing.contract), and what only some can."""

from __future__ import annotations

from dataclasses import replace
from unittest import SkipTest

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import POOLING, make_backbone, make_inputs
from sttabt.backbones.lvvit import Stemmed
from sttabt.core.plan import keep_all, tokens_to_keep
from sttabt.core.text import Text
from sttabt.engine.dropped import run_dropped
from sttabt.engine.masked import run_masked
from sttabt.methods import find_method
from sttabt.methods.base import MergingMethod, TrainedMethod
from sttabt.models.pruned import PrunedModel
from sttabt.settings import TrainedSettings, method_names, method_settings
from sttabt.testing import contract
from sttabt.testing.models import examples, make_example, make_pruned, one_by_one


def make_model(backbone_name: str, method: str, variant: dict) -> PrunedModel:
    return make_pruned(make_example(backbone_name), method, **variant)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", contract.cases(), ids=str)
def test_every_method_keeps_the_contract(case: contract.Case, check) -> None:
    if refusal := case.refusal():
        assert make_example(case.backbone).model.pools, "every method prunes what reads a class token"
        pytest.skip(refusal)
    check(case)


def test_every_method_and_every_backbone_is_found() -> None:
    assert len(set(method_names())) == len(method_names()) > 6
    assert {"digits", "lvvit", "bert", "distilbert"} < set(examples())
    assert {name for name in examples() if make_example(name).model.pools} == set(POOLING)
    for name in method_names():
        settings = method_settings(name)
        kind = find_method(name)
        assert settings.title and settings.source and settings.implementation == f"{kind.__module__}:{kind.__name__}"
        assert settings.knob_name() is None or settings.rising or issubclass(settings, TrainedSettings)
        built = kind(settings(method=name), 2, 1)
        assert built.title == settings.title
        assert settings(method=name).reads_approximation == (built.attention == "approximate")
        assert issubclass(settings, TrainedSettings) == issubclass(kind, TrainedMethod)


def test_a_method_that_breaks_the_contract_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It states half of what it computes."""
    kind = find_method("random")
    honest = kind.macs
    monkeypatch.setattr(kind, "macs", lambda self, *run: {name: macs / 2 for name, macs in honest(self, *run).items()})
    case = contract.Case("random", "digits")
    with pytest.raises(AssertionError, match="are stated"):
        contract.check_multiply_adds_are_those_that_torch_counts(case)


def test_a_budget_that_is_not_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that stays where it begins, and a method that keeps what it kept when it was made."""
    case, honest = contract.Case("random", "digits"), tokens_to_keep
    with monkeypatch.context() as patched:
        patched.setattr("sttabt.models.budget.find_value", lambda cost, _, at, *__: (at.start, cost(at.start)))
        with pytest.raises(AssertionError, match="keep_ratio gives nearer"):
            contract.check_it_reaches_its_budget(case)
    monkeypatch.setattr("sttabt.methods.random.tokens_to_keep", lambda _, real: honest(0.5, real))
    with pytest.raises(AssertionError, match="keep_ratio moves nothing"):
        contract.check_it_reaches_its_budget(case)


def _skips(check, case: contract.Case) -> bool:
    try:
        check(case)
    except SkipTest as reason:
        assert str(reason)
        return True
    return False


@pytest.mark.parametrize("method", method_names())
def test_a_check_that_says_nothing_of_a_case_is_skipped_and_no_other(method: str) -> None:
    """What merges has no masked form, images have no padding, and only some methods list values of a knob."""
    merges, rising = issubclass(find_method(method), MergingMethod), bool(method_settings(method).rising)
    images, texts = contract.Case(method, "digits"), contract.Case(method, "bert")
    assert _skips(contract.check_masked_equals_dropped, images) == merges
    assert _skips(contract.check_padding_changes_nothing, images)
    assert not _skips(contract.check_padding_changes_nothing, texts)
    assert _skips(contract.check_the_knob_moves_what_is_kept, images) == (not rising)
    assert _skips(contract.check_it_reaches_its_budget, images) == (method_settings(method).dial_name() is None)
    never = set(contract.CHECKS) - {
        contract.check_masked_equals_dropped,
        contract.check_padding_changes_nothing,
        contract.check_the_knob_moves_what_is_kept,
        contract.check_it_reaches_its_budget,
    }
    assert [check for check in contract.CHECKS if check in never and _skips(check, images)] == []


def test_the_checks_that_can_be_skipped_apply_to_most_methods() -> None:
    kinds = [find_method(name) for name in method_names()]
    assert 2 * sum(issubclass(kind, MergingMethod) for kind in kinds) < len(kinds)
    assert sum(bool(method_settings(name).rising) for name in method_names()) >= 5


@torch.inference_mode()
def test_masking_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The masked form of another plan."""
    kind = find_method("backtracking")
    honest = kind.masked
    monkeypatch.setattr(kind, "masked", lambda self, *given: replace(honest(self, *given), logits=torch.zeros(4, 10)))
    with pytest.raises(AssertionError):
        contract.check_masked_equals_dropped(contract.Case("backtracking", "digits"))
    assert any("check_masked_equals_dropped" in line for line in contract.failures("backtracking"))


@torch.inference_mode()
def test_many_texts_together_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where padding would cost more than calls, attention runs a text at a time, in the trace as in the model."""
    monkeypatch.setattr("sttabt.engine.packed.MACS_A_CALL", 0)
    inputs = make_inputs("bert")
    for attention in ("approximate", "actual"):
        model = make_model("bert", "backtracking", {"keep_ratio": 0.6, "attention": attention})
        run = model.run(inputs)
        with FlopCounterMode(display=False) as counter:
            model.run(inputs)
        macs = model.macs(run)
        assert sum(macs.values()) == pytest.approx(counter.get_total_flops() / 2 / 4, rel=1e-6)
        torch.testing.assert_close(run.logits, model.forms()["masked"](inputs).logits, atol=1e-5, rtol=1e-5)
        alone = [model.macs(model.run(text)) for text in one_by_one(inputs)]
        for part in ("stem", "projections", "attention", "feed_forward", "head", "approximate_network"):
            assert macs[part] == pytest.approx(sum(each[part] for each in alone) / 4), part


@torch.inference_mode()
def test_keeping_everything_is_the_dense_model(backbone_name: str) -> None:
    base, inputs = make_backbone(backbone_name), make_inputs(backbone_name)
    everything = keep_all(base.real(inputs), base.layers, base.outputs)
    dense = base(inputs)
    for run in (run_dropped, run_masked):
        torch.testing.assert_close(run(base, inputs, everything), dense, atol=1e-5, rtol=1e-5)
    samples = one_by_one(inputs)
    with FlopCounterMode(display=False) as counter:
        for sample in samples:
            base(sample)
    macs = make_model(backbone_name, "dense", {}).dense_macs(base.real(inputs))
    assert sum(macs.values()) == pytest.approx(counter.get_total_flops() / 2 / len(samples), rel=1e-3)


@pytest.mark.parametrize("method", ["backtracking", "random"])
@torch.inference_mode()
def test_keep_ratio_one_is_the_dense_model(backbone_name: str, method: str) -> None:
    model, inputs = make_model(backbone_name, method, {"keep_ratio": 1.0}), make_inputs(backbone_name)
    torch.testing.assert_close(model.run(inputs).logits, model.base(inputs), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_what_is_dropped_is_not_read(vision_name: str) -> None:
    """With the plan fixed, the pixels of a patch that no layer reads change nothing: it is not embedded.

    Behind a convolutional stem, which sees across patches, that goes for its output.
    """
    model, images = make_model(vision_name, "random", {"keep_ratio": 0.3}), make_inputs(vision_name)
    plan, prepared = model.plan(images), model.base.prepare(images)
    pixels = prepared.features if isinstance(prepared, Stemmed) else prepared
    rows, columns = model.base.grid
    gone = ~plan.alive[:, 0, model.base.outputs :].unflatten(1, (rows, columns))
    gone = gone.repeat_interleave(pixels.shape[-2] // rows, 1).repeat_interleave(pixels.shape[-1] // columns, 2)
    changed = pixels.masked_fill(gone[:, None], 1e6)
    assert not torch.equal(changed, pixels)
    changed = prepared._replace(features=changed) if isinstance(prepared, Stemmed) else changed
    torch.testing.assert_close(run_dropped(model.base, changed, plan), run_dropped(model.base, images, plan))


@pytest.mark.parametrize("method", ["concrete", "forward_topk", "tome"])
@torch.inference_mode()
def test_the_layout_of_images_changes_nothing(vision_name: str, method: str) -> None:
    """Channels side by side, as a stem has them on a GPU."""
    model, images = make_model(vision_name, method, {}), make_inputs(vision_name)
    expected, found = model.run(images), model.run(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(found.plan.alive, expected.plan.alive)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_words_that_are_dropped_are_not_read() -> None:
    model, text = make_model("bert", "random", {"keep_ratio": 0.3}), make_inputs("bert")
    plan = model.plan(text)
    nowhere = text.ids.masked_fill(~plan.alive[:, 0], 10**6)  # outside the vocabulary: looking it up would fail
    changed = Text(nowhere, text.types, text.real)
    torch.testing.assert_close(run_dropped(model.base, changed, plan), run_dropped(model.base, text, plan))
