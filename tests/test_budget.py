"""A budget instead of a knob: from Python, from the command line, in artifacts, rows and reports."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertForSequenceClassification

import sttabt
from conftest import make_bert, make_text
from sttabt.cli.composition import compose_settings
from sttabt.cli.forecast import work_of
from sttabt.cli.sweep import jobs_at_budget
from sttabt.core.text import Text
from sttabt.data import load_splits
from sttabt.errors import UserError
from sttabt.lit.loggers import JobLoggers
from sttabt.methods.schedules import settings_at
from sttabt.methods.tome import Tome
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.card import results
from sttabt.pipeline.stage import Context
from sttabt.pipeline.stages import budget as budget_stage
from sttabt.pipeline.stages import pruned_model, run_stages
from sttabt.report.build import make_report
from sttabt.report.points import to_points
from sttabt.report.rows import Row
from sttabt.report.table import format_table
from sttabt.settings import method_settings
from sttabt.store.artifacts import read_record
from sttabt.store.job import Job
from test_report import make_row

JOB = Job("test", "alone", False, "")


LENGTHS_ALIKE = ("evit", "forward_topk", "pitome", "random", "tome")  # a share of tokens is the same of all lengths

# --- Python


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", patch_size=4, img_size=32, num_classes=5)  # 65 tokens


def images() -> list[Tensor]:
    return list(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)).split(4))


def share(model: PrunedModel, batches: Sequence[Tensor]) -> float:
    """Of the dense model's multiply-adds, as it is deployed."""
    frozen = sttabt.freeze(model)
    runs = [frozen.run(batch) for batch in batches]
    spent = sum(sum(frozen.macs(run).values()) for run in runs)
    return spent / sum(sum(model.dense_macs(run.real).values()) for run in runs)


@pytest.mark.parametrize("method", ["backtracking", "backtracking_actual", "concrete", "forward_topk", "ltp", "random"])
def test_half_of_the_multiply_adds_in_one_line(method: str) -> None:
    asked = 0.7 if method == "backtracking_actual" else 0.5  # its trace is a dense run
    model = sttabt.prune(vit(), method, budget=asked, calibration=images())
    found = model.calibration
    assert found is not None and (found.of, found.asked) == ("macs_share", asked)
    if method != "backtracking_actual":
        assert found.reached == pytest.approx(asked, rel=0.02)
        assert share(model, images()) == pytest.approx(found.reached, rel=1e-6)
    else:
        assert 0.8 < found.reached < 1, "what nothing can reach is the nearest that can"
    given = {**model.method.settings.at_budget, found.dial: found.value}
    other = sttabt.prune(vit(), method, approx=model.approx or 4, **given)
    with torch.inference_mode():
        assert torch.equal(other(images()[0]), model(images()[0])), "the value that was found, given by hand"


@pytest.mark.parametrize("method", ["backtracking", "random"])
def test_few_tokens_are_no_obstacle(method: str) -> None:
    """A token more or less in every layer is 1.5 % of 65: layers differ by one instead."""
    for asked in (0.6, 0.45, 0.35, 0.3):
        model = sttabt.prune(vit(), method, approx=8, budget=asked, calibration=images())
        assert share(model, images()) == pytest.approx(asked, rel=0.02)


def test_what_was_found_goes_with_the_model() -> None:
    model = sttabt.prune(vit(), "forward_topk", budget=0.5, calibration=images())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), sttabt.freeze(model)):
        assert other.calibration == model.calibration
        assert other.method.settings == model.method.settings
    assert sttabt.prune(vit(), "forward_topk").calibration is None


def test_a_model_is_calibrated_again_after_distillation() -> None:
    model = sttabt.prune(vit(), "concrete", budget=0.6, calibration=images())
    sttabt.distil(model, images(), learning_rate=1e-3)
    assert sttabt.calibrate(model, 0.5, images()) is model
    assert model.calibration is not None and model.calibration.asked == 0.5
    assert share(model, images()) == pytest.approx(0.5, rel=0.02)


def test_batches_are_read_as_distil_reads_them() -> None:
    labelled = DataLoader(TensorDataset(torch.cat(images()), torch.zeros(8)), batch_size=4)
    one, other = (sttabt.prune(vit(), "ltp", budget=0.5, calibration=each) for each in (labelled, images()))
    assert one.calibration == other.calibration
    text = make_text()
    encoding = {"input_ids": text.ids, "token_type_ids": text.types, "attention_mask": text.real.long()}
    bert = make_bert().model
    assert isinstance(bert, BertForSequenceClassification)
    model = sttabt.prune(bert, "random", budget=0.5, calibration=[encoding])
    assert model.calibration is not None and model.calibration.reached == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("baseline", "of", "name"),
    [("deployed", "time_ratio_frozen", "test_vit"), ("library", "time_ratio", "test_vit"), ("library", "", "bert")],
)
def test_a_share_of_time_is_measured_against_the_baseline_that_is_named(baseline: str, of: str, name: str) -> None:
    budget = sttabt.Budget(time=0.5, baseline=baseline, rounds=1)
    given = (vit(), images()) if name == "test_vit" else (make_bert().model, [make_text()])
    model = sttabt.prune(given[0], "forward_topk", budget=budget, calibration=given[1])
    found = model.calibration
    assert found is not None and found.of == (of or "time_ratio") and found.reached > 0
    assert model.method.settings.keep_ratio == found.value


def test_time_that_follows_the_tokens_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by the tokens that are computed, and jitters."""
    noise = torch.Generator().manual_seed(0)

    def passes(name: str, run: Any) -> float:
        kept = 1.0 if name == "frozen" else run().mean_kept
        return (0.1 + 0.9 * kept) * float(1 + 0.02 * torch.randn((), generator=noise))

    from sttabt.timing.interleaved import Timing

    def pretended(variants: dict[str, Any], baseline: str, rounds: int) -> dict[str, Timing]:
        seconds = {name: [passes(name, run) for _ in range(rounds)] for name, run in variants.items()}
        base = Timing(seconds[baseline], [])
        return {name: Timing(taken, []).against(base) for name, taken in seconds.items()}

    class Kept:
        def __init__(self, runs: list[Any]) -> None:
            self.mean_kept = float(torch.cat([run.plan.occupancy() for run in runs]).mean())

    monkeypatch.setattr("sttabt.models.budget.time_interleaved", pretended)
    monkeypatch.setattr("sttabt.models.budget.over", lambda items, run: lambda: Kept([run(item) for item in items]))
    model = sttabt.prune(vit(), "forward_topk", budget=sttabt.Budget(time=0.5), calibration=images())
    assert model.calibration is not None and model.calibration.reached == pytest.approx(0.5, rel=0.03)
    kept = Kept([model.run(batch) for batch in images()]).mean_kept
    assert 0.1 + 0.9 * kept == pytest.approx(0.5, rel=0.05)


def test_what_cannot_be_reached_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = sttabt.prune(vit(), "tome", budget=0.1, calibration=images())
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("budget.macs=0.1 cannot be reached by ToMe: sparsity.share=")
    assert line.endswith("of the dense, the nearest that can")
    lowest = sttabt.prune(vit(), "tome", merged=1000)
    assert share(model, images()) == share(lowest, images())


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("dense", {"budget": 0.5}, "budget.macs=0.5: dense has no setting that moves its cost"),
        ("random", {"budget": 0.5, "keep_ratio": 0.4}, "finds sparsity.keep_ratio: leave sparsity.keep_ratio=0.4 out"),
        ("ltp", {"budget": 0.5, "mask_weight": 0.4}, "finds sparsity.mask_weight: leave"),
        ("concrete", {"budget": 0.5, "p_logit": -1}, "finds sparsity.p_logit: leave sparsity.p_logit=-1.0 out"),
        ("backtracking", {"budget": 0.5, "dynamic": True}, "moves sparsity.keep_ratio, which has no effect here: "
         "sparsity.dynamic=true chooses the count"),
        ("random", {"budget": 1.5}, "budget.macs=1.5 is out of range: it must be above 0 and at most 1, or 0"),
        ("random", {"budget": 0}, "budget asks for nothing: give a share above 0 and at most 1"),
        ("random", {"budget": sttabt.Budget(macs="0.5")}, "budget.macs='0.5' is no number: it must be above 0"),
        ("random", {"budget": "half"}, "budget='half' is no share"),
        ("random", {"budget": sttabt.Budget(macs=0.5, time=0.5)}, "budget.macs=0.5 and budget.time=0.5 cannot both"),
        ("random", {"budget": sttabt.Budget(time=0.5, baseline="librry")}, "did you mean 'library'?"),
        ("random", {"budget": sttabt.Budget(macs=0.5, samples=2)}, "budget.samples=2 has no effect beside calibration"),
        ("random", {"budget": sttabt.Budget(time=0.5, batch=2)}, "budget.batch=2 has no effect beside calibration"),
        ("random", {"budget": sttabt.Budget(macs=0.5, rounds=2)}, "budget.rounds=2 has no effect: budget.time=0"),
        ("random", {"budget": 0.5, "calibration": None}, "budget and calibration belong together"),
        ("random", {"budget": 0.5, "calibration": []}, "calibration gave nothing"),
        ("random", {"budget": 0.5, "calibration": 3}, "calibration is a int"),
        ("random", {"budget": 0.5, "calibration": images()[0]}, "calibration is a Tensor: give a DataLoader or a list"),
        ("random", {"budget": 0.5, "calibration": [torch.full((2, 3, 32, 32), torch.nan)]}, "NaN"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(method: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        sttabt.prune(vit(), method, **({"calibration": images()} | arguments))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("method", LENGTHS_ALIKE)
@torch.inference_mode()
def test_a_budget_asks_the_same_share_of_texts_of_every_length(method: str) -> None:
    """Of pairs in number short texts would lose nearly all, and long ones little."""
    bert, generator = make_bert(layers=4), torch.Generator().manual_seed(2)
    short, long = (torch.randint(5, 60, (4, length), generator=generator) for length in (8, 24))
    both = [Text(each, torch.zeros_like(each), torch.ones_like(each, dtype=torch.bool)) for each in (short, long)]
    model = sttabt.prune(bert.model, method, budget=0.6, calibration=both)
    kept = [model.run(each).plan.occupancy()[:, 1:].mean().item() for each in both]
    assert kept[0] == pytest.approx(kept[1], abs=0.15), "whole tokens of 8 are steps of an eighth"


def test_a_budget_of_everything_merges_nothing() -> None:
    model = sttabt.prune(vit(), "tome", budget=1.0, calibration=images())
    assert (model.method.settings.share, model.method.settings.merged) == (0, 0)
    assert share(model, images()) == share(sttabt.prune(vit(), "tome", merged=0), images())


def test_a_schedule_at_a_budget_moves_what_the_budget_finds() -> None:
    asked = method_settings("tome")(method="tome", schedules={"keep": {"start": 1.0}})
    aimed = asked.aimed(0.1, 0.5)
    pairs = [Tome(settings_at(aimed, done), 5, 1).pairs([40]) for done in (0.0, 0.5, 1.0)]
    assert [layers[0][0] for layers in pairs] == [0, 2, 4], "no pairs at first, a tenth of the tokens at last"
    nothing = Tome(asked.aimed(0.0, 1.0), 5, 1).pairs([40])
    assert not any(layer[0] for layer in nothing), "a budget of everything trains without merging"
    with pytest.raises(UserError, match=r"merged has no effect: budget\.macs=0\.5 moves sparsity\.share instead"):
        compose_settings([
            "experiment=quickstart", "sparsity=tome", "sparsity.training.epochs=1", "budget.macs=0.5",
            "schedule=none", "+sparsity.schedules.merged.start=1",
        ])  # fmt: skip


def test_what_lies_between_two_steps_is_not_said_to_be_out_of_reach(caplog: pytest.LogCaptureFixture) -> None:
    """A cascade goes in steps of a sample: of 8 at 0.5 of the dense model each costs a tenth of it."""
    few = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))]
    with caplog.at_level(logging.WARNING):
        model = sttabt.prune(vit(), "cascade", approx=4, budget=0.5, calibration=few)
    _, first, second = (record.getMessage() for record in caplog.records)  # the first: nothing is distilled
    found = model.calibration
    assert found is not None and abs(found.reached - 0.5) > 0.01
    assert first.startswith("budget.macs=0.5 lies between two steps of cascade: sparsity.sure=")
    assert second.endswith("give more calibration batches")


def test_a_frozen_model_is_not_calibrated() -> None:
    with pytest.raises(UserError, match="calibrate the model that was frozen"):
        sttabt.calibrate(sttabt.freeze(sttabt.prune(vit(), "random")), 0.5, images())


# --- runs


def settings_of(*overrides: str, output: str = "out") -> Any:
    given = ["experiment=debug", "logger=none", "evaluation.gallery=0", "evaluation.timing_rounds=0", *overrides]
    return compose_settings(given, output=output)


def made(stage: str) -> list[Path]:
    return sorted(path for path in Path("artifacts", stage).glob("*/"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """Rows of jobs at half of the multiply-adds, in a folder of their own."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for method in ("forward_topk", "backtracking", "concrete", "ltp"):
            run_stages(settings_of(f"sparsity={method}", "budget.macs=0.5", output=method), JOB)
        return {path.parent.name: Row.read(path) for path in folder.glob("*/row.json")}


@pytest.mark.parametrize("method", ["forward_topk", "backtracking", "concrete", "ltp"])
def test_a_row_says_what_was_asked_reached_and_found(method: str, runs: dict[str, Row]) -> None:
    row = runs[method]
    assert row.budget is not None and (row.budget_of, row.budget["asked"]) == ("macs_share", 0.5)
    assert row.budget["reached"] == pytest.approx(0.5, rel=0.02)
    assert row.macs_share == pytest.approx(0.5, rel=0.05), "on the test split"
    names = {"concrete": ["p_logit", "p_logit_shift"], "ltp": ["keep_target", "threshold_scale"]}
    assert sorted(row.found) == names.get(method, ["keep_ratio"])
    assert all(row.settings[name] == row.budget[f"found.{name}"] for name in row.found)


def test_training_aims_at_the_budget(runs: dict[str, Row], monkeypatch: pytest.MonkeyPatch) -> None:
    """At the share of tokens that the untrained model keeps there; the dial is turned afterwards alone."""
    monkeypatch.chdir(_folder(runs))
    for method, aim in (("concrete", "p_logit"), ("ltp", "keep_target")):
        (trained,) = [
            record["description"]["sparsity"]
            for record in (read_record(path / "artifact.json") for path in made("prune"))
            if record["description"]["sparsity"]["method"] == method
        ]
        kept = [
            record["notes"]["calibration"]["kept"]
            for record in (read_record(path / "artifact.json") for path in made("budget"))
            if record["description"]["sparsity"]["method"] == method and "prune" not in record["description"]
        ]
        expected = torch.logit(torch.tensor(kept)) if method == "concrete" else torch.tensor(kept)
        assert [trained[aim]] == pytest.approx(expected.tolist(), rel=1e-5)
        assert trained.get("p_logit_shift", 0) == 0 and trained.get("threshold_scale", 1) == 1
        assert runs[method].settings[aim] == trained[aim]


def test_the_same_job_makes_nothing_again_and_another_budget_only_what_it_needs(
    runs: dict[str, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(_folder(runs))
    before = {stage: made(stage) for stage in ("base", "approx", "prune", "budget", "evaluate")}
    run_stages(settings_of("sparsity=concrete", "budget.macs=0.5", output="again"), JOB)
    assert {stage: made(stage) for stage in before} == before
    again = Row.read("again/row.json")
    assert (again.budget, again.score) == (runs["concrete"].budget, runs["concrete"].score)
    other = ["sparsity=forward_topk", "budget.macs=0.6"]
    run_stages(settings_of(*other, "stages=[base,approx,prune]", output="other"), JOB)
    assert len(made("budget")) == len(before["budget"]) + 1
    assert [made(stage) for stage in ("base", "approx", "prune")] == [before[s] for s in ("base", "approx", "prune")]
    with pytest.raises(UserError, match="make it with prune in stages"):
        run_stages(settings_of("sparsity=random", "budget.macs=0.6", "stages=[base,evaluate]", output="left"), JOB)


@pytest.mark.parametrize("method", ["forward_topk", "backtracking", "concrete", "ltp"])
def test_the_model_of_a_budget_loads(
    method: str, runs: dict[str, Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(_folder(runs))
    settings = settings_of(f"sparsity={method}", "budget.macs=0.5", output=str(tmp_path))
    pruned = pruned_model(Context(settings, JOB, JobLoggers(settings, JOB)))
    folder = pruned.artifacts["budget"].folder
    model = sttabt.load(folder)
    assert model.calibration == pruned.model.calibration is not None
    assert model.method.settings == pruned.context.settings.sparsity
    inputs = torch.randn(5, 1, 28, 28)
    with torch.inference_mode():
        assert torch.equal(model(inputs), pruned.model(inputs))
    with pytest.raises(UserError, match="leave method and settings out"):
        sttabt.load(folder, keep_ratio=0.1)
    card = (folder / "README.md").read_text()
    assert "macs_share 0.5 of the dense model's asked for" in card and f"artifacts/budget/{folder.name}" in card
    assert [row.method for row in results(folder)] == [method], "the result is that of the model at its budget"


def test_time_is_a_budget_of_this_machine(own_folder: None) -> None:
    run_stages(settings_of("sparsity=forward_topk", "budget.time=0.5", "budget.batch=2", "budget.rounds=1"), JOB)
    row = Row.read("out/row.json")
    assert row.budget_of == "time_ratio_frozen" and row.budget is not None and row.budget["reached"] > 0
    (folder,) = made("budget")
    asked = read_record(folder / "artifact.json")["description"]["asked"]
    assert asked["threads"] == torch.get_num_threads() and (asked["batch"], asked["baseline"]) == (2, "deployed")


@pytest.mark.parametrize(
    ("samples", "hint"), [(40, "budget.samples=0 counts all of validation"), (0, "validation has no more")]
)
def test_few_samples_of_a_cascade_say_what_is_to_be_done(
    samples: int, hint: str, own_folder: None, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of("sparsity=cascade", "budget.macs=0.5", f"budget.samples={samples}", "fast_dev_run=0")
    model: Any = None  # is not asked
    assert budget_stage.BudgetStage(Context(settings, JOB, JobLoggers(settings, JOB)), {}, model)._more == hint


def test_time_of_a_cascade_is_that_of_samples_of_which_as_many_go_on_as_of_all(
    own_folder: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever its threshold stands; of the first few samples by chance more or fewer go on."""
    settings, seen = settings_of("sparsity=cascade", "budget.time=0.5", "budget.batch=8", "budget.rounds=1"), []
    found = budget_stage.calibrate

    def noted(model: PrunedModel, batches: list[Tensor], *rest: Any) -> Any:
        seen.append((copy.deepcopy(model), batches))
        return found(model, batches, *rest)

    monkeypatch.setattr(budget_stage, "calibrate", noted)
    with caplog.at_level(logging.WARNING):
        run_stages(settings, JOB)
    assert not [each for each in caplog.records if "validation" in each.getMessage()], "no other samples would help"
    ((model, batches),) = seen
    assert model.approx is not None and [len(each) for each in batches] == [8] * 4
    network, images = model.approx.backbone.eval(), load_splits(settings.dataset).validation
    every = torch.stack([images[place].inputs for place in range(len(images))])  # type: ignore[arg-type]
    with torch.inference_mode():
        of_all, of_batches = (network(each).softmax(-1).amax(-1) for each in (every, torch.cat(batches)))
    for share in (0.1, 0.3, 0.6, 0.9):
        threshold = of_all.quantile(share)
        assert (of_batches < threshold).float().mean() == pytest.approx(share, abs=1 / 32)


def test_texts_have_budgets_over_real_tokens(own_folder: None) -> None:
    from test_computations import COMMON, TRAINING, _text

    nodes = ("model.training", "approx.training", "sparsity.training")
    given = [*COMMON, *_text(), *(f"{node}.{each}" for node in nodes for each in TRAINING), "sparsity=concrete"]
    run_stages(compose_settings([*given, "budget.macs=0.5"], output="out"), JOB)
    row = Row.read("out/row.json")
    assert row.budget is not None and row.budget["reached"] == pytest.approx(0.5, rel=0.02)


def test_averaged_weights_have_the_same_dial(own_folder: None) -> None:
    settings = settings_of("sparsity=concrete", "sparsity.ema=0.5", "budget.macs=0.5")
    pruned = pruned_model(Context(settings, JOB, JobLoggers(settings, JOB)))
    assert pruned.averaged is not None
    assert pruned.averaged.method.settings == pruned.model.method.settings == pruned.context.settings.sparsity


def _folder(runs: dict[str, Row]) -> Path:
    folder = runs["concrete"].folder
    assert folder is not None
    return folder.parent


# --- sweeps and reports


GRIDS = [
    {"sparsity": ["sparsity=dense"]},
    {"sparsity": ["sparsity=random"], "sparsity.keep_ratio": ["sparsity.keep_ratio=0.3", "sparsity.keep_ratio=0.7"]},
    {"sparsity": ["sparsity=ltp"], "sparsity.mask_weight": ["sparsity.mask_weight=1"], "seed": ["seed=0", "seed=1"]},
]
ASKED = {"budget.macs": ["budget.macs=0.7", "budget.macs=0.5"]}


def test_budgets_take_the_place_of_the_knobs_of_a_grid() -> None:
    assert jobs_at_budget(GRIDS, ASKED) == [
        ["sparsity=dense"],
        *(["sparsity=random", f"budget.macs={share}"] for share in (0.7, 0.5)),
        *(["sparsity=ltp", f"seed={seed}", f"budget.macs={share}"] for seed in (0, 1) for share in (0.7, 0.5)),
    ]
    by_hand = jobs_at_budget(GRIDS, {"sparsity.keep_ratio": ["sparsity.keep_ratio=0.1"], **ASKED})
    assert ["sparsity=random", "sparsity.keep_ratio=0.1", "budget.macs=0.5"] in by_hand, "which is refused"
    assert jobs_at_budget(GRIDS, {"budget.macs": ["budget.macs=0"]})[1][2] == "sparsity.keep_ratio=0.3"
    refused = jobs_at_budget(GRIDS, {"sparsity": ["sparsity=dense"], **ASKED})
    assert refused == [["sparsity=dense", "budget.macs=0.7"], ["sparsity=dense", "budget.macs=0.5"]]
    control = {"sparsity": ["sparsity=random"], "sparsity.keep_ratio": ["sparsity.keep_ratio=1.0"]}
    both = [control, {"sparsity": ["sparsity=random"], "budget.macs": ["budget.macs=0.3"]}]
    one = jobs_at_budget(both, {"budget.macs": ["budget.macs=0.5"]})
    assert one == [["sparsity=random", "sparsity.keep_ratio=1.0"], ["sparsity=random", "budget.macs=0.5"]]
    assert jobs_at_budget([], ASKED) == [["budget.macs=0.7"], ["budget.macs=0.5"]]


COUNTED = [  # as an experiment of rivals
    {"sparsity": ["sparsity=dense"]},
    {"sparsity": ["sparsity=tome", "sparsity=evit"], "budget.macs": ["budget.macs=0.7", "budget.macs=0.5"]},
    {"sparsity": ["sparsity=cascade"], "budget.macs": ["budget.macs=0.7"], "budget.samples": ["budget.samples=0"]},
    {"sparsity": ["sparsity=evit"], "sparsity.keep_ratio": ["sparsity.keep_ratio=1.0"]},
]
TIMED = [{"sparsity": ["sparsity=tome"], "budget.time": ["budget.time=0.5"], "budget.batch": ["budget.batch=8"]}]


@pytest.mark.parametrize("shares", [["0.5"], ["0.5", "0.35"]])
def test_a_budget_takes_the_place_of_one_of_another_kind(shares: list[str], caplog: pytest.LogCaptureFixture) -> None:
    times = [f"budget.time={share}" for share in shares]
    with caplog.at_level(logging.INFO):
        jobs = jobs_at_budget(COUNTED, {"budget.time": times})
    assert jobs == [
        ["sparsity=dense"],
        *([f"sparsity={method}", time] for method in ("tome", "evit", "cascade") for time in times),
        ["sparsity=evit", "sparsity.keep_ratio=1.0"],
    ]
    assert caplog.messages == [
        f"budget.time={','.join(shares)} takes the place of budget.macs and budget.samples in the grids; jobs that are"
        " alike run once"
    ]


def test_it_does_so_in_both_directions_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    assert jobs_at_budget(TIMED, {"budget.macs": ["budget.macs=0.3"]}) == [["sparsity=tome", "budget.macs=0.3"]]
    with caplog.at_level(logging.INFO):
        own = jobs_at_budget(COUNTED, {"budget.macs": ["budget.macs=0.3"]})
        off = jobs_at_budget(COUNTED, {"budget.time": ["budget.time=0"]})
    assert ["sparsity=cascade", "budget.macs=0.3", "budget.samples=0"] in own
    assert ["budget.time=0", "sparsity=tome", "budget.macs=0.7"] in off
    assert caplog.messages == []


@pytest.mark.parametrize("grids", [[], COUNTED, TIMED])
def test_budgets_of_two_kinds_are_refused_before_any_job(grids: Any) -> None:
    given = {"budget.time": ["budget.time=0.5"], "budget.macs": ["budget.macs=0.7", "budget.macs=0.5"]}
    with pytest.raises(UserError, match=r"^budget.macs=0.7,0.5 and budget.time=0.5 cannot both be kept: give one$"):
        jobs_at_budget(grids, given)


def test_a_forecast_knows_a_budget() -> None:
    jobs = [settings_of("sparsity=concrete", f"budget.macs={share}") for share in (0.5, 0.4)]
    first, second = (work_of(job) for job in jobs)
    assert [work.stage for work in first] == ["base", "approx", "prune", "budget", "evaluate"]
    assert [a.key == b.key for a, b in zip(first, second, strict=True)] == [True, True, False, False, False]


def at_budget(asked: float, seed: int = 0, of: str = "macs_share") -> Row:
    """A row whose knob was found, another for each seed."""
    found = asked + 0.01 * seed
    budget = {"asked": asked, "reached": asked + 0.001, "found.keep_ratio": found}
    return make_row("random", found, seed=seed, settings={"keep_ratio": found}, budget=budget, budget_of=of)


def test_rows_of_one_budget_are_one_point_of_a_curve() -> None:
    rows = [at_budget(asked, seed) for asked in (0.7, 0.5) for seed in (0, 1)]
    points = to_points([*rows, at_budget(0.5, of="time_ratio_frozen"), make_row("random", 0.5)])
    assert [(point.setting, len(point.rows)) for point in points] == [
        ("budget 0.5 of frozen time", 1),
        ("keep_ratio 0.5", 1),
        ("budget 0.5 of macs", 2),
        ("budget 0.7 of macs", 2),
    ]
    assert {point.series for point in points} == {"random"}
    table = format_table(rows)
    assert "| budget 0.5 of macs |" in table and "keep_ratio 0.505 ± 0.007" in table
    assert "reached, when found" not in format_table([make_row("random", 0.5)])


def test_a_report_has_an_axis_of_budgets(tmp_path: Path) -> None:
    for number, row in enumerate([make_row("dense"), at_budget(0.5), at_budget(0.7)]):
        row.write(tmp_path / str(number) / "row.json")
    files = make_report([tmp_path], tmp_path / "report")
    assert "budget (share of dense)" in files.page.read_text()
    head = (tmp_path / "report" / "pareto.csv").read_text().splitlines()[0]
    assert "budget.asked" in head
    assert read_again(tmp_path / "report" / "table.csv") == [at_budget(0.5), at_budget(0.7)]


def read_again(path: Path) -> list[Row]:
    from sttabt.report.csv_rows import read_table

    rows, broken = read_table(path)
    assert broken == []
    return [row for row in rows if row.budget]
