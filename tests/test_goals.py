"""What is predicted of an H100: the kernels that it counts are those that run, and the docs say what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import Kernels, compiled_kernels
from pretended import pretended_device, to_device
from sttabt.bench.goals import DEIT, KEEP, KERNELS, MAPS, MERGED, TOKENS, format_goals, goals
from sttabt.bench.graphs import compiled_planners, compiled_variants, graphed_variants
from sttabt.bench.predict import KERNELS_A_LAYER
from sttabt.bench.rivals import run_plain_tome
from sttabt.bench.training import make_steps
from sttabt.bench.variants import fixed_model, make_model, make_variants
from sttabt.engine import dense as engine_dense
from sttabt.engine import dropped as engine_dropped
from sttabt.engine.planner import KernelTrace
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.graphed import GraphedModel
from sttabt.models.pruned import PrunedModel
from sttabt.pretrained.timm_model import build_timm
from sttabt.settings import BenchSettings

SCALE = Path(__file__).parents[1] / "docs" / "SCALE.md"
NEAR = 0.1  # versions of torch call other operators for the same


@pytest.fixture(scope="module")
def models() -> dict[str, PrunedModel]:
    torch.manual_seed(0)
    base = build_timm("deit_small_patch16_224", {}, classes=1000, channels=3, image_size=224).eval()
    network = ApproximateNetwork(base, 8).eval()
    sizes = ("layers", "width", "heads", "feed_forward")
    assert [getattr(base.architecture, size) for size in sizes] == [getattr(DEIT, size) for size in sizes]
    assert base.tokens == TOKENS
    return {
        "dense": make_model("dense", base),
        "fixed counts": fixed_model(base, network, KEEP).pruned,
        "back-tracking": make_model("backtracking", base, network),
        "concrete masks": make_model("concrete", base, network),
        "ToMe": make_model("tome", base, merged=MERGED),
        "DynamicViT": make_model("dynamicvit", base),
    }


def test_the_docs_say_what_is_predicted() -> None:
    def until_measured(table: str) -> list[str]:
        return [line.rpartition(" | ")[0] for line in table.splitlines()]

    expected = format_goals()
    head, _, rest = expected.partition("\n")
    table = head + SCALE.read_text().partition(head)[2].partition("\n\n")[0]
    assert until_measured(table) == until_measured(expected) and rest


def test_what_was_measured_stands_beside_it(models: dict[str, PrunedModel]) -> None:
    base = models["dense"].base
    networks = [ApproximateNetwork(base, factor).eval() for factor in (4, 8)]
    settings = BenchSettings(image_sizes=[224], keeps=[KEEP], factors=[4, 8], merged=[8, MERGED, 16])
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        variants = [
            *make_variants(base, networks, images, settings),
            *graphed_variants(base, networks, images, settings, torch.float32, lambda run: run),
            *compiled_variants(base, networks[-1], images, settings, torch.float32),
            *compiled_planners(base, networks[-1], images, settings, torch.float32),
        ]
    variants += make_steps(base, networks[0], images, settings)
    rows = [
        {"model": "deit_small", "batch": batch, "variant": variant.name, "ms": 2.0 + number}
        for batch in (1, 128)
        for number, variant in enumerate(variants)
    ]
    assert all(goal.measured([]) is None and goal.measured(rows) is not None for goal in goals())
    times = {row["variant"]: row["ms"] for row in rows}
    dense, ratio = goals()[0].measured(rows), goals()[2].measured(rows)
    assert dense == times["dense, compiled"]
    assert ratio == times["dense, compiled"] / times["fixed counts, compiled, factor 8, keep 0.41"]
    assert "not run" not in format_goals(rows)


@pytest.mark.parametrize("name", ["fixed counts", "back-tracking", "ToMe"])
def test_a_captured_model_runs_as_many_kernels_as_counted(
    name: str, models: dict[str, PrunedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []

    def capture(run: Callable[[], Any]) -> Callable[[], Any]:
        def replay() -> Any:
            with Kernels("cuda") as kernels:
                found = run()
            counted.append(kernels.count)
            return found

        return replay

    model, images = copy.deepcopy(models[name]).bfloat16(), torch.randn(1, 3, 224, 224).bfloat16()
    with pretended_device(monkeypatch):
        GraphedModel(to_device(model), [], capture).run(to_device(images))
    assert sum(counted) == pytest.approx(KERNELS[name], rel=NEAR)


@pytest.mark.parametrize("name", ["fixed counts", "concrete masks"])
def test_a_planner_runs_as_many_kernels_as_counted(
    name: str, models: dict[str, PrunedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = copy.deepcopy(models[name]).bfloat16(), torch.randn(1, 3, 224, 224).bfloat16()
    with pretended_device(monkeypatch), torch.no_grad(), Kernels("cuda") as kernels:
        to_device(model).steps()["planning"](to_device(images))
    assert kernels.count == pytest.approx(KERNELS[f"planner of {name}"], rel=NEAR)


@pytest.mark.parametrize(
    "name", ["fixed counts", "planner of fixed counts", "planner of concrete masks", "back-tracking"]
)
def test_compiling_leaves_as_many_kernels_as_counted(
    name: str, models: dict[str, PrunedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is captured on a card: sums of the planner by its kernel, attention on ragged rows."""
    model, images = models[name.removeprefix("planner of ")], torch.randn(2, 3, 224, 224)
    captured: list[Callable[[], Any]] = []

    def capture(run: Callable[[], Any]) -> Callable[[], Any]:
        captured.append(run)
        return run

    if name.startswith("planner"):
        captured.append(lambda: model.steps()["planning"](images))
    else:
        GraphedModel(model, [], capture).run(images)
    monkeypatch.setattr(engine_dense, "AttentionTrace", KernelTrace)
    monkeypatch.setattr(engine_dropped, "attend_packed", _attend_ragged)
    with torch.no_grad():
        counted = sum(compiled_kernels(run) for run in captured)
    assert counted == pytest.approx(KERNELS[f"{name}, compiled"], rel=NEAR)


def _attend_ragged(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    """One kernel, as on a card; of these shapes, not of these numbers."""
    return F.scaled_dot_product_attention(query[None, None], key[None, None], value[None, None])[0, 0]


def test_training_runs_as_many_kernels_and_maps_as_counted(models: dict[str, PrunedModel]) -> None:
    """On the CPU, whose autocast leaves other operators in single precision than that of CUDA does."""
    images, one = torch.randn(1, 3, 224, 224), DEIT.heads * TOKENS**2 * 4
    dense, concrete, masks = (copy.deepcopy(models[name]).train() for name in ("dense", "concrete masks", "DynamicViT"))
    for name, forward, backward in (
        ("teacher", lambda: dense.base(images), False),
        ("dense step", lambda: dense.base(images), True),
        ("step of concrete masks", lambda: concrete.soft(images).logits, True),
        ("DynamicViT's masks", lambda: masks.soft(images).logits, False),
        ("ToMe on maps", lambda: run_plain_tome(dense.base, images, MERGED), False),
    ):
        with Kernels("cpu", DEIT.heads) as kernels:
            with torch.autocast("cpu", torch.bfloat16):
                logits = forward()
            if backward:
                logits.float().sum().backward()
        assert kernels.count == pytest.approx(KERNELS[name], rel=NEAR), name
        assert kernels.maps / one == pytest.approx(MAPS.get(name, 0.0), rel=NEAR), name


def test_a_dense_layer_has_no_more_kernels_than_compiling_leaves(models: dict[str, PrunedModel]) -> None:
    """Ten, of which the two sums go with the norms behind them."""
    with Kernels("cpu") as kernels, torch.no_grad():
        models["dense"].base(torch.randn(1, 3, 224, 224))
    assert kernels.count == pytest.approx((KERNELS_A_LAYER + 2) * DEIT.layers, rel=NEAR)
