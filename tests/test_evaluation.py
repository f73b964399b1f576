"""What a result row says of a model equals what a slow loop over single images says."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from conftest import make_approx, make_backbone, make_inputs
from sttabt.cli.composition import compose_settings
from sttabt.data import load_splits
from sttabt.data.base import Batch
from sttabt.data.task import Task
from sttabt.engine.dense import run_dense
from sttabt.engine.masked import run_masked
from sttabt.engine.run import Run
from sttabt.methods import find_method
from sttabt.methods.base import MergingMethod
from sttabt.methods.concrete import Concrete
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.frozen import deployed
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline import result
from sttabt.pipeline.evaluation import (
    _loader,
    attention_error,
    computing_in,
    evaluate,
    gallery,
    time_against_dense,
)
from sttabt.pipeline.result import measure_time
from sttabt.pipeline.samples import ranked_by_cost
from sttabt.settings import method_settings
from sttabt.settings.run import PRECISIONS
from sttabt.testing import contract
from sttabt.timing.interleaved import Timing, time_interleaved

CLASSES = 5
TASK = Task("accuracy", CLASSES)


class _Images(Dataset):
    """Random images of which about half are labelled with what the dense model predicts."""

    def __init__(self, name: str, count: int) -> None:
        _, channels, size, _ = make_inputs(name).shape
        generator = torch.Generator().manual_seed(4)
        self.images = 2 * torch.randn(count, channels, size, size, generator=generator)
        random = torch.randint(CLASSES, (count,), generator=generator)
        with torch.no_grad():
            predicted = make_backbone(name)(self.images).argmax(-1)
        self.labels = torch.where(torch.arange(count) % 2 == 0, predicted, random)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        return Batch(self.images[index], self.labels[index])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpu_gets_pinned_memory(device: str) -> None:
    loader = _loader(_Images("digits", 4), 2, 0, torch.device(device))
    assert loader.pin_memory == (device == "cuda")


def test_how_fast_an_evaluation_went_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        evaluate(_pruned("digits", "random"), _Images("digits", 10), TASK, batch_size=4, batches=2)
    assert re.search(r"evaluate random: 8 samples, \d+ a second", caplog.text.lower())


def _pruned(name: str, method: str, **settings: object) -> PrunedModel:
    base = make_backbone(name)
    kind = find_method(method)
    chosen = kind(method_settings(method)(method=method, **settings), base.layers, base.outputs)
    return PrunedModel(base, chosen, make_approx(base, name) if chosen.attention == "approximate" else None).eval()


@pytest.mark.parametrize("case", contract.cases(backbone="digits"), ids=str)
@torch.inference_mode()
def test_evaluation_equals_a_loop_over_single_images(case: contract.Case) -> None:
    dataset, (model, _) = _Images("digits", 11), case.make()
    scores = evaluate(model, dataset, TASK, batch_size=4)  # 4, 4 and 3
    masking, learns_softly = (not isinstance(model.method, MergingMethod)), "soft" in model.forms()
    right, loss, occupancy = Counter[str](), 0.0, []
    for index in range(len(dataset)):
        image, label = dataset[index].inputs[None], dataset[index].labels
        run = model.run(image)
        right["dropped"] += int(run.logits.argmax() == label)
        loss += float(F.cross_entropy(run.logits[0], label))
        occupancy.append([rows / run.real.shape[1] for rows in run.plan.counts[0].tolist()])  # fused rows, too
        if masking:
            right["masked"] += int(model.forms()["masked"](image).logits.argmax() == label)
        if isinstance(model.method, Concrete):
            soft = run_masked(model.base, image, model.method.soft_plan(model.trace(image)).plan)
            right["soft"] += int(soft.argmax() == label)
        elif learns_softly:
            right["soft"] += int(model.method.soft(model.base, image, None).logits.argmax() == label)
    assert scores.samples == 11
    assert scores.dropped == pytest.approx(right["dropped"] / 11)
    assert scores.masked == (pytest.approx(right["masked"] / 11) if masking else None)
    assert scores.soft == (pytest.approx(right["soft"] / 11) if learns_softly else None)
    assert scores.loss == pytest.approx(loss / 11, rel=1e-5)
    assert scores.occupancy == pytest.approx(np.mean(occupancy, 0).tolist())
    macs: Counter[str] = Counter()  # of a sample, but padding in its batch counts
    frozen = deployed(model)
    for indices in (range(4), range(4, 8), range(8, 11)):
        run = frozen.run(torch.stack([dataset[index].inputs for index in indices]))
        macs.update({part: len(indices) * value for part, value in frozen.macs(run).items()})
    assert scores.macs == pytest.approx({part: value / 11 for part, value in macs.items()})
    assert 0 < scores.dropped < 1, "a share that a wrong sum would not hit"


def test_evaluation_counts_every_batch_by_its_size() -> None:
    dataset, model = _Images("digits", 11), _pruned("digits", "concrete", p_logit=-0.5)
    whole, parts = evaluate(model, dataset, TASK, batch_size=11), evaluate(model, dataset, TASK, batch_size=4)
    assert parts.occupancy == pytest.approx(whole.occupancy)
    assert parts.macs["feed_forward"] == pytest.approx(whole.macs["feed_forward"])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert (parts.dropped, parts.masked, parts.soft) == (whole.dropped, whole.masked, whole.soft)
    first = evaluate(model, dataset, TASK, batch_size=4, batches=2)
    assert first.samples == 8
    expected = evaluate(model, torch.utils.data.Subset(dataset, range(8)), TASK, batch_size=8)
    assert first.occupancy == pytest.approx(expected.occupancy)


def test_the_attention_of_a_network_with_the_base_models_weights_has_no_error() -> None:
    base = make_backbone("digits")
    same = ApproximateNetwork(base, 1).eval()
    same.start_from(base)
    other = make_approx(base, "digits")
    dataset = _Images("digits", 7)
    errors = attention_error({"same": same, "other": other}, base, dataset, batch_size=3)
    assert errors["same"] == pytest.approx({"kl": 0, "mse": 0}, abs=1e-9)
    kl, mse = [], []
    for index in range(len(dataset)):
        image = dataset[index].inputs[None]
        with torch.no_grad():
            actual, found = run_dense(base, image).trace, other(image)
        for layer in range(base.layers):
            a, b = actual.probabilities(layer), found.probabilities(layer)
            kl.append(float((a * ((a + 1e-7) / (b + 1e-7)).log()).sum(-1).mean()))
            mse.append(float((a - b).square().mean()))
    assert errors["other"] == pytest.approx({"kl": np.mean(kl), "mse": np.mean(mse)}, rel=1e-4)
    assert errors["other"]["kl"] > 1e-3
    partly = attention_error({"other": other}, base, dataset, batch_size=3, batches=1)
    assert partly["other"]["kl"] == pytest.approx(np.mean(kl[: 3 * base.layers]), rel=1e-4)


# --- time


def test_variants_are_timed_in_turns_after_the_warm_up() -> None:
    calls: list[str] = []
    timing = time_interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, "a", rounds=3, warmup=2)
    assert calls == list("abc") * 5
    assert {name: len(one.seconds) for name, one in timing.items()} == {"a": 3, "b": 3, "c": 3}
    assert timing["a"].ratios == [1, 1, 1]
    for name in "bc":
        pairs = zip(timing[name].seconds, timing["a"].seconds, strict=True)
        assert timing[name].ratios == [own / base for own, base in pairs]


def test_the_first_rounds_do_not_count() -> None:
    turns = Counter()

    def work(name: str, steps: int) -> None:
        turns[name] += 1
        total = 0
        for step in range(steps * (100 if turns[name] <= 2 else 1)):
            total += step

    variants = {"short": lambda: work("short", 2_000), "long": lambda: work("long", 40_000)}
    timing = time_interleaved(variants, "short", rounds=5)
    assert turns == {"short": 7, "long": 7}
    assert 5 < timing["long"].ratio < 80, "twenty times the work"
    assert max(timing["long"].seconds) < 1, "the warm-up would take seconds"


def test_medians_and_quartiles() -> None:
    timing = Timing(seconds=[4.0, 1.0, 2.0, 9.0, 3.0], ratios=[0.5, 0.1, 0.2, 0.9, 0.3])
    assert (timing.median, timing.ratio) == (3.0, 0.3)
    assert timing.quartiles == pytest.approx((0.2, 0.5))
    assert Timing(seconds=[2.0], ratios=[0.5]).quartiles == (0.5, 0.5)


def test_the_dense_method_is_timed_as_the_base_model_itself() -> None:
    dataset = _Images("digits", 4)
    calls: Counter[str] = Counter()
    for method in ("dense", "backtracking"):
        model = _pruned("digits", method)
        model.base.model.register_forward_hook(lambda *_, key=method: calls.update([key]))
        timing = time_against_dense(model, dataset, batch_size=4, rounds=3)
        assert (set(timing.dense), timing.baseline) == ({"batch"}, "batch"), "images have no padding to leave out"
        for one in (timing.pruned, timing.dense["batch"]):
            assert len(one.seconds) == 3 and min(one.seconds) > 0
        assert bool(timing.parts) == (method == "backtracking")
    assert calls == {"dense": 10, "backtracking": 5}, "as the baseline, and as itself: what has hooks is not frozen"


def test_a_frozen_model_is_timed_beside_the_frozen_dense_model() -> None:
    dataset = _Images("digits", 4)
    found = time_against_dense(_pruned("digits", "backtracking", keep_ratio=0.4), dataset, batch_size=4, rounds=3)
    beside = found.against_frozen()
    assert found.frozen is not None and beside is not None and beside.seconds == found.pruned.seconds
    assert beside.ratios == [own / dense for own, dense in zip(found.pruned.seconds, found.frozen.seconds, strict=True)]
    assert found.frozen.seconds != found.dense["batch"].seconds


@pytest.mark.parametrize("attention", ["approximate", "actual"])
def test_what_a_plan_takes_is_timed_part_by_part(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _pruned("digits", "backtracking", keep_ratio=0.4, attention=attention)
    kind, method = type(deployed(model)), type(model.method)

    def slowly(wait: float, run: Callable[..., object]) -> Callable[..., object]:
        return lambda *arguments: (time.sleep(wait), run(*arguments))[1]

    monkeypatch.setattr(kind, "trace", slowly(0.2, kind.trace))
    monkeypatch.setattr(method, "plan", slowly(0.02, method.plan))
    found = time_against_dense(model, _Images("digits", 4), batch_size=4, rounds=3)
    planning = found.parts["planning"].median
    if attention == "actual":  # a dense run of the base model is part of its planning
        assert set(found.parts) == {"planning"} and planning >= 0.2
    else:
        assert set(found.parts) == {"approximate_network", "planning"}
        assert found.parts["approximate_network"].median >= 0.2 and planning < 0.15
    for part in found.parts.values():
        expected = [own / dense for own, dense in zip(part.seconds, found.dense["batch"].seconds, strict=True)]
        assert part.ratios == expected


@torch.no_grad()
def test_a_cascade_is_timed_on_samples_of_which_its_own_share_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, dataset = _pruned("digits", "cascade"), _Images("digits", 40)
    assert model.approx is not None
    likeliest = model.approx.backbone(dataset.images).softmax(-1).amax(-1)
    order = likeliest.argsort(descending=True)  # the first ones say nothing of the last
    dataset.images, dataset.labels = dataset.images[order], dataset.labels[order]
    model.method.settings.sure = float(likeliest.sort().values[9:11].mean())  # ten go on, all at the end
    read: list[torch.Tensor] = []
    kind = type(deployed(model))
    run = kind.run

    def noted(own: PrunedModel, inputs: torch.Tensor) -> Run:
        found = run(own, inputs)
        if own.method.settings.asks_network:  # not the frozen dense model beside it
            read.append(found.plan.alive[:, 0].any(1))
        return found

    monkeypatch.setattr(kind, "run", noted)
    measure_time(model, dataset, batch_size=4, rounds=1)
    together = [batch for batch in read if len(batch) == 4]
    assert len(together) == 3 * 4 and all(batch.sum() == 1 for batch in together), "warm-up and round of four batches"
    single = [bool(batch) for batch in read if len(batch) == 1]
    assert len(single) == 3 * 32 and sum(single) == 3 * 8


@torch.no_grad()
def test_times_are_a_batch_of_few_samples_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, dataset = _pruned("digits", "cascade", sure=0.01), _Images("digits", 10)
    ranked = ranked_by_cost(model, dataset, batch_size=4)
    assert ranked and sorted(ranked) == list(range(10))
    assert ranked_by_cost(_pruned("digits", "backtracking"), dataset, batch_size=4) is None
    found = time_against_dense(model, dataset, 4, 1, batches=4, ranked=ranked)
    assert found.batches == 2 and time_against_dense(model, dataset, 1, 1, 32, ranked).batches == 10
    timing = Timing([0.8], [1.0])
    comparison = replace(found, pruned=timing, dense={"batch": timing}, frozen=timing)
    monkeypatch.setattr(result, "time_against_dense", lambda *_: comparison)
    times = measure_time(model, dataset, batch_size=4, rounds=1)[0]
    assert times["ms"] == times["dense_ms"] == times["dense_frozen_ms"] == times["single_ms"] == 400


# --- gallery


def test_gallery_shows_one_image_of_each_class_in_turn() -> None:
    settings = compose_settings(["name=test", "dataset=digits"])
    splits = load_splits(settings.dataset)
    model = _pruned("digits", "backtracking", keep_ratio=0.4)
    shown = gallery(model, splits, Task("accuracy", 10), samples=13)
    assert shown.labels.tolist() == [*range(10), 0, 1, 2]
    test = [splits.test[index] for index in range(len(splits.test))]  # type: ignore[arg-type]
    seen: Counter[int] = Counter()
    picked = []
    for label in shown.labels.tolist():
        picked.append([item for item in test if int(item.labels) == label][seen[label]])
        seen[label] += 1
    inputs = torch.stack([item.inputs for item in picked])
    assert shown.images.shape == (13, 28, 28, 1)
    assert shown.images.dtype == np.uint8
    original = inputs * splits.std[0] + splits.mean[0]
    assert original.min() > -1e-6 and original.max() < 1 + 1e-6
    assert np.abs(shown.images[..., 0] / 255 - original[:, 0].numpy()).max() <= 0.5 / 255 + 1e-6
    with torch.no_grad():
        run = model.run(inputs)
    tokens, layers = model.base.tokens, model.base.layers
    assert shown.alive.shape == (13, layers + 1, tokens)
    assert (shown.alive == run.plan.alive.numpy()).all()
    assert shown.depth.shape == (13, tokens)
    assert (shown.depth == shown.alive[:, :-1].sum(1)).all()
    assert (shown.predictions == run.logits.argmax(-1).numpy()).all()
    assert (int(shown.prefix), int(shown.layers), shown.grid.tolist()) == (1, layers, [7, 7])
    assert shown.class_names.tolist() == [str(digit) for digit in range(10)]


def test_gallery_of_few_images_and_three_channels() -> None:
    dataset = _Images("test_vit", 6)
    dataset.labels = torch.tensor([3, 3, 1, 3, 1, 0])
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    normalised = torch.rand(6, 3, 32, 32)
    dataset.images = (normalised - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    splits = SimpleNamespace(test=dataset, mean=mean, std=std, class_names=tuple("abcde"))
    shown = gallery(_pruned("test_vit", "random"), splits, TASK, samples=8)  # type: ignore[arg-type]
    assert shown.labels.tolist() == [0, 1, 3, 1, 3, 3]
    expected = normalised[[5, 2, 0, 4, 1, 3]].permute(0, 2, 3, 1).numpy()
    assert np.abs(shown.images / 255 - expected).max() <= 0.5 / 255 + 1e-6


def test_precision_is_what_is_asked_for_and_given_back() -> None:
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    found = {}
    for precision in PRECISIONS:
        with computing_in(precision, torch.device("cpu")):
            tf32 = torch.get_float32_matmul_precision() == "high", torch.backends.cudnn.allow_tf32
            found[precision] = (a @ b).dtype, *tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    assert found == {
        "float32": (torch.float32, False, False),
        "tf32": (torch.float32, True, True),
        "bf16": (torch.bfloat16, False, False),
    }
