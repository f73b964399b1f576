"""Scores and classes, images and texts: metrics of whole splits, regression, padding, and given weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from scipy import stats
from sklearn import metrics as reference
from torch import Tensor, nn

import sttabt.pipeline.stage
from sttabt.backbones.inputs import check_rows
from sttabt.backbones.vit import ViT
from sttabt.cli.composition import compose_settings
from sttabt.core.distill import prediction_divergence, prediction_error
from sttabt.core.text import Text
from sttabt.data import load_splits
from sttabt.data.base import Batch, Sequences, Splits, evaluation_loader
from sttabt.data.task import Task, score_of
from sttabt.engine.dense import run_dense
from sttabt.errors import UserError
from sttabt.lit.fit import fit
from sttabt.lit.loggers import JobLoggers
from sttabt.lit.modules import BaseTraining
from sttabt.methods import find_method
from sttabt.models.pruned import PrunedModel
from sttabt.pipeline.evaluation import (
    attention_error,
    evaluate,
    gallery,
    padded_occupancy,
    time_against_dense,
    validate,
)
from sttabt.pipeline.samples import dealt
from sttabt.pipeline.stage import Context
from sttabt.pipeline.stages import base_model, run_stages
from sttabt.pretrained.timm_model import build_timm
from sttabt.report.build import make_report
from sttabt.report.gallery import TextGallery, read_gallery
from sttabt.report.rows import Row
from sttabt.settings import Settings, method_settings
from sttabt.store.job import Job
from test_report import make_row

JOB = Job(command="python -m sttabt.run experiment=test", sweep="sweep", multirun=True, commit="0123")
SMALL = [
    "name=test",
    *("model=test_vit", "model.width=32", "model.heads=1", "model.depth=1", "model.patch_size=14"),
    *("dataset=digits", "dataset.augment=false", "hardware=cpu", "hardware.batch_size=32", "logger=none"),
    *("evaluation.timing_rounds=0", "evaluation.gallery=0", "fast_dev_run=2"),
]
SCORE: dict[str, Any] = {"dataset__task": "regression", "dataset__classes": 1, "dataset__metric": "pearson"}
ARCHITECTURE = {"patch_size": 14, "embed_dim": 32, "depth": 1, "num_heads": 1, "mlp_ratio": 2}


# --- metrics


def _reference(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(
        {
            "accuracy": reference.accuracy_score,
            "matthews": reference.matthews_corrcoef,
            "f1": reference.f1_score,
            "pearson": lambda a, b: stats.pearsonr(a, b)[0],
            "spearman": lambda a, b: stats.spearmanr(a, b)[0],
        }[name](labels, predictions)
    )


@pytest.mark.parametrize(
    ("metric", "classes"),
    [("accuracy", 5), ("matthews", 2), ("matthews", 5), ("f1", 2), ("pearson", 1), ("spearman", 1)],
)
def test_metrics_of_a_whole_split_equal_scipy_and_sklearn(metric: str, classes: int) -> None:
    task = Task(metric, classes)
    generator = torch.Generator().manual_seed(5)
    logits = 40 + torch.randn(103, classes, generator=generator)  # far from 0: running sums lose digits there
    if classes == 1:
        labels = (logits[:, 0] + torch.randn(103, generator=generator)).round()  # with ties
    else:
        labels = torch.where(torch.rand(103, generator=generator) < 0.6, logits.argmax(-1), 0)
    found = task.new_metric(metric)
    batches = list(zip(logits.split(16), labels.split(16), strict=True))
    assert len(batches[-1][0]) == 7, "a mean of batch means would weigh it like the others"
    for some, own in batches:
        found.update(task.read(some), own)
    expected = _reference(metric, task.read(logits).numpy(), labels.numpy())
    assert score_of(found) == pytest.approx(expected, abs=1e-6)
    assert 0.1 < abs(expected) < 0.99


def test_metrics_beside_the_reported_one() -> None:
    assert Task("accuracy", 2).metrics == ("accuracy", "matthews", "f1")
    assert Task("matthews", 3).metrics == ("matthews", "accuracy")
    assert Task("spearman", 1).metrics == ("spearman", "pearson")


def test_the_correlation_with_a_constant_is_zero() -> None:
    metric = Task("pearson", 1).new_metric("pearson")
    metric.update(torch.full((6,), 2.5), torch.arange(6.0))
    assert score_of(metric) == 0


def test_the_prediction_of_a_score_is_distilled_by_its_squared_error() -> None:
    student, teacher = torch.tensor([[1.0], [3.0]], requires_grad=True), torch.tensor([[2.0], [5.0]])
    for loss in (prediction_error, prediction_divergence):
        found = loss(student, teacher)
        assert float(found) == 2.5
        (gradient,) = torch.autograd.grad(found, student)
        assert gradient.flatten().tolist() == [-1, -2], "the softmax of one logit would have none"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.task=regresion"], "did you mean 'regression'"),
        (["model.fine_tune=true"], "has no weights to start from"),
        (["approx.start=general"], r"set approx\.start=interpolated for images"),
        (["stages=[general]"], r"leaves nothing to do with approx\.start=interpolated"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        compose_settings([*SMALL, *overrides])
    assert "\n" not in str(error.value)


# --- a score of images


def _score_splits(settings: Settings) -> Splits:
    """Digits whose score is how dark their upper half is, standardised: the network can learn it."""
    whole = load_splits(settings.dataset)
    digits: Any = whole.train.source  # the same of all splits
    darkness = digits.images[:, 0, :4].mean((1, 2))
    digits.labels = ((darkness - darkness.mean()) / darkness.std()).tolist()
    return replace(whole, class_names=())


def test_regression_learns_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = [each for each in SMALL if not each.startswith("fast_dev_run")]
    settings = compose_settings(
        [*common, "model.training.epochs=4", "model.training.learning_rate=0.003", "sparsity=forward_topk"]
    )
    splits = _score_splits(settings)
    torch.manual_seed(0)
    base = build_timm("test_vit", ARCHITECTURE, classes=1, channels=1, image_size=28)
    task = Task("pearson", 1)
    module = BaseTraining(base, settings.model.training, task)
    fit(module, splits, settings, tmp_path, [])
    logged = float(module.trainer.callback_metrics["base/validation_pearson"])
    model = PrunedModel(base.eval(), find_method("forward_topk")(settings.sparsity, base.layers, base.outputs)).eval()
    found = evaluate(model, splits.test, task, batch_size=100)  # 360: the last batch is smaller
    with torch.no_grad():
        images = torch.stack([splits.test[index].inputs for index in range(360)])  # type: ignore[arg-type]
        labels = torch.stack([splits.test[index].labels for index in range(360)])  # type: ignore[arg-type]
        predictions = model.run(images).logits[:, 0]
    assert logged > 0.9 and found.dropped > 0.8
    assert found.dropped == pytest.approx(stats.pearsonr(predictions, labels)[0], abs=1e-5)
    assert found.others == {"spearman": pytest.approx(stats.spearmanr(predictions, labels)[0], abs=1e-5)}
    assert found.masked == pytest.approx(found.dropped, abs=1e-5)
    assert found.loss == pytest.approx(float((predictions - labels).square().mean()), rel=1e-5)
    alone = validate(model, splits.test, task, batch_size=70)
    shares = [sum(macs.values()) for macs in (found.macs, found.dense_macs)]
    assert (alone.score, alone.loss) == pytest.approx((found.dropped, found.loss), rel=1e-5)
    assert alone.macs_share == pytest.approx(shares[0] / shares[1], rel=1e-9)
    assert found.occupancy_padded is None, "images have no padding"


@pytest.mark.parametrize("method", ["dense", "concrete"])
def test_a_regression_runs_through_all_stages(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = _images([*SMALL, f"sparsity={method}"], "output", **SCORE | {"dataset__metric": "spearman"})
    plain = compose_settings(SMALL)
    monkeypatch.setattr(sttabt.pipeline.stage, "load_splits", lambda *_: _score_splits(plain))
    run_stages(settings, JOB)
    row = Row.read("output/row.json")
    assert (row.metric, set(row.other_scores)) == ("spearman", {"pearson"})
    assert -1 <= row.score <= 1
    text = make_report(["output"]).table.read_text()
    assert "Spearman correlation on test" in text and "Spearman correlation x 100" in text


# --- rows


def test_a_negative_correlation_survives_the_disk_and_is_reported(tmp_path: Path) -> None:
    row = make_row(metric="pearson", score=-0.25, score_soft=-0.5, other_scores={"spearman": -0.3})
    row.write(tmp_path / "row.json")
    assert Row.read(tmp_path / "row.json") == row
    report = make_report([tmp_path])
    table, page = report.table.read_text(), report.page.read_text()
    assert "Pearson correlation x 100" in table and "-25.00" in table and "accuracy" not in table
    assert "Pearson correlation (x 100)" in page and "spearman -30.00" in page


# --- texts: a vision transformer that reads words


class _WordReader(ViT):
    """A small stand-in for a text encoder, on padded batches."""

    may_pad = True

    def __init__(self, words: int = 30, longest: int = 12, classes: int = 3) -> None:
        torch.manual_seed(6)
        arguments = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
        inner = build_timm("vit_tiny_patch16_224", arguments, classes=classes, channels=3, image_size=32)
        super().__init__(inner.model)
        self.table, self.places = nn.Embedding(words, 32), nn.Embedding(longest, 32)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))

    def check_inputs(self, inputs: Text) -> None:
        check_rows(inputs.real)

    def unreadable(self, inputs: Any) -> None:
        """`check_inputs` has looked."""

    def forward(self, inputs: Any) -> Tensor:
        return run_dense(self, inputs).logits

    def real(self, inputs: Any) -> Tensor:
        return inputs.real

    def embed(self, inputs: Any) -> Tensor:
        return self.table(inputs.ids) + self.places.weight[: inputs.ids.shape[1]]

    def embed_tokens(self, inputs: Any, sample: Tensor, token: Tensor) -> Tensor:
        return self.table(inputs.ids[sample, token]) + self.places(token)


class _Sentences(Sequences):
    """Sentences of 3 to 12 words, with the labels that the dense model gives half of them."""

    def __init__(self, base: _WordReader, count: int) -> None:
        generator = torch.Generator().manual_seed(9)
        self.lengths = torch.randint(3, 13, (count,), generator=generator).numpy()
        self.texts = [torch.randint(1, 30, (int(length),), generator=generator) for length in self.lengths]
        with torch.no_grad():
            predicted = [int(base(_text([ids])).argmax()) for ids in self.texts]
        self.labels = [label if index % 2 else 0 for index, label in enumerate(predicted)]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Batch:
        return Batch(_text([self.texts[index]]), torch.tensor([self.labels[index]]))

    def collate(self, items: Sequence[Batch]) -> Batch:
        return Batch(_text([item.inputs.ids[0] for item in items]), torch.cat([item.labels for item in items]))


def _text(rows: Sequence[Tensor]) -> Text:
    lengths = torch.tensor([len(row) for row in rows])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(real.shape, dtype=torch.long)
    ids[real] = torch.cat(list(rows))
    return Text(ids, torch.zeros_like(ids), real)


@pytest.fixture
def sentences() -> tuple[_WordReader, _Sentences]:
    base = _WordReader().eval()
    return base, _Sentences(base, 23)


def _pruned(base: _WordReader, method: str, **settings: object) -> PrunedModel:
    chosen = find_method(method)(method_settings(method)(method=method, **settings), base.layers, base.outputs)
    return PrunedModel(base, chosen).eval()


@pytest.mark.parametrize(
    ("method", "settings"), [("dense", {}), ("backtracking", {"attention": "actual", "keep_ratio": 0.5})]
)
@torch.inference_mode()
def test_evaluation_of_padded_texts_equals_one_text_at_a_time(
    method: str, settings: dict, sentences: tuple[_WordReader, _Sentences]
) -> None:
    base, dataset = sentences
    model = _pruned(base, method, **settings)
    found = evaluate(model, dataset, Task("matthews", 3), batch_size=5)
    predictions, logits, occupancy, dense, kept = [], [], [], [], []
    for index in range(23):
        run = model.run(dataset[index].inputs)
        logits.append(run.logits[0].numpy())
        alive = run.plan.alive[0].sum(-1)
        predictions.append(int(run.logits.argmax()))
        occupancy.append((alive / dataset.lengths[index]).tolist())
        dense.append(sum(model.dense_macs(run.real).values()))
        kept.append([dataset.lengths[index]] if method == "dense" else alive.tolist())
    assert found.samples == 23
    assert found.dropped == pytest.approx(reference.matthews_corrcoef(dataset.labels, predictions), abs=1e-6)
    assert found.others["accuracy"] == pytest.approx(reference.accuracy_score(dataset.labels, predictions))
    assert found.masked == pytest.approx(found.dropped, abs=1e-6)
    assert found.occupancy == pytest.approx(np.mean(occupancy, 0).tolist(), rel=1e-5)
    assert sum(found.dense_macs.values()) == pytest.approx(np.mean(dense))
    assert found.occupancy_padded == pytest.approx(np.mean([np.mean(own) for own in kept]) / max(dataset.lengths))
    assert found.occupancy_padded < np.mean(occupancy) or method == "dense"
    assert found.indices.tolist() == list(range(23)), "texts are read by length, and kept in their own order"
    assert found.labels.tolist() == dataset.labels and found.predictions.tolist() == predictions
    assert found.logits == pytest.approx(np.array(logits), abs=1e-5)
    cut = evaluate(model, dataset, Task("matthews", 3), batch_size=5, batches=2)
    longest = sorted(np.argsort(-dataset.lengths, kind="stable")[:10].tolist())
    assert sorted(dataset.lengths[cut.indices]) == sorted(dataset.lengths[longest])
    assert cut.predictions.tolist() == [predictions[index] for index in cut.indices]


def test_the_papers_keep_ratio_counts_positions_up_to_the_longest_of_a_group() -> None:
    kept = torch.tensor([[4, 2], [2, 2], [8, 4], [2, 0], [3, 3]])
    real = torch.tensor([4, 2, 10, 3, 3])
    expected = [(1 + 0.5) / 2, 0.5, (0.8 + 0.4) / 2, 0.1, 1.0]  # groups of 2: padded to 4, 10 and 3
    assert padded_occupancy(kept, real, group=2) == pytest.approx(np.mean(expected))


@torch.inference_mode()
def test_errors_of_attention_do_not_depend_on_padding(sentences: tuple[_WordReader, _Sentences]) -> None:
    base, dataset = sentences
    torch.manual_seed(1)
    other = _WordReader().eval()
    for parameter in other.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))

    class Traced(nn.Module):
        def forward(self, inputs: Any) -> Any:
            return run_dense(other, inputs).trace

    apart, together = (attention_error({"a": Traced()}, base, dataset, size)["a"] for size in (1, 23))  # type: ignore[dict-item]
    assert together == pytest.approx(apart, rel=1e-4)
    assert apart["mse"] > 1e-5


def test_time_of_padded_texts_is_compared_with_the_faster_dense_run(sentences: tuple[_WordReader, _Sentences]) -> None:
    base, dataset = sentences
    found = time_against_dense(_pruned(base, "forward_topk"), dataset, batch_size=23, rounds=3)
    assert set(found.dense) == {"batch", "unpadded"}
    faster = found.dense[found.baseline]
    assert faster.median == min(timing.median for timing in found.dense.values())
    pairs = zip(found.pruned.seconds, faster.seconds, strict=True)
    assert found.pruned.ratios == [own / other for own, other in pairs]


def test_texts_one_at_a_time_are_of_many_lengths_and_have_both_dense_runs(
    sentences: tuple[_WordReader, _Sentences], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, dataset = sentences
    model, seen = _pruned(base, "forward_topk"), []
    run = PrunedModel.run
    monkeypatch.setattr(PrunedModel, "run", lambda self, inputs: seen.append(inputs) or run(self, inputs))
    found = time_against_dense(model, dataset, batch_size=1, rounds=1, batches=5)
    assert set(found.dense) == {"batch", "unpadded"}, "a text alone has no padding, but a last layer for the head alone"
    shapes = [tuple(base.real(inputs).shape) for inputs in seen]
    rounds = 1 + 2  # two to warm up
    assert all(rows == 1 for rows, _ in shapes)
    assert len(shapes) == 2 * rounds * 5, "the deployed model, and the dense one in the same kernels"
    ranks = [2, 6, 11, 16, 20]  # the middles of five equal parts of 23 texts
    assert sorted(length for _, length in shapes[:5]) == np.sort(dataset.lengths)[ranks].tolist()


def test_texts_ranked_by_cost_are_dealt_to_batches_in_turn(sentences: tuple[_WordReader, _Sentences]) -> None:
    _, dataset = sentences
    ranked = np.argsort(dataset.lengths, kind="stable").tolist()
    parts = dealt(dataset, ranked, batch_size=4, batches=5)
    batches = [list(evaluation_loader(part, 4)) for part in parts]
    assert [len(each) for each in batches] == [1] * 5 and all(len(each[0].labels) == 4 for each in batches)
    places = [[ranked.index(index) for index in part.indices] for part in parts]
    assert sorted(place for own in places for place in own) == [int((rank + 0.5) / 20 * 23) for rank in range(20)]
    assert all(min(np.diff(own)) >= 5 for own in places), "each batch has short ones and long ones"
    assert [len(part) for part in dealt(dataset, ranked, 1, 40)] == [1] * 23


@pytest.mark.parametrize("scores", [False, True])
def test_a_gallery_of_texts(scores: bool, sentences: tuple[_WordReader, _Sentences], tmp_path: Path) -> None:
    base, dataset = sentences
    if scores:
        base = _WordReader(classes=1).eval()
        dataset.labels = [0.5 * index for index in range(23)]
    splits = Splits(dataset, dataset, dataset, () if scores else ("bad", "fair", "good"), (), ())
    task = Task("pearson", 1) if scores else Task("accuracy", 3)
    model = _pruned(base, "backtracking", attention="actual", keep_ratio=0.5)
    with torch.no_grad():
        shown = gallery(model, splits, task, 4, lambda ids: [f"w{place}" for place in ids.tolist()])
    assert isinstance(shown, TextGallery)
    row = make_row("backtracking", attention="actual")
    row.write(tmp_path / "row.json")
    shown.write(tmp_path / "tokens.npz")
    read = read_gallery(tmp_path / "tokens.npz")
    assert isinstance(read, TextGallery)
    assert all(np.array_equal(getattr(read, name), getattr(shown, name)) for name in TextGallery.__dataclass_fields__)
    for index, line in enumerate(read.words):
        words = [word for word in line if word]
        (place,) = [p for p, ids in enumerate(dataset.texts) if [f"w{i}" for i in ids.tolist()] == words]
        assert read.length(index) == dataset.lengths[place]
        run = model.run(dataset[place].inputs)
        assert np.array_equal(read.alive[index][:, : len(words)], run.plan.alive[0].numpy())
        assert read.labels[index] == pytest.approx(dataset.labels[place])
        caption = read.caption(index)
        assert (caption.right is None) == scores
        assert caption.label == (
            f"{dataset.labels[place]:.2f}" if scores else ("bad", "fair", "good")[dataset.labels[place]]
        )
    report = make_report([tmp_path])
    assert report.figures["tokens"].stat().st_size > 5000
    page = report.page.read_text()
    data = json.loads(page.split('id="galleries">')[1].split("</script>")[0])
    assert data["sets"][0]["words"][0] == [word for word in read.words[0] if word]
    assert data["sets"][0]["lifetimes"][0] == read.alive[0].sum(0)[: read.length(0)].tolist()


# --- given weights


def _images(overrides: Sequence[str], output: str, **changes: Any) -> Settings:
    """Settings of images that stand in for text: `changes` by node and name are not checked, as "dataset.task"."""
    settings = compose_settings(list(overrides), output)
    for key, value in changes.items():
        node, _, name = key.partition("__")
        setattr(getattr(settings, node), name, value)
    return settings


def _given(path: Path, classes: int = 10, seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = timm.create_model("test_vit", num_classes=classes, in_chans=1, img_size=28, **ARCHITECTURE)
    torch.save(model.state_dict(), path)
    return model.state_dict()


def _made(stage: str) -> list[str]:
    return sorted(path.parent.name for path in Path("artifacts", stage).glob("*/artifact.json"))


def _base(*overrides: str) -> dict[str, Tensor]:
    before = _made("base")
    run_stages(compose_settings([*SMALL, "stages=[base]", *overrides], "output"), JOB)
    (new,) = set(_made("base")) - set(before)
    return load_file(Path("artifacts/base", new, "model.safetensors"))


def test_given_weights_are_made_once_whatever_the_seed_and_the_data(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    _given(tmp_path / "a.pth")
    _base("model.checkpoint=a.pth")
    same = ("seed=3", "model.training.epochs=9", "hardware.batch_size=8", "dataset.split_seed=2", "model.name=other")
    for override in same:
        run_stages(compose_settings([*SMALL, "stages=[base]", "model.checkpoint=a.pth", override], "output"), JOB)
    assert len(_made("base")) == 1
    _given(tmp_path / "a.pth", seed=2)
    _base("model.checkpoint=a.pth")
    # What is trained on the same weights still depends on all of that.
    for override in ("seed=0", "seed=3", "dataset.split_seed=2"):
        common = [*SMALL, "stages=[base,approx]", "model.checkpoint=a.pth", override]
        run_stages(compose_settings(common, "output"), JOB)
    assert (len(_made("base")), len(_made("approx"))) == (2, 3)


def test_fine_tuning_trains_on_from_a_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    state = _given(tmp_path / "a.pth")
    tuned = _base("model.checkpoint=a.pth", "model.fine_tune=true", "model.training.learning_rate=1e-5")
    moved = [name for name, value in state.items() if not torch.equal(tuned[f"model.{name}"], value)]
    assert moved
    assert all((tuned[f"model.{name}"] - value).abs().max() < 1e-3 for name, value in state.items()), "two small steps"
    tuned_elsewhere = _base("model.checkpoint=a.pth", "model.fine_tune=true", "seed=1")
    assert not torch.equal(tuned["model.blocks.0.attn.qkv.weight"], tuned_elsewhere["model.blocks.0.attn.qkv.weight"])


def test_fine_tuning_gives_a_checkpoint_of_other_classes_a_new_head(
    tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    state = _given(tmp_path / "a.pth", classes=4)
    with pytest.raises(UserError, match=r"has a head for 4 classes, but dataset\.classes=10"):
        _base("model.checkpoint=a.pth")
    with caplog.at_level(logging.INFO):
        tuned = _base("model.checkpoint=a.pth", "model.fine_tune=true", "model.training.learning_rate=1e-5")
    assert "has no head.weight of shape (10, 32): it starts anew" in caplog.text
    assert tuned["model.head.weight"].shape == (10, 32)
    weight = "blocks.0.attn.qkv.weight"
    assert (tuned[f"model.{weight}"] - state[weight]).abs().max() < 1e-3


def test_pretrained_weights_without_a_head_for_the_classes_need_fine_tuning(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    _given(tmp_path / "a.pth", classes=7)
    overlay = {"file": str(tmp_path / "a.pth"), "num_classes": 7, "mean": (0.305,), "std": (0.376,)}
    settings = compose_settings([*SMALL, "model.pretrained=true", "stages=[base]"], "output")
    settings.model.arguments["pretrained_cfg_overlay"] = overlay
    with pytest.raises(UserError, match=r"gives no head for dataset\.classes=10.*set model\.fine_tune=true"):
        base_model(Context(settings, JOB, JobLoggers(settings, JOB)))
    settings.model.fine_tune = True
    run_stages(settings, JOB)
    assert len(_made("base")) == 1


# --- the general approximation


def _corpus(*_: Any) -> Splits:
    """Digits as a stand-in for unlabelled data: their labels fit no head."""
    splits: Any = load_splits(compose_settings(SMALL).dataset)
    digits = splits.train.source  # the same of all splits
    digits.labels = [-100] * len(digits.labels)
    return splits


def _general(*overrides: str, **changes: Any) -> Settings:
    given = ["model.checkpoint=a.pth", "approx.corpus=somewhere", "sparsity=backtracking"]
    return _images([*SMALL, *given, *overrides], "output", approx__start="general", **changes)


def test_tasks_share_a_general_approximation(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sttabt.data.corpus.load_corpus", _corpus)
    _given(tmp_path / "a.pth")
    run_stages(_general(), JOB)
    row = Row.read("output/row.json")
    assert row.approx is not None and "kl_general" in row.approx
    assert set(row.seconds) == {"base", "general", "approx"}
    made = _made("general")
    assert len(made) == 1
    tensors = load_file(Path("artifacts/general", made[0], "model.safetensors"))
    assert not [name for name in tensors if ".head" in name], "it belongs to no task"
    # Another task on the same encoder: other classes, fine-tuned, other weights of the prediction.
    plain = compose_settings(SMALL)
    monkeypatch.setattr(sttabt.pipeline.stage, "load_splits", lambda *_: _score_splits(plain))
    run_stages(_general("model.fine_tune=true", "approx.prediction_weight=1", **SCORE), JOB)
    assert _made("general") == made
    assert len(_made("approx")) == 2
    for other in ("approx.factor=2", "approx.corpus_training.epochs=2", "approx.corpus=elsewhere", "seed=1"):
        before = _made("general")
        settings = _general(other, **SCORE)
        settings.stages = ["general"]
        run_stages(settings, JOB)
        assert len(_made("general")) == len(before) + 1, other


def test_the_task_starts_from_the_general_approximation(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sttabt.data.corpus.load_corpus", _corpus)
    _given(tmp_path / "a.pth")
    run_stages(_general("stages=[base,general]"), JOB)
    with pytest.raises(UserError, match=r"no finished 'general' artifact.*make it with general in stages"):
        run_stages(_general("stages=[base,approx]", "approx.factor=2"), JOB)
    run_stages(_general("approx.training.epochs=0", "stages=[base,general,approx]"), JOB)
    (general,), (own,) = (Path("artifacts", stage).glob("*/model.safetensors") for stage in ("general", "approx"))
    found, expected = load_file(own), load_file(general)
    assert all(torch.equal(found[name], value) for name, value in expected.items()), "nothing was trained after it"
