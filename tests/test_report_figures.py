"""Every figure of the catalogue, drawn from rows and from what others published; rows from tables; LaTeX."""

from __future__ import annotations

import itertools
import logging
import re
import statistics
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from sttabt.cli.composition import compose_settings
from sttabt.report.__main__ import main
from sttabt.report.ablation import ablations
from sttabt.report.ablation_lambda import draw_ablation_lambda
from sttabt.report.ablation_lines import draw_ablation_factor, draw_ablation_p
from sttabt.report.build import draw_figures, make_report
from sttabt.report.catalogue import CATALOGUE
from sttabt.report.chart import pareto_front
from sttabt.report.csv_rows import write_table
from sttabt.report.figures import FULL_WIDTH
from sttabt.report.glue import draw_glue
from sttabt.report.imagenet import draw_keep_ratio, draw_macs
from sttabt.report.labels import known_labels
from sttabt.report.literature import (
    glue_tasks,
    imagenet_macs,
    published_attention,
    published_curves,
    published_lambdas,
    published_propagation,
)
from sttabt.report.markup import write_latex
from sttabt.report.overhead import LABEL as OVERHEAD
from sttabt.report.overhead import write_overhead
from sttabt.report.points import points_by_dataset
from sttabt.report.quality import LABEL as QUALITY
from sttabt.report.quality import draw_attention_quality
from sttabt.report.reading import read_rows
from sttabt.report.rivals_time import BATCHES, SINGLES, _scores, draw_rivals_time
from sttabt.report.rows import Row
from sttabt.settings.methods.base import TUNED
from test_conf import sweep_jobs
from test_report import make_row, make_sweep, write_rows
from test_report_texts import make_text_row, make_text_sweep
from test_search import make_search

PS = (0.0, 0.1, 0.5)
LAMBDAS = (1e-5, 1e-1)


def make_ablation_p(**changes) -> list[Row]:
    """Two seeds, two factors; the score falls with p, by the factor."""
    return [
        make_row(
            "backtracking", 0.3, seed, factor=factor, settings={"propagation": p},
            score=0.9 - factor * p / 100 - seed / 100, config_hash=f"{p}-{seed}-{factor}", **changes,
        )
        for p, seed, factor in itertools.product(PS, (0, 1), (4, 8))
    ]  # fmt: skip


def make_ablation_lambda(**changes) -> list[Row]:
    return [
        make_row(settings={"lambda_mask": mask, "lambda_p": p}, score=0.5 + mask + 2 * p, **changes)
        for mask, p in itertools.product(LAMBDAS, LAMBDAS)
    ]


def make_imagenet(model: str = "deit_small") -> list[Row]:
    rows = [make_row("dense"), make_row("concrete", 0.3), make_row("concrete", 0.6), make_row("forward_topk", 0.5)]
    return [replace(row, dataset="imagenet", model=model, macs_dense=4.6e9) for row in rows]


# --- the catalogue and the command


def test_help_lists_every_figure_in_one_line_each(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.partition("Figures:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == list(CATALOGUE)
    assert all(re.fullmatch(r"  \w+  +\S.{10,85}", line) for line in lines)


def test_a_figure_of_another_name_is_refused(tmp_path, capsys):
    write_rows(tmp_path, [make_row()])
    assert main([str(tmp_path), "figure=pareto,ablation_l"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "figure=ablation_l" in error and "did you mean 'ablation_p'?" in error
    assert not (tmp_path / "report").exists()


def test_figures_alone_and_what_would_fill_the_others(tmp_path, capsys):
    write_rows(tmp_path, make_ablation_p())
    assert main([str(tmp_path), "figure=ablation_p"]) == 0
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        f"ablation_p.{suffix}" for suffix in ("png", "pdf", "svg", "csv")
    }
    assert main([str(tmp_path), "figure=ablation_p,ablation_lambda", f"out={tmp_path / 'both'}"]) == 2
    printed = capsys.readouterr()
    assert str(tmp_path / "both" / "ablation_p.png") in printed.out
    assert printed.err == (
        "ablation_lambda is not drawn: there are no rows that differ in sparsity.lambda_mask and sparsity.lambda_p"
        " alone: run `python -m sttabt.run experiment=ablation_lambda`\n"
    )
    assert main([str(tmp_path), "figure=pareto", "title=Mine"]) == 2
    assert "title= has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted({command for entry in CATALOGUE.values() for command in entry.commands}))
def test_the_runs_that_would_fill_a_figure_are_commands_that_compose(command, tmp_path):
    program, *arguments = command.removeprefix("python -m ").split()
    assert program == "sttabt.run"
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
    if arguments[0] != "-m":
        experiment, *rest = arguments
        if rest == ["hparams_search=concrete"]:
            assert compose_settings([*arguments, "sparsity=concrete", "sparsity.p_logit=-1"]).sparsity.p_logit == -1
            return
        assert set(rest) <= {"dataset.path=FOLDER"}
        assert sweep_jobs(experiment.removeprefix("experiment="), f"dataset.path={tmp_path}")
        return
    given_values = [argument.replace("FOLDER", str(tmp_path)).partition("=")[::2] for argument in arguments[1:]]
    # The longest setting has all its values tried, the others their first.
    longest = max(values.count(",") for _, values in given_values)
    for nth in range(longest + 1):
        job = [f"{key}={values.split(',')[min(nth, values.count(','))]}" for key, values in given_values]
        assert compose_settings(job).dataset.name == "imagenet"


@pytest.mark.parametrize(
    ("experiment", "settings"),
    [
        ("ablation_p", ["sparsity.propagation", "approx.factor"]),
        ("ablation_lambda", ["sparsity.lambda_mask", "sparsity.lambda_p"]),
        ("ablation_factor", ["approx.factor"]),
    ],
)
def test_an_ablation_sweeps_over_what_its_figure_is_of(experiment, settings):
    jobs = sweep_jobs(experiment)
    trained = [job for job in jobs if "sparsity=dense" not in job]
    for setting in settings:
        values = {override for job in trained for override in job if override.startswith(f"{setting}=")}
        assert len(values) > 1
        assert all(any(override.startswith(f"{setting}=") for override in job) for job in trained)
    composed = compose_settings(trained[-1])
    assert composed.dataset.source == "digits" and composed.name == experiment


def make_budgeted(dataset: str = "words") -> list[Row]:
    """Two methods at two budgets, one of them far below the dense model, and one that was not timed."""
    budgets = [(method, share) for method in ("forward_topk", "random") for share in (0.5, 0.35)]
    rows = [
        make_row(method, share, budget={"asked": share, "reached": share, "found.keep_ratio": share},
                 budget_of="macs_share", score=0.9 * share if method == "random" else 0.9)
        for method, share in budgets
    ]  # fmt: skip
    untimed = make_row("tome", 0.5, budget={"asked": 0.5, "reached": 0.5}, budget_of="macs_share", time=None)
    return [replace(row, dataset=dataset) for row in (make_row("dense"), *rows, untimed)]


ALL_ROWS = [
    *make_ablation_p(),
    *make_ablation_lambda(dataset="letters"),
    *make_imagenet(),
    *make_text_sweep("glue_sst2"),
    *make_search(),
    *make_budgeted(),
]


def test_every_figure_repeats_byte_for_byte(tmp_path):
    names = [name for name in CATALOGUE if name not in ("tokens", "overhead", "rivals")]
    made = []
    for out, rows in (("a", ALL_ROWS), ("b", ALL_ROWS[::-1])):
        folder = write_rows(tmp_path / out, rows)
        figures, missing, left_out = draw_figures(names, [folder], tmp_path / f"{out}-out")
        assert set(figures) == set(names) and not missing and not left_out
        made.append({path.name: path.read_bytes() for path in (tmp_path / f"{out}-out").iterdir()})
    assert made[0].keys() == {f"{name}.{kind}" for name in names for kind in ("png", "pdf", "svg", "csv")}
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []


# --- rivals against time


def test_rivals_against_time_are_those_that_have_a_budget_and_a_time(tmp_path):
    drawn = draw_rivals_time(points_by_dataset([*make_budgeted(), *make_ablation_p()]), tmp_path)
    assert drawn == tmp_path / "rivals_time.png"
    frame = pd.read_csv(tmp_path / "rivals_time.csv")
    assert set(frame["dataset"]) == {"words"}, "the ablation has no budgets"
    assert sorted(frame["curve"]) == ["dense", *["forward top-k"] * 2, *["random"] * 2], "ToMe was not timed"
    said = (tmp_path / "rivals_time.svg").read_text()
    assert "small on words" in said and "2 points are further down" in said
    assert "share of the library's dense model's" in said and "batches of 32" in said and "single samples" not in said
    several = [row for name in ("a", "b", "c", "d") for row in make_budgeted(name)]
    assert draw_rivals_time(points_by_dataset(several), tmp_path)
    assert (tmp_path / "rivals_time.svg").read_text().count("small on ") == 4
    untimed = [replace(row, time=None) for row in make_budgeted()]
    for rows in (untimed, make_ablation_p(), [make_row("dense")]):
        assert draw_rivals_time(points_by_dataset(rows), tmp_path) is None


def in_kernels(rows: list[Row], single: float | None = None) -> list[Row]:
    """The rows, timed beside the frozen dense model too, at twice the ratio; `single` times that one at a time."""
    found = []
    for row in rows:
        if row.time is not None:
            frozen = {f"ratio_frozen{end}": 2 * row.time["ratio"] for end in ("", "_low", "_high")}
            time = row.time | frozen | {"dense_frozen_ms": 10.0}
            alone = {f"single_{name}": value * (single or 0) for name, value in time.items() if "ratio" in name}
            row = replace(row, time=time | (alone | {"single_dense_frozen_ms": 1.0} if single else {}))
        found.append(row)
    return found


def drawn_rivals(rows: list[Row], folder, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure itself, laid out."""
    figures: list[Figure] = []
    monkeypatch.setattr("sttabt.report.rivals_time.save", lambda figure, *_: figures.append(figure) or folder)
    draw_rivals_time(points_by_dataset(rows), folder)
    figures[0].savefig(folder / "drawn.png")  # lays out
    return figures[0]


def test_rivals_have_a_panel_of_batches_and_one_of_single_samples(tmp_path, monkeypatch):
    rows = [*in_kernels(make_budgeted("a"), single=3.0), *in_kernels(make_budgeted("b"))]
    figure = drawn_rivals(rows, tmp_path, monkeypatch)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title().partition("\n")[0] for axes in shown]
    assert titles == ["small on a: batches of 32", "small on a: single samples", "small on b: batches of 32"]
    assert {axes.get_xlabel() for axes in shown} == {"time, share of the frozen dense model's"}
    assert len({axes.get_ylim() for axes in shown[:2]}) == 1 and not shown[1].get_ylabel()
    assert shown[0].get_xlim() == shown[2].get_xlim() != shown[1].get_xlim(), "panels above each other share an axis"
    assert [axes.get_xscale() for axes in shown] == ["linear", "linear", "linear"]
    for axes in shown:
        (above,) = axes.child_axes
        assert np.allclose(above.get_xlim(), np.array(axes.get_xlim()) / 2), "the library's dense takes twice as long"
    frame = pd.read_csv(tmp_path / "rivals_time.csv").set_index(["dataset", "curve", "setting"])
    line = frame.loc["a", "forward top-k", "budget 0.5 of macs"]
    assert [line[name] for name in (*BATCHES, *SINGLES)] == pytest.approx([1.08, 0.54, 3.24, 1.62])
    assert frame.loc["b", list(SINGLES)].isna().all(axis=None)


def test_times_far_apart_have_a_logarithmic_axis(tmp_path, monkeypatch):
    figure = drawn_rivals(in_kernels(make_budgeted(), single=6.0), tmp_path, monkeypatch)
    batches, singles = figure.axes
    assert (batches.get_xscale(), singles.get_xscale()) == ("linear", "log")
    (above,) = singles.child_axes
    for axis in (singles.xaxis, above.xaxis):
        inside = [tick.get_text() for tick in axis.get_ticklabels()]
        assert "1" in inside and not any("10^" in text or "mathdefault" in text for text in inside)


def test_one_far_below_does_not_press_the_others_together():
    rows = [make_row("dense", score=0.9), *(make_row("tome", 0.3 + n / 50, score=0.88 + n / 1000) for n in range(10))]
    (points,) = points_by_dataset([*rows, make_row("random", 0.3, score=0.8)]).values()
    assert _scores(points)[0] > 87
    (points,) = points_by_dataset([*rows, *(make_row("random", n / 10, score=0.8) for n in (3, 4, 5))]).values()
    assert _scores(points)[0] < 80, "several are not left out"


def test_all_methods_tuned_and_not_fit_into_the_figure(tmp_path, monkeypatch):
    budget = {"budget": {"asked": 0.5, "reached": 0.5}, "budget_of": "macs_share"}
    rows = [make_row("dense"), *(
        make_row("tome", share, label=label, config_hash=f"{label}{share}",
                 score=0.9 - (1 - share) * nth / 200, **budget)
        for nth, label in enumerate(known_labels()) if label != "dense" for share in (0.3, 0.4)
    )]  # fmt: skip
    rows = [replace(row, budget={"asked": row.budget["asked"] - row.macs_share / 10, "reached": 0.5})
            if row.budget else row for row in rows]  # fmt: skip
    figure = drawn_rivals(in_kernels(rows, single=3.0), tmp_path, monkeypatch)
    width, height = figure.get_size_inches()
    assert width == FULL_WIDTH and height < 6
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert not [name for name in named if name.endswith(TUNED)], "they look as the others, but for what the legend says"
    assert named[-2:] == ["dashed and open: fine-tuned", "time of the frozen dense model"]
    drawn = [legend.get_window_extent(), *(axes.get_tightbbox() for axes in figure.axes)]
    for box in drawn:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
    assert all(drawn[0].y1 < box.y0 for box in drawn[1:]), "the legend is below all panels"


# --- ablations


def test_points_that_differ_in_one_setting_alone_are_an_ablation():
    (points,) = points_by_dataset([*make_ablation_p(), make_row("backtracking", 0.6), make_row("dense")]).values()
    found = ablations(points, ["propagation"])
    assert [each.title for each in found] == [
        f"back-tracking (approximate attention), factor {factor}" for factor in (4, 8)
    ]
    for each, factor in zip(found, (4, 8), strict=True):
        assert list(each.points) == [(p,) for p in PS]
        assert {row.factor for point in each.points.values() for row in point.rows} == {factor}
        assert all(len(point.rows) == 2 for point in each.points.values())
    assert [list(each.points) for each in ablations(points, ["factor"])] == [[(4,), (8,)]] * len(PS)
    assert ablations(points, ["propagation", "p_logit"]) == [], "p_logit has no value here"


def test_one_of_two_points_at_one_place_is_drawn_and_the_other_named(caplog):
    rows = [row for row in make_ablation_p() if (row.factor, row.seed) == (4, 0)]
    (points,) = points_by_dataset([*rows, replace(rows[0], config_hash="other", score=0.1)]).values()
    (found,) = ablations(points, ["propagation"])
    assert len(found.points) == len(PS)
    assert "several points at propagation 0, of which the first is drawn" in caplog.text


def test_ablation_numbers(tmp_path):
    draw_ablation_p(points_by_dataset(make_ablation_p()), tmp_path)
    frame = pd.read_csv(tmp_path / "ablation_p.csv")
    assert set(frame["from"]) == {"rows"} and len(frame) == 2 * len(PS)
    line = frame[frame["curve"].str.endswith("factor 8") & (frame["p"] == 0.5)].iloc[0]
    scores = [0.9 - 8 * 0.5 / 100 - seed / 100 for seed in (0, 1)]
    assert line["score"] == pytest.approx(statistics.fmean(scores)) and line["seeds"] == 2
    assert line["score_std"] == pytest.approx(statistics.stdev(scores))
    draw_ablation_factor(points_by_dataset(make_ablation_p()), tmp_path)
    frame = pd.read_csv(tmp_path / "ablation_factor.csv")
    assert sorted(set(frame["factor"])) == [4, 8] and len(frame) == 2 * len(PS)
    assert frame["approx.kl"].tolist() == pytest.approx([0.2] * len(frame))


def test_published_ablations_are_of_cola_alone(tmp_path):
    cola = {"dataset": "glue_cola", "metric": "matthews", "model": "bert_base"}
    for changes, curves in (({}, 0), (cola, 4)):
        draw_ablation_p(points_by_dataset(make_ablation_p(**changes)), tmp_path)
        frame = pd.read_csv(tmp_path / "ablation_p.csv")
        own = frame[frame["from"] == "published (BERT-base)"]
        assert own["curve"].nunique() == curves
    own = own[own["curve"] == "back-tracking (approximate attention), factor 8"].set_index("p")["score"]
    assert own.loc[1.0] == 0.32655478890277784 and own.loc[0.0] == 0.42486353879213945
    draw_ablation_lambda(points_by_dataset(make_ablation_lambda(**cola)), tmp_path)
    frame = pd.read_csv(tmp_path / "ablation_lambda.csv")
    published = frame[frame["from"].str.startswith("published")].set_index(["lambda_mask", "lambda_p"])
    assert len(published) == 9
    assert published.loc[(0.001, 0.1), "score"] == pytest.approx(0.4774369580816155)
    assert published.loc[(0.1, 0.001), "occupancy"] == pytest.approx(0.15993084013462067)


def test_heat_map_numbers_and_blank_cells(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("sttabt.report.ablation_lambda.save", lambda figure, *_: figures.append(figure))
    rows = make_ablation_lambda()
    draw_ablation_lambda(points_by_dataset(rows[1:]), tmp_path)
    frame = pd.read_csv(tmp_path / "ablation_lambda.csv").set_index(["lambda_mask", "lambda_p"])
    assert len(frame) == 3 and frame.loc[(0.1, 1e-5), "score"] == pytest.approx(0.5 + 0.1 + 2e-5)
    texts = [text.get_text() for axes in figures[0].subfigs[0].axes[:1] for text in axes.texts]
    assert sorted(texts) == ["60.0", "70.0", "80.0"], "the missing pair is blank"
    one_weight = [row for row in rows if row.settings["lambda_p"] == 0.1]
    assert draw_ablation_lambda(points_by_dataset(one_weight), tmp_path) is None


# --- what others published


def test_imagenet_has_the_published_curves_of_its_models_alone(tmp_path):
    rows = [*make_imagenet(), *make_imagenet("deit_tiny"), make_row("dense")]
    draw_keep_ratio(points_by_dataset(rows), tmp_path)
    frame = pd.read_csv(tmp_path / "imagenet_keep_ratio.csv")
    assert set(frame["dataset"]) == {"imagenet"}, "digits are left out"
    published = frame[frame["from"] == "published"]
    assert set(published["model"]) == {"deit_small"}
    curve = published[published["curve"] == "concrete"].set_index("occupancy")["score"]
    assert len(curve) == 9 and curve.loc[0.27879] == pytest.approx(0.76674)
    assert set(published["curve"]) >= {"dense", "DynamicViT", "forward top-k"}
    assert draw_keep_ratio(points_by_dataset(make_sweep()), tmp_path) is None


def test_imagenet_multiply_adds_stand_among_the_literature(tmp_path):
    draw_macs(points_by_dataset(make_imagenet()), tmp_path)
    frame = pd.read_csv(tmp_path / "imagenet_macs.csv")
    own = frame[frame["from"] == "rows"]
    assert own["macs_total"].tolist() == pytest.approx([row.macs_total for row in make_imagenet()])
    others = frame[frame["from"] == "published"].set_index("curve")
    assert others.loc["Swin-T", ["macs_total", "score"]].tolist() == pytest.approx([4.5e9, 0.813])
    assert len(others) == 16 and imagenet_macs()["DynamicViT-LV-S"][0] == (3.7, 0.82)


def test_glue_has_nine_panels_whatever_the_rows(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("sttabt.report.glue.save", lambda figure, *_: figures.append(figure))
    rows = [make_text_row("concrete", dataset="glue_sst2"), make_text_row("concrete", dataset="glue_sst2", model="x")]
    draw_glue(points_by_dataset(rows), tmp_path)
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_visible()]
    assert len(titles) == 10 and {"sst2, bert_base", "sst2, x", "cola (no rows: published alone)"} <= set(titles)
    frame = pd.read_csv(tmp_path / "glue.csv")
    assert len(frame[frame["from"] == "rows"]) == 2 and set(frame["dataset"]) == set(glue_tasks())
    assert draw_glue(points_by_dataset([make_row()]), tmp_path) is None


def test_attention_quality_is_a_mean_over_networks_not_over_rows(tmp_path):
    def network(seed: int, kl: float, **changes) -> list[Row]:
        errors = {"kl": kl, "mse": 0.01, "kl_random": 2.0, "mse_random": 0.1}
        errors |= {"kl_interpolated": 1.5, "mse_interpolated": 0.08}
        rows = [make_text_row("concrete", share, seed, **changes) for share in (0.3, 0.5)[: 2 - seed]]
        return [replace(row, approx=errors) for row in rows]

    rows = [*network(0, 0.2), *network(1, 0.4), *network(0, 0.3, factor=8)]
    draw_attention_quality(points_by_dataset(rows), tmp_path)
    frame = pd.read_csv(tmp_path / "attention_quality.csv").set_index(["from", "factor", "start"])
    assert frame.loc[("rows", 4, "distilled"), "kl"] == pytest.approx(0.3), "one of the networks has more rows"
    assert frame.loc[("rows", 4, "distilled"), "kl_std"] == pytest.approx(statistics.stdev([0.2, 0.4]))
    assert frame.loc[("rows", 8, "random"), "mse"] == pytest.approx(0.1)
    assert frame.loc[(QUALITY, 4, "random"), "kl"] == pytest.approx(1.474437396995949)
    assert (QUALITY, 8, "random") not in frame.index, "that was not published"
    assert draw_attention_quality(points_by_dataset([make_row("random")]), tmp_path) is None


def test_overheads_are_shares_of_the_dense_model(tmp_path):
    row = make_row("concrete", 0.5)
    parts = {"approximate_network": 4e6, "planning": 1e6}
    time = (row.time or {}) | {"approximate_network_ratio": 0.11, "planning_ratio": 0.07}
    rows = [replace(row, macs=row.macs | parts, time=time), make_row("dense"), make_row("random")]
    write_overhead(points_by_dataset(rows), tmp_path)
    frame = pd.read_csv(tmp_path / "overhead.csv")
    (own,) = frame[frame["model"] != OVERHEAD].to_dict("records")
    assert (own["approximate_network_macs"], own["planning_macs"]) == pytest.approx((0.1, 0.025))
    assert (own["approximate_network_time"], own["planning_time"], own["time"]) == pytest.approx((0.11, 0.07, 0.54))
    assert not (frame["model"] == OVERHEAD).any(), "digits are not like BERT-base"
    text = (tmp_path / "overhead.md").read_text()
    assert "Published" not in text and "below 0" not in text, "notes of what is not there"
    below = replace(rows[0], time=time | {"planning_ratio": -0.01})
    files = make_report([write_rows(tmp_path / "below", [below, *rows[1:]])])
    for path in (files.figures["overhead"], files.page):
        assert "below 0 it is lost in the noise" in path.read_text(encoding="utf-8")
    text = make_text_row("concrete")
    write_overhead(points_by_dataset([*rows, replace(text, macs=text.macs | parts)]), tmp_path)
    frame = pd.read_csv(tmp_path / "overhead.csv")
    published = frame[frame["model"] == OVERHEAD]
    assert published.set_index("factor")["approximate_network_macs"].loc[4] == pytest.approx(0.0686)
    masks = published[(published["method"] == "concrete masks") & (published["occupancy"] == 0.4)]
    assert masks["planning_macs"].item() == pytest.approx(18.5e6 / 22.4e9)
    text = (tmp_path / "overhead.md").read_text()
    assert "| small, digits" in text and "Published planning counts" in text
    assert write_overhead(points_by_dataset([make_row("random")]), tmp_path) is None


# --- tables


def test_latex_is_escaped_and_has_booktabs(tmp_path):
    write_latex(tmp_path / "table.tex", [("50 % of a_b", ["score %", "name"], [["1.0 ± 0.1", r"p_logit & \x"]])])
    text = (tmp_path / "table.tex").read_text()
    assert r"\caption{50 \% of a\_b}" in text and r"\toprule" in text and r"\begin{tabular}{rl}" in text
    assert r"1.0 $\pm$ 0.1 & p\_logit \& \textbackslash x" in text


def test_lines_that_are_no_row_are_named_skipped_and_counted(tmp_path, caplog):
    path = tmp_path / "table.csv"
    rows = [make_row(share=share, command="sttabt sparsity=x 'note=a,b'") for share in (0.3, 0.4, 0.5, 0.6, 0.7)]
    write_table(rows, path)
    head, *lines = path.read_text().splitlines()
    lines[0] = lines[0].replace(",small,", ",")
    lines[2] = lines[2].replace(",accuracy,", ",bleu,")
    lines[3] = lines[3][: lines[3].index("note=")]
    path.write_text("\n".join([head, *lines])[:-3])
    assert '"sttabt' in lines[3] and lines[3].count('"') == 1, "the mark at its end is cut off"
    with caplog.at_level(logging.WARNING):
        found = read_rows([path])
    assert found == [rows[1]]
    assert f"left out {path}, line 2: it has {len(head.split(',')) - 1} cells" in caplog.text
    assert f"left out {path}, line 4: metric is 'bleu'" in caplog.text
    assert f"left out {path}, line 5: unexpected end of data" in caplog.text
    assert f"left out {path}, line 6: it is cut off" in caplog.text and caplog.text.count("left out") == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "there is no table"), ("", "no row that can be read"), ("seed,score\n1,0.5\n", "no row that can be read")],
)
def test_a_table_without_rows_is_refused(text, message, tmp_path, capsys):
    path = tmp_path / "table.csv"
    if text is not None:
        path.write_text(text)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_table_is_a_report_again(tmp_path):
    folder = write_rows(tmp_path / "rows", make_sweep())
    assert main([str(folder), f"out={tmp_path / 'first'}"]) == 0
    assert main([str(tmp_path / "first" / "table.csv"), f"out={tmp_path / 'second'}"]) == 0
    for name in ("table.md", "pareto.csv", "pareto.svg", "index.html"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


# --- whose data it is


@pytest.mark.parametrize(
    "name", ["imagenet-mini", "own_imagenet", "ImageNet", "imagenet ", "imagenet_hub", "birds", "sst2", "own_glue_sst2"]
)
def test_what_is_published_is_drawn_beside_the_very_data_set_alone(name, tmp_path):
    rows = [make_row(method, dataset=name, model="deit_small") for method in ("dense", "concrete")]
    datasets = points_by_dataset(rows)
    for draw in (draw_keep_ratio, draw_macs, draw_glue):
        assert draw(datasets, tmp_path) is None
    assert published_curves(name, "accuracy") is None and not published_attention(name)
    assert not published_propagation(name, "matthews") and published_lambdas(name, "matthews") is None
    assert not list(tmp_path.iterdir())
    here = points_by_dataset(
        [make_row(method, dataset="imagenet", model="deit_small") for method in ("dense", "random")]
    )
    assert draw_keep_ratio(here | datasets, tmp_path) is not None
    frame = pd.read_csv(tmp_path / "imagenet_keep_ratio.csv")
    assert set(frame.dataset) == {"imagenet"} and {"rows", "published"} == set(frame["from"])


# --- the front


@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 5)), st.integers(0, 5)), max_size=12))
def test_nothing_beats_a_point_of_the_front(pairs):
    costs, scores = [cost for cost, _ in pairs], [score for _, score in pairs]
    front = pareto_front(costs, scores)
    known = [index for index, cost in enumerate(costs) if cost is not None]

    def beats(one: int, other: int) -> bool:
        better = costs[one] < costs[other] or scores[one] > scores[other]
        return costs[one] <= costs[other] and scores[one] >= scores[other] and better

    expected = {(costs[i], scores[i]) for i in known if not any(beats(other, i) for other in known)}
    assert {(costs[i], scores[i]) for i in front} == expected and len(front) == len(expected)
    assert [costs[i] for i in front] == sorted(costs[i] for i in front)
