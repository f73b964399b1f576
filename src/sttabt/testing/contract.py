"""What every method must do on every backbone. Methods and backbones are found, not listed.

For pytest, in a package that adds a method:

    @pytest.mark.parametrize("check", contract.CHECKS)
    @pytest.mark.parametrize("case", contract.cases("mine"), ids=str)
    def test_mine(case, check):
        check(case)

A check raises AssertionError, or UserError for a method that refuses the backbone (`Case.refusal`). Where it says
nothing of a case it raises unittest's SkipTest with the reason, which pytest counts as skipped.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sttabt.backbones.base import Example
from sttabt.core.plan import output_tokens
from sttabt.errors import UserError
from sttabt.models.frozen import freeze
from sttabt.models.pruned import PrunedModel
from sttabt.settings import method_names, method_settings
from sttabt.testing.models import examples, make_example, make_pruned, one_by_one, pad_text, pick

assert_near = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)


@dataclass(frozen=True)
class Case:
    """A method with settings (beside its defaults), on the example backbone of that name."""

    method: str
    backbone: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{name}={value}" for name, value in self.settings.items()), self.backbone])

    def make(self) -> tuple[PrunedModel, Example]:
        """The model, and the example it is made of. Raises UserError where the method refuses the backbone."""
        example = make_example(self.backbone)
        return make_pruned(example, self.method, **self.settings), example

    def refusal(self) -> str:
        """Why the method refuses this backbone; '' where it does not."""
        try:
            self.make()
        except UserError as error:
            return str(error)
        return ""


def cases(method: str = "", backbone: str = "") -> list[Case]:
    """A case for each of a method's examples of settings on each example backbone; '' stands for all there are."""
    methods = [method] if method else method_names()
    backbones = [backbone] if backbone else sorted(examples())
    return [Case(each, name, own) for each in methods for own in method_settings(each).examples for name in backbones]


@torch.inference_mode()
def check_masked_equals_dropped(case: Case) -> None:
    """Masking what the method drops gives the logits and the plan of dropping it."""
    model, example = case.make()
    if (masked := model.forms().get("masked")) is None:
        raise SkipTest(f"{model.method.title} has no masked form to compare with")
    dropped, other = model.run(example.inputs), masked(example.inputs)
    assert torch.equal(dropped.plan.alive, other.plan.alive)  # type: ignore[attr-defined]
    assert_near(dropped.logits, other.logits)


@torch.inference_mode()
def check_what_is_kept(case: Case) -> None:
    """Sets are nested, hold what the head reads, and no padding."""
    model, example = case.make()
    run, base = model.run(example.inputs), model.base
    alive, outputs = run.plan.alive, output_tokens(run.real, base.outputs)
    assert alive.shape == (4, base.layers + 1, run.real.shape[1]) and run.plan.layers == base.layers
    assert (alive[:, 1:] <= alive[:, :-1]).all(), "what is gone stays gone"
    assert not (alive & ~run.real[:, None]).any(), "padding is never alive"
    assert (alive >= outputs[:, None]).all(), "the head reads the output tokens"
    everything = alive[:, -2]
    written = [everything] if base.reads_survivors else [outputs, everything]  # the library's own forward writes all
    assert any(torch.equal(alive[:, -1], each) for each in written)


@torch.inference_mode()
def check_a_sample_does_not_depend_on_its_batch(case: Case) -> None:
    """Order and size of a batch change neither what is kept nor the logits."""
    model, example = case.make()
    inputs = example.inputs
    together, order = model.run(inputs), torch.tensor([2, 0, 3, 1])
    shuffled = model.run(pick(inputs, order))
    assert torch.equal(shuffled.plan.alive, together.plan.alive[order])
    assert_near(shuffled.logits, together.logits[order])
    for index, sample in enumerate(one_by_one(inputs)):
        alone = model.run(sample)
        assert torch.equal(alone.plan.alive[0], together.plan.alive[index, :, : alone.real.shape[1]])
        assert_near(alone.logits[0], together.logits[index])


@torch.inference_mode()
def check_padding_changes_nothing(case: Case) -> None:
    """More padding behind the longest text changes neither what is kept nor the logits."""
    model, example = case.make()
    if not model.base.may_pad:
        raise SkipTest("images have no padding")
    inputs = example.inputs
    masked = model.forms().get("masked")
    for run in (model.run, masked) if masked else (model.run,):
        tight, wide = run(inputs), run(pad_text(inputs, 5))
        kept: Tensor = wide.plan.alive  # type: ignore[attr-defined]
        assert torch.equal(kept[..., :-5], tight.plan.alive) and not kept[..., -5:].any()  # type: ignore[attr-defined]
        assert_near(wide.logits, tight.logits)


@torch.inference_mode()
def check_multiply_adds_are_those_that_torch_counts(case: Case) -> None:
    """Of a sample at a time, as some methods pad a batch of unequal counts."""
    model, example = case.make()
    for sample in one_by_one(example.inputs):
        run = model.run(sample)
        with FlopCounterMode(display=False) as counter:
            model.run(sample)
        counted, macs = counter.get_total_flops() / 2, sum(model.macs(run).values())
        assert abs(macs - counted) <= 1e-3 * counted, f"{macs:g} are stated, {counted:g} executed"


@torch.inference_mode()
def check_a_frozen_model_computes_the_same(case: Case) -> None:
    """Kernels keep the same tokens and give the same logits, to rounding; what they do not know is left to torch."""
    model, example = case.make()
    frozen = freeze(model, strict=False)
    expected, found = model.run(example.inputs), frozen.run(example.inputs)
    assert torch.equal(found.plan.alive, expected.plan.alive)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def check_a_pruned_model_is_a_model(case: Case) -> None:
    """It is called as the original; a copy, a pickle and a loaded state compute the same; a batch may be empty."""
    model, example = case.make()
    expected = model.run(example.inputs).logits
    if not model.base.may_pad:
        answer = model(example.inputs)
        assert torch.equal(getattr(answer, "logits", answer), expected)
    copied, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    restored, _ = case.make()
    for parameter in restored.parameters():
        parameter.zero_()
    restored.load_state_dict(model.state_dict(), strict=True)
    for other in (copied, loaded, restored):
        assert torch.equal(other.run(example.inputs).logits, expected)
    empty = model.run(pick(example.inputs, slice(0)))
    assert empty.logits.shape == (0, expected.shape[1])


def check_gradients_reach_the_base(case: Case) -> None:
    """Logits carry a gradient to the weights of the first layer."""
    model, example = case.make()
    model.run(example.inputs).logits.square().sum().backward()
    reached = [name for name, value in model.base.named_parameters() if value.grad is not None and value.grad.any()]
    assert any(".0." in name for name in reached), "nothing reached the first layer"


@torch.inference_mode()
def check_the_knob_moves_what_is_kept(case: Case) -> None:
    """The values that the settings list from few tokens to many keep more and more."""
    kind = method_settings(case.method)
    if not kind.rising:
        raise SkipTest(f"{kind.title} lists no values of its knob that keep more and more")
    if case.settings:
        raise SkipTest("the knob is moved from the method's defaults alone")
    kept = []
    for value in kind.rising:
        example = make_example(case.backbone)
        model = make_pruned(example, case.method, **{kind.knob_name() or "": value})
        kept.append(float(model.run(example.inputs).plan.occupancy().mean()))
    assert sorted(kept) == kept and len(set(kept)) == len(kept), f"{kind.rising} keep {kept}"


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_masked_equals_dropped,
    check_what_is_kept,
    check_a_sample_does_not_depend_on_its_batch,
    check_padding_changes_nothing,
    check_multiply_adds_are_those_that_torch_counts,
    check_a_frozen_model_computes_the_same,
    check_a_pruned_model_is_a_model,
    check_gradients_reach_the_base,
    check_the_knob_moves_what_is_kept,
)


def failures(method: str) -> Iterator[str]:
    """A line for each check of a method that fails, without pytest; none where the method keeps the contract."""
    for case in cases(method):
        if case.refusal():
            continue
        for check in CHECKS:
            try:
                check(case)
            except SkipTest:
                continue  # it does not apply
            except AssertionError as error:
                yield f"{case}: {check.__name__}: {str(error).strip().partition(chr(10))[0]}"
