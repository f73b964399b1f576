"""The speed benchmark: its plans, its check against the masked engine, its rows and its command line. No times."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import sttabt
from conftest import make_approx, make_backbone, make_images
from sttabt.bench.__main__ import main, read_settings
from sttabt.bench.graphs import compiled_planners, compiled_variants, graphed_variants
from sttabt.bench.measure import difference, measure
from sttabt.bench.plans import reachable_mean, realistic_plan, solve_increasing
from sttabt.bench.predict import H100, Device, predicted_seconds
from sttabt.bench.table import SpeedRow, compare_with_tome, format_table
from sttabt.bench.training import make_steps, pruning_step_macs
from sttabt.bench.variants import (
    DROPPED,
    GATED,
    MASKED,
    PLANNER,
    RIVALS,
    TOME,
    WHOLE,
    Variant,
    dense_macs,
    make_model,
    make_variants,
)
from sttabt.core.cost import Architecture
from sttabt.core.plan import TokenPlan
from sttabt.engine.dropped import run_dropped
from sttabt.engine.frozen import FrozenBackbone
from sttabt.engine.run import Run
from sttabt.models.approximate import ApproximateNetwork
from sttabt.models.graphed import compile_whole
from sttabt.settings import BenchSettings
from sttabt.settings.fields import describe

SMALL = ["model=test_vit", "bench.image_sizes=[28]", "bench.train_batch=2", "bench.rounds=1"]
SETTINGS = BenchSettings(image_sizes=[28], keeps=[0.3, 0.4, 0.6], factors=[4, 2], merged=[4, 20, 60])
COMMON = {
    "machine": "some processor",
    "threads": 1,
    "torch": torch.__version__,
    "commit": "0123",
    "model": "digits",
    "weights": "random",
    "precision": "32-true",
    "image_size": 28,
}
MISTAKES = {
    "model=tst_vit": "model=tst_vit is unknown: did you mean 'test_vit'?",
    "bench.batchs=[1]": "bench.batchs is not a setting of the benchmark: did you mean 'bench.batches'?",
    "+bench.keep=0.5": "bench.keep is not a setting of the benchmark: did you mean 'bench.keeps'?",
    "keeps=[1]": "keeps is not a setting of the benchmark: did you mean 'bench.keeps'?",
    "bench.batches=1,2": "bench.batches=1,2 names several values: write bench.batches=[...]",
    "bench.rounds=x": "bench.rounds=x: Value 'x' of type 'str' could not be converted to Integer",
    "bench.keeps=[0.5,1.5]": "bench.keeps: 1.5 is out of range: it must be above 0 and at most 1",
    "bench.keeps=[0.4,0.5,0.4]": "bench.keeps=[0.4, 0.5, 0.4] names a value twice: give each once",
    "bench.keeps=[]": "bench.keeps=[] leaves nothing to measure",
    "bench.keeps=[0.99] model=test_vit bench.image_sizes=[28]": "bench.keeps: 0.99 is out of reach",
    "bench.spread=inf": "bench.spread=inf is not a finite number",
    "bench.image_sizes=[30] model=test_vit": "bench.image_sizes: 30 is no multiple of model.patch_size=7: take 28",
    "bench.factors=[5]": "bench.factors: 5 does not divide the head width 64: take of 1, 2, 4",
    "model.width=64 bench.factors=[1]": "model.width=64, but deit_small_patch16_224.fb_in1k has 384",
    "hardware.precision=64-true": "hardware.precision=64-true is unknown: did you mean '32-true'?",
    "hardware.accelerator=tpu": "hardware.accelerator=tpu is unknown",
    "--foo": "cannot read '--foo': give key=value pairs",
    "model": "cannot read 'model': write key=value",
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", params=[False, True], ids=["torch", "frozen"])
def variants(request: pytest.FixtureRequest) -> list[Variant]:
    base = make_backbone("digits")
    networks = [make_approx(base, "digits"), ApproximateNetwork(base, 2).eval()]
    with torch.inference_mode():
        return make_variants(base, networks, make_images("digits"), SETTINGS, request.param)


@pytest.fixture(scope="module")
def rows(variants: list[Variant]) -> list[SpeedRow]:
    base, images = make_backbone("digits"), make_images("digits")
    with torch.inference_mode():
        rows, wrong = measure(variants, base, images, 1, torch.float32, COMMON)
    assert wrong == []
    return compare_with_tome(rows, WHOLE, TOME)


@pytest.mark.parametrize("mean", [0.14, 0.25, 0.41, 0.6, 0.76])
@pytest.mark.parametrize(("batch", "spread"), [(1, 0.25), (8, 0.0), (8, 0.25), (8, 1.0)])
def test_a_realistic_plan_has_the_mean_asked_for(mean: float, batch: int, spread: float) -> None:
    plan = realistic_plan(batch, 197, 12, mean, spread, seed=0)
    plan.check(outputs=1)
    assert plan.alive.shape == (batch, 13, 197)
    assert float(plan.occupancy().mean()) == pytest.approx(mean, rel=0.005)
    counts = plan.alive.sum(-1)
    assert (counts[:, -1] == 1).all()
    assert (counts[:, 1:] <= counts[:, :-1]).all() and (counts[:, 0] > counts[:, -2]).any()
    same = (counts == counts[0]).all()
    assert same if spread == 0 or batch == 1 else not same


def test_a_realistic_plan_repeats_and_picks_random_tokens() -> None:
    first, again, other = (realistic_plan(4, 50, 6, 0.4, 0.25, seed, outputs=2).alive for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first[:, :, :2].all() and not first[:, -1, 2:].any()
    assert not torch.equal(first[0, 3], first[1, 3])
    same = realistic_plan(4, 50, 6, 0.4, 0.0, 0).alive[:, 3]
    assert len({tuple(tokens.tolist()) for tokens in same}) == 4, "tokens differ where counts do not"


def test_a_mean_out_of_reach_is_refused() -> None:
    highest = reachable_mean(197, 12, 1)
    assert float(realistic_plan(2, 197, 12, highest, 0.25, 0).occupancy().mean()) == pytest.approx(highest, abs=1e-3)
    for mean in (highest + 0.001, 0.004):
        with pytest.raises(ValueError, match="mean occupancy"):
            realistic_plan(2, 197, 12, mean, 0.0, 0)


def test_bisection_gives_the_better_side_of_a_jump() -> None:
    assert solve_increasing(lambda x: x**3, 8.0, 0.0, 5.0, 1e-6) == pytest.approx(2.0, abs=1e-5)
    assert solve_increasing(lambda x: float(x >= 1), 0.9, 0.0, 3.0, 1e-6) >= 1
    assert solve_increasing(lambda x: float(x >= 1), 0.1, 0.0, 3.0, 1e-6) < 1


def test_rows_count_what_the_model_counts(variants: list[Variant], rows: list[SpeedRow]) -> None:
    base, images = make_backbone("digits"), make_images("digits")
    frozen = "dense, frozen" in [variant.name for variant in variants]
    own = FrozenBackbone(base) if frozen else base
    dense = sum(make_model("dense", base).dense_macs(base.real(images[:1])).values())
    found = {row.variant: row for row in rows}
    assert found["dense"].macs == dense == dense_macs(base)
    compared = set()
    for variant in variants:
        row = found[variant.name]
        assert row.macs_ratio == pytest.approx(row.macs / dense)
        with torch.inference_mode():
            result = variant.run()
        if variant.group == DROPPED:
            macs = make_model("random", own).macs(result)
        elif variant.group in (WHOLE, TOME):
            macs = variant.macs.args[0].macs(result)  # type: ignore[attr-defined]
        else:
            continue
        compared.add(variant.group)
        assert row.macs == pytest.approx(sum(macs.values()))
        assert row.occupancy == pytest.approx(float(result.plan.occupancy().mean()))
    assert compared == {DROPPED, WHOLE, TOME}
    model, trace = make_model("concrete", base, make_approx(base, "digits")), found["trace, factor 4"]
    run = model.run(images)
    assert trace.macs == pytest.approx(model.macs(run)["approximate_network"])
    assert found["trace and concrete, factor 4"].macs > trace.macs


def test_own_plans_are_calibrated(rows: list[SpeedRow]) -> None:
    own = [row for row in rows if row.group == WHOLE]
    assert len(own) > 2
    for row in own:
        assert row.occupancy == pytest.approx(float(row.variant.rpartition(" ")[2]), abs=0.03), row.variant


@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_the_check_passes_right_logits_and_catches_wrong_ones(keep: float) -> None:
    base, images = make_backbone("digits"), make_images("digits", 12)
    real = base.real(images)
    plan, other = (realistic_plan(12, base.tokens, base.layers, keep, 0.25, seed) for seed in (0, 1))
    mixed = TokenPlan.of_sets(torch.cat([plan.alive[:-1], other.alive[-1:]]))

    def run(executed: TokenPlan) -> Run:
        return Run(run_dropped(base, images, executed), plan, real)

    with torch.inference_mode():
        assert difference(run(plan), base, images) == ""
        assert "differ from the masked engine's by" in difference(run(other), base, images)
        assert difference(run(mixed), base, images), "the last sample alone is wrong"


def test_a_wrong_variant_gets_no_row(variants: list[Variant]) -> None:
    base, images = make_backbone("digits"), make_images("digits")

    dropped = [variant for variant in variants if variant.group == DROPPED]

    def wrong() -> Run:
        run = dropped[0].run()
        return replace(run, logits=run.logits * 1.001)

    chosen = [variants[0], replace(dropped[0], name="wrong", run=wrong), dropped[1]]
    with torch.inference_mode():
        rows, failed = measure(chosen, base, images, 1, torch.float32, COMMON)
    assert failed == ["wrong"]
    assert [row.variant for row in rows] == ["dense", dropped[1].name]


def test_autocast_runs_every_variant(variants: list[Variant]) -> None:
    base, images = make_backbone("digits"), make_images("digits")
    with torch.inference_mode():
        rows, wrong = measure(variants, base, images, 1, torch.bfloat16, COMMON)
    assert wrong == [] and len(rows) == len(variants)


def test_a_pruning_step_costs_its_passes(tmp_path: Path) -> None:
    base, images = make_backbone("digits"), make_images("digits")
    network = make_approx(base, "digits")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    rows, _ = measure(make_steps(base, network, images, SETTINGS), base, images, 1, torch.float32, COMMON)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items()), "steps have own weights"
    dense, pruning, hard = rows
    assert dense.macs == 3 * dense_macs(base)
    assert pruning.macs == pruning_step_macs(base, network)
    model = make_model("concrete", base, network)
    real = base.real(images[:1])
    every = TokenPlan(real * (base.layers + 1), base.layers)
    parts = model.macs(Run(real.new_empty(0), every, real, (base.tokens,) * base.layers))
    planned = parts["approximate_network"] + parts["planning"]
    assert pruning.macs == pytest.approx(4 * dense_macs(base) + 3 * planned)
    assert dense_macs(base) < hard.macs < pruning.macs, "hard masks compute what they keep"


def test_tome_is_compared_at_equal_cost() -> None:
    row = SpeedRow(
        **COMMON, batch=1, group=TOME, variant="a", occupancy=None, macs=1.0, macs_ratio=0.4, rounds=1, ms=1.0,
        ms_least=1.0, ratio=0.5, ratio_low=0.5, ratio_high=0.5, memory=None,
    )  # fmt: skip
    rows = [row, replace(row, variant="b", macs_ratio=0.8, ratio=0.9)]
    rows += [replace(row, group=WHOLE, variant=f"{share}", macs_ratio=share, ratio=0.35) for share in (0.3, 0.6, 0.9)]
    compared = compare_with_tome(rows, WHOLE, TOME)
    assert [row.tome_ratio for row in compared] == [None, None, None, pytest.approx(0.5), None]
    assert format_table(compared, WHOLE).count("outside ToMe's range") == 2


def test_the_table_has_every_variant(variants: list[Variant], rows: list[SpeedRow]) -> None:
    names = [variant.name for variant in variants]
    assert [row.variant for row in rows] == names and len(set(names)) == len(names)
    groups = [variant.group for variant in variants]
    assert {group: groups.count(group) for group in (MASKED, DROPPED, PLANNER, WHOLE, TOME, RIVALS)} == {
        MASKED: 1, DROPPED: 6, PLANNER: 3 * 2, WHOLE: 18, TOME: 3, RIVALS: 2
    }  # fmt: skip
    table = format_table(rows, WHOLE)
    assert all(f"| {name} " in table for name in names)
    assert "random" in table


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith(MISTAKES[arguments])
    assert not Path("runs").exists()


def test_help_names_every_setting_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in fields(BenchSettings):
        assert f" bench.{field.name}=" in text and describe(field).meaning in text


def test_settings_without_effect_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        settings = read_settings(["model=test_vit", "model.checkpoint=x", "bench.batches=[2]"])
    assert settings.bench.batches == [2]
    assert [record.getMessage() for record in caplog.records] == ["model.checkpoint=x has no effect on the benchmark"]


def test_the_command_writes_rows_table_and_figure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sttabt.bench", *SMALL, "bench.batches=[1,3]", "bench.out=out"]
    environment = os.environ | {"PYTHONPATH": str(Path(sttabt.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "bench.jsonl").read_text().splitlines()]
    per_batch = {batch: [line for line in lines if line["batch"] == batch] for batch in (1, 3, 2)}
    assert {batch: len(found) for batch, found in per_batch.items()} == {
        1: 35,
        3: 38,
        2: 3,
    }  # the frozen dense model among them
    assert all(line["rounds"] == 1 and line["weights"] == "random" and line["machine"] for line in lines)
    assert all(line["quotient"] == pytest.approx(line["ratio"] / line["macs_ratio"]) for line in lines)
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in done.stdout and all(f"| {line['variant']} " in table for line in lines)
    assert (tmp_path / "out" / "speed.png").stat().st_size > 1000


def test_a_wrong_variant_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sttabt.bench.variants.run_dropped", lambda base, inputs, plan: base(inputs))
    assert main([*SMALL, "bench.batches=[1]", "bench.train=false", "bench.out=out"]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith(
        "failed or wrong logits, so not timed: dropped, uniform, keep 0.25; "
    )
    groups = {json.loads(line)["group"] for line in (tmp_path / "out" / "bench.jsonl").read_text().splitlines()}
    assert DROPPED not in groups and set(GATED) - {DROPPED} <= groups


def test_a_prediction_is_the_sum_of_what_limits_each_kernel() -> None:
    """By hand: one layer, two samples of 3 and 2 tokens that write 1 each, width 4, feed-forward 8."""
    sizes, counts = Architecture(1, 4, 2, 8, classes=5, patch_inputs=3), [[3, 1], [2, 1]]
    macs = 2 * 5 * 16 + 2 * 16 + 2 * (3 + 2) * 4 + 2 * 16 + 2 * (2 * 32)
    assert predicted_seconds(sizes, counts, Device(1, math.inf, 0)) == macs
    products = (60 + 8 + 48) + 2 * 7 * 4 + (16 + 16) + 2 * (24 + 32)
    passes = 2 * 32 + 32
    device = Device(math.inf, 1, 0)
    assert predicted_seconds(sizes, counts, device) == 2 * (products + passes)
    assert predicted_seconds(sizes, counts, device, copied=2) == 2 * (products + passes + 2 * 2 * 4)
    assert predicted_seconds(sizes, counts, device, padded=[6, 2]) == 2 * (products + passes) + 2 * (12 + 8)
    assert predicted_seconds(sizes, counts, Device(math.inf, math.inf, 1)) == 8
    assert predicted_seconds(sizes, counts, Device(math.inf, math.inf, 1), kernels=30) == 30


def test_a_prediction_of_deit_small_is_near_its_multiply_adds() -> None:
    """At batch 128 the bytes of a layer decide, which fall as its tokens do; at batch 1 launches do."""
    sizes = Architecture(12, 384, 6, 1536, classes=1000, patch_inputs=768)
    dense, pruned = [197] * 13, [197, 197, 190, 160, 120, 80, 50, 30, 20, 12, 8, 5, 1]

    def seconds(counts: list[int], batch: int) -> float:
        return predicted_seconds(sizes, [counts] * batch, H100)

    shares = {batch: seconds(pruned, batch) / seconds(dense, batch) for batch in (1, 128)}
    assert 0.37 < shares[128] < 0.43 and shares[1] > 0.8


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_graphs_are_timed_as_freeze_makes_them(precision: torch.dtype) -> None:
    """Without a card a graph is a function that is called again."""
    base, images = make_backbone("digits"), make_images("digits")
    networks = [ApproximateNetwork(base, 2).eval(), make_approx(base, "digits")]
    variants = graphed_variants(base, networks, images, SETTINGS, precision, lambda f: f)
    assert {variant.group for variant in variants} == {"graphs"}
    names = [variant.name for variant in variants]
    assert [name.partition(", factor")[0] for name in names] == [
        "dense, graphs", "ToMe, graphs, 20 a layer", "concrete, graphs", "back-tracking top-k, graphs",
        "fixed counts, graphs", "fixed counts, graphs", "planner of concrete, graphs",
        "planner of back-tracking top-k, graphs", "planner of fixed counts, graphs", "planner of fixed counts, graphs",
    ]  # fmt: skip
    runs = {variant.name: variant.run() for variant in variants}
    dense = runs.pop("dense, graphs")
    assert dense.logits.dtype == precision
    most = variants[0].macs(dense)
    for variant in variants[2:]:
        run = runs[variant.name]
        assert abs(float(run.plan.occupancy().mean()) - 0.4) < 0.1, variant.name
        assert 0 < variant.macs(run) < most
        if isinstance(run, Run):
            error = difference(replace(run, logits=run.logits.float()), base, images)
            assert (error == "") == (precision == torch.float32), variant.name
    rows, wrong = measure(variants, base, images, 1, precision, COMMON)
    assert wrong == [] and [row.variant for row in rows] == names
    assert {row.baseline for row in rows} == {"dense, graphs"}


@torch.inference_mode()
def test_compiled_models_compute_what_the_others_do() -> None:
    """Without a card they are compiled for the CPU, and not captured."""
    base, images = make_backbone("digits"), make_images("digits")
    network = make_approx(base, "digits")
    dense, fixed = compiled_variants(base, network, images, SETTINGS, torch.float32, compile_whole)
    planner, of_masks, differing = compiled_planners(base, network, images, SETTINGS, torch.float32, compile_whole)
    assert dense.name == "dense, compiled"
    assert torch.allclose(dense.run(), base(images), atol=1e-5)
    for variant in (fixed, differing):
        assert difference(variant.run(), base, images) == "", variant.name
    assert torch.equal(planner.run().plan.alive, fixed.run().plan.alive)
    masks = make_model("concrete", base, network, p_logit=of_masks.macs.args[0].method.settings.p_logit)
    assert torch.equal(of_masks.run().plan.alive, masks.run(images).plan.alive)
    assert 0 < planner.macs(planner.run()) < fixed.macs(fixed.run()) < dense.macs(dense.run())


def test_a_variant_that_fails_leaves_the_others(variants: list[Variant], caplog: pytest.LogCaptureFixture) -> None:
    base, images = make_backbone("digits"), make_images("digits")

    def broken() -> Run:
        raise RuntimeError("no kernel image is available")

    failing = replace(variants[1], name="failing", run=broken)
    with torch.inference_mode():
        rows, wrong = measure([variants[0], failing, variants[1]], base, images, 1, torch.float32, COMMON)
        with pytest.raises(RuntimeError, match="no kernel image"):
            measure([failing, variants[0]], base, images, 1, torch.float32, COMMON)
    assert wrong == ["failing"] and [row.variant for row in rows] == [variants[0].name, variants[1].name]
    assert "no kernel image is available" in caplog.text
