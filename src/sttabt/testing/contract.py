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
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import SkipTest

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula, sdpa_flop_count

from sttabt.backbones.base import Example
from sttabt.core.plan import output_tokens
from sttabt.engine.run import Run
from sttabt.errors import UserError
from sttabt.models.budget import calibrate, dial_range
from sttabt.models.cascade import pick
from sttabt.models.frozen import freeze
from sttabt.models.pruned import PrunedModel
from sttabt.settings import BudgetSettings, method_names, method_settings
from sttabt.testing.models import examples, make_example, make_pruned, one_by_one, pad_text

BUDGETS = (0.9, 0.7, 0.5, 0.35)  # shares of the dense multiply-adds
NEAR, NEAR_ELSEWHERE = 1e-5, 1e-4  # on a CPU, and of other devices, whose kernels sum in orders of their own


@dataclass(frozen=True)
class Case:
    """A method with settings (beside its defaults), on the example backbone of that name.

    device: where it runs; on another than the CPU in single precision (not TF32), whose sums agree less closely.
    """

    method: str
    backbone: str
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{name}={value}" for name, value in self.settings.items()), self.backbone])

    def make(self) -> tuple[PrunedModel, Example]:
        """The model, and the example it is made of. Raises UserError where the method refuses the backbone."""
        example = make_example(self.backbone)
        model = make_pruned(example, self.method, **self.settings).to(self.device)
        return model, example._replace(inputs=move_data_to_device(example.inputs, torch.device(self.device)))

    def assert_near(self, found: Tensor, expected: Tensor) -> None:
        """The same but for rounding."""
        tolerance = NEAR if self.device == "cpu" else NEAR_ELSEWHERE
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)

    def refusal(self) -> str:
        """Why the method refuses this backbone; '' where it does not."""
        try:
            self.make()
        except UserError as error:
            return str(error)
        return ""


def cases(method: str = "", backbone: str = "", device: str = "cpu") -> list[Case]:
    """A case for each of a method's examples of settings on each example backbone; '' stands for all there are."""
    methods = [method] if method else method_names()
    backbones = [backbone] if backbone else sorted(examples())
    return [
        Case(each, name, own, device)
        for each in methods
        for own in method_settings(each).examples
        for name in backbones
    ]


@torch.inference_mode()
def check_masked_equals_dropped(case: Case) -> None:
    """Masking what the method drops gives the logits and the plan of dropping it."""
    model, example = case.make()
    if (masked := model.forms().get("masked")) is None:
        raise SkipTest(f"{model.method.title} has no masked form to compare with")
    dropped, other = model.run(example.inputs), masked(example.inputs)
    assert torch.equal(dropped.plan.alive, other.plan.alive)  # type: ignore[attr-defined]
    case.assert_near(dropped.logits, other.logits)


@torch.inference_mode()
def check_what_is_kept(case: Case) -> None:
    """Sets are nested, hold what the head reads, and no padding."""
    model, example = case.make()
    run, base = model.run(example.inputs), model.base
    alive, outputs = run.plan.alive, output_tokens(run.real, base.outputs)
    assert alive.shape == (4, base.layers + 1, run.real.shape[1]) and run.plan.layers == base.layers
    assert (alive[:, 1:] <= alive[:, :-1]).all(), "what is gone stays gone"
    assert not (alive & ~run.real[:, None]).any(), "padding is never alive"
    read = ~answered(model, run)[:, None]  # of the others the base model computes nothing
    assert (alive >= (outputs & read)[:, None]).all(), "the head reads the output tokens"
    everything = alive[:, -2]
    written = [everything] if base.reads_survivors else [outputs & read, everything]  # the library's forward writes all
    assert any(torch.equal(alive[:, -1], each) for each in written)


@torch.inference_mode()
def check_a_sample_does_not_depend_on_its_batch(case: Case) -> None:
    """Order and size of a batch change neither what is kept nor the logits."""
    model, example = case.make()
    inputs = example.inputs
    together, order = model.run(inputs), torch.tensor([2, 0, 3, 1])
    shuffled = model.run(pick(inputs, order.tolist()))
    assert torch.equal(shuffled.plan.alive, together.plan.alive[order])
    case.assert_near(shuffled.logits, together.logits[order])
    for index, sample in enumerate(one_by_one(inputs)):
        alone = model.run(sample)
        assert torch.equal(alone.plan.alive[0], together.plan.alive[index, :, : alone.real.shape[1]])
        case.assert_near(alone.logits[0], together.logits[index])


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
        case.assert_near(wide.logits, tight.logits)


@torch.inference_mode()
def check_multiply_adds_are_those_that_torch_counts(case: Case) -> None:
    """Of a sample at a time, as some methods pad a batch of unequal counts."""
    count_fused_attention()
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
    if case.device != "cpu":
        raise SkipTest("the kernels are for CPUs")
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
        entry = model.base.answers
        assert torch.equal(getattr(answer, entry) if entry else answer, expected)
    copied, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    restored, _ = case.make()
    for parameter in restored.parameters():
        parameter.zero_()
    restored.load_state_dict(model.state_dict(), strict=True)
    for other in (copied, loaded, restored):
        assert torch.equal(other.run(example.inputs).logits, expected)
    empty = model.run(pick(example.inputs, []))
    assert empty.logits.shape == (0, expected.shape[1])


def check_gradients_reach_the_base(case: Case) -> None:
    """Logits carry a gradient to the weights of the first layer."""
    model, example = case.make()
    run = model.run(example.inputs)
    if answered(model, run).all():
        raise SkipTest("the approximate network answers all, and the base model computes nothing")
    run.logits.square().sum().backward()
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
        model, example = replace(case, settings={kind.knob_name() or "": value}).make()
        kept.append(float(model.run(example.inputs).plan.occupancy().mean()))
    assert sorted(kept) == kept and len(set(kept)) == len(kept), f"{kind.rising} keep {kept}"


def check_it_reaches_its_budget(case: Case) -> None:
    """Within 2 % of the multiply-adds that are asked for, or as near as any other value of its dial comes."""
    kind = method_settings(case.method)
    if (dial := kind.dial_name()) is None:
        raise SkipTest(f"{kind.title} has no setting that moves its cost")
    if case.settings:
        raise SkipTest("a budget is kept from the method's defaults alone")
    shares = set()
    for asked in BUDGETS:
        model, example = case.make()
        found = calibrate(model, [example.inputs], BudgetSettings(macs=asked))
        assert getattr(model.method.settings, dial) == found.value and model.calibration == found
        own = _macs_share(model, example.inputs)
        assert abs(own - found.reached) <= 1e-6, f"{own} of the dense macs, where {found.reached} are said"
        shares.add(own)
        if abs(own - asked) > 0.02 * asked:
            others = {value: _macs_share(_at(case, value), example.inputs) for value in _around(model, found.value)}
            shares |= set(others.values())
            nearer = {value: share for value, share in others.items() if abs(share - asked) < abs(own - asked) - 5e-3}
            assert not nearer, f"{asked} is asked for, {own} reached, where {dial} gives nearer: {nearer}"
    assert len(shares) > 1, f"its {dial} moves nothing: a method reads its settings when it runs"


def answered(model: PrunedModel, run: Run) -> Tensor:
    """The samples (B,) bool of which no token lives, as they may under a method that asks the network."""
    none = ~run.plan.alive.flatten(1).any(1)
    return none if model.method.settings.asks_network else torch.zeros_like(none)


@torch.inference_mode()
def _macs_share(model: PrunedModel, inputs: Any) -> float:
    run = (frozen := freeze(model, strict=False)).run(inputs)
    return sum(frozen.macs(run).values()) / sum(model.dense_macs(run.real).values())


def _at(case: Case, value: float) -> PrunedModel:
    """The method made anew with its dial there."""
    kind = method_settings(case.method)
    return make_pruned(make_example(case.backbone), case.method, **kind.at_budget, **{kind.dial_name() or "": value})


def _around(model: PrunedModel, value: float) -> list[float]:
    """Values of its dial from far below to far above that one."""
    within = dial_range(model.method.settings)
    far = max(abs(value), 1.0)
    places = [value + share * far for share in (-4.0, -1.0, -0.5, -0.2, -0.1, -0.04, 0.04, 0.1, 0.2, 0.5, 1.0, 4.0)]
    rounded = [round(place) if within.whole else place for place in places]
    return sorted({place for place in rounded if within.low <= place <= within.high and within.allowed(place)})


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
    check_it_reaches_its_budget,
)


def count_fused_attention() -> None:
    """FlopCounterMode of torch 2.11 counts no fused attention on CPUs: it does from now on, as in later versions."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if fused not in flop_registry:

        @register_flop_formula(fused)
        def _(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:  # their shapes
            return sdpa_flop_count(query, key, value)


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
