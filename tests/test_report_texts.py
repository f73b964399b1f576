"""The report of texts: several data sets beside each other, published curves, heat maps of words."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from PIL import Image

from sttabt.data.sources.glue import GLUE_TASKS
from sttabt.report.build import make_report
from sttabt.report.curves import curve_styles
from sttabt.report.gallery import TextGallery, choose
from sttabt.report.glue import draw_glue
from sttabt.report.labels import known_labels
from sttabt.report.literature import LABEL, published_curves
from sttabt.report.pareto import draw_pareto
from sttabt.report.points import points_by_dataset, to_points
from sttabt.report.rows import Row
from sttabt.report.table import format_points, format_table
from sttabt.report.tasks import draw_tasks
from sttabt.report.texts import COLUMN, SPACE, lay_out
from test_report import LAYERS, Page, make_row, write_rows

FIGURES = ("pareto", "tasks", "glue", "attention_quality", "tokens")
SENTENCES = (
    "[CLS] a quietly moving , beautifully un ##der ##state ##d film that earns its $ 5 tears and $ 9 ticket and never"
    " begs for them [SEP]",
    "[CLS] the plot is a me ##and ##ering mess , and the jokes fall flat long before the un ##be ##lie ##va ##ble"
    " ending arrives to put everybody in the theatre out of their misery [SEP]",
    "[CLS] not bad at all [SEP]",
    "[CLS] it is dull [SEP]",
)


def make_text_row(method: str = "concrete", share: float = 0.5, seed: int = 0, **changes) -> Row:
    """A made-up result on sentences of which a quarter of the padded positions are real."""
    row = make_row(method, share, seed, **({"dataset": "glue_sst2", "model": "bert_base"} | changes))
    return replace(row, occupancy_padded=row.occupancy / 4)


def make_text_sweep(dataset: str = "glue_sst2", seeds: tuple[int, ...] = (0,), **changes) -> list[Row]:
    changes = {"dataset": dataset} | changes
    rows = [make_text_row("dense", seed=seed, **changes) for seed in seeds]
    shares = (0.2, 0.4, 0.7)
    rows += [make_text_row("concrete", share, seed, **changes) for share in shares for seed in seeds]
    rows += [make_text_row("backtracking", share + 0.05, **changes) for share in shares]
    rows += [make_text_row("backtracking", share, attention="actual", **changes) for share in shares]
    rows += [make_text_row("ltp", share - 0.03, settings={"mask_weight": share}, **changes) for share in shares]
    return [*rows, *(make_text_row("forward_topk", share, **changes) for share in shares)]


def make_text_gallery(share: float, seed: int = 0, sentences: tuple[str, ...] = SENTENCES) -> TextGallery:
    """Sentences of which each layer reads a random subset of what the one before read; the class token always."""
    lines = [sentence.split() for sentence in sentences]
    longest = max(map(len, lines))
    generator = np.random.default_rng(seed)
    lives = (generator.random((len(lines), longest)) * 2 * share * (LAYERS + 1)).astype(int)
    lives[:, 0] = LAYERS + 1
    words = np.array([[*line, *[""] * (longest - len(line))] for line in lines])
    alive = (np.arange(LAYERS + 1)[:, None] < lives[:, None]) & (words != "")[:, None]
    labels = np.arange(len(lines)) % 2
    return TextGallery(
        alive=alive,
        layers=np.array(LAYERS),
        labels=labels,
        predictions=np.where(labels + seed % 2 == 2, 0, labels),
        class_names=np.array(["negative", "positive"]),
        words=words,
    )


def write_text_rows(folder: Path, rows: list[Row]) -> Path:
    """With a gallery beside each row that drops something."""
    write_rows(folder, rows)
    for index, row in enumerate(rows):
        if row.method != "dense":
            make_text_gallery(row.occupancy, seed=index).write(folder / f"job-{index}" / "tokens.npz")
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[list[Row], Path]:
    """The rows of two data sets and the folder of their report."""
    other = {"dataset": "movie_reviews", "model": "minilm_l6", "metric": "pearson", "samples": 99}
    rows = [*make_text_sweep(seeds=(0, 1)), *make_text_sweep(**other)]
    folder = write_text_rows(tmp_path_factory.mktemp("two"), rows)
    return rows, make_report([folder]).page.parent


def test_report_of_texts_repeats_byte_for_byte(two, tmp_path):
    rows, report = two
    order = np.random.default_rng(0).permutation(len(rows))
    write_rows(tmp_path, [rows[index] for index in order])
    for job, index in enumerate(order):
        if rows[index].method != "dense":
            make_text_gallery(rows[index].occupancy, seed=int(index)).write(tmp_path / f"job-{job}" / "tokens.npz")
    again = make_report([tmp_path]).page.parent
    figures = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf", "svg", "csv")}
    assert {path.name for path in report.iterdir()} == figures | {"table.md", "table.tex", "table.csv", "index.html"}
    assert [path.name for path in report.iterdir() if path.read_bytes() != (again / path.name).read_bytes()] == []


def test_data_sets_stay_apart(two):
    rows, report = two
    points = points_by_dataset(rows)
    assert list(points) == ["glue_sst2", "movie_reviews"]
    # What tells the data sets apart, as the number of samples, tells no curves apart.
    assert {point.series for point in points["glue_sst2"]} == {point.label for point in points["movie_reviews"]}
    for dataset, own in points.items():
        alone = to_points([row for row in rows if row.dataset == dataset])
        assert own == alone
        assert format_points(alone) in (report / "table.md").read_text()
    frame = pd.read_csv(report / "pareto.csv")
    means = frame.set_index(["dataset", "curve", "setting"])["score"]
    assert len(frame) == sum(map(len, points.values()))
    for point in points["movie_reviews"]:
        if point.setting:
            assert means["movie_reviews", point.series, point.setting] == pytest.approx(point.rows[0].score)


def test_many_data_sets_stand_beside_each_other(tmp_path):
    rows = [make_text_row(method, dataset=name) for name in "abcde" for method in ("dense", "ltp")]
    path = draw_pareto(points_by_dataset(rows), tmp_path)
    width, height = Image.open(path).size
    assert width == 15 * 200 and height < width / 2, "five data sets are three lines of two"
    assert set(pd.read_csv(tmp_path / "pareto.csv")["dataset"]) == set("abcde")


def test_curves_look_the_same_in_all_panels():
    rows = [make_text_row("ltp", dataset="a"), make_text_row("dense", dataset="b"), make_text_row("tome", dataset="b")]
    rows += [make_text_row(factor=factor, dataset="b") for factor in (4, 8)]
    points = [point for own in points_by_dataset(rows).values() for point in own]
    styles = curve_styles(points)
    assert list(styles) == ["dense", "concrete, factor 4", "concrete, factor 8", "LTP", "ToMe"]
    assert curve_styles(points[::-1]).keys() == styles.keys()
    concrete, other = styles["concrete, factor 4"], styles["concrete, factor 8"]
    assert concrete.colour == other.colour and concrete.face != other.face and concrete.line == other.line
    assert len({style.marker for style in styles.values()}) == 5
    assert len({style.colour for style in styles.values()}) == 4


@pytest.mark.parametrize(
    ("dataset", "metric", "dense", "first"),
    [
        ("glue_sst2", "accuracy", 0.92431, (0.08491, 0.89679)),
        ("glue_cola", "matthews", 0.53388, (0.09361, 0.40478)),
        ("glue_stsb", "pearson", 0.88046, (0.0735, 0.80349)),
    ],
)
def test_published_numbers(dataset, metric, dense, first):
    found = published_curves(dataset, metric)
    assert found is not None and found.dense == dense and found.curves["concrete"][0] == first
    assert set(found.curves) < set(known_labels())
    assert all(own == sorted(own) for own in found.curves.values())


@pytest.mark.parametrize(
    ("dataset", "metric"), [("glue_sst2", "f1"), ("movie_reviews", "accuracy"), ("sst2", "accuracy"), ("glue_x", "f1")]
)
def test_nothing_published(dataset, metric):
    assert published_curves(dataset, metric) is None


def test_published_numbers_name_their_source():
    text = resources.files("sttabt.report").joinpath("published/glue_keep_ratio.json").read_text()
    assert "BERT-base" in json.loads(text)["source"]
    assert set(json.loads(text)["tasks"]) == set(GLUE_TASKS)


def test_published_numbers_stand_on_the_padded_axis_alone(two):
    frame = pd.read_csv(two[1] / "tasks.csv")
    published = frame[frame["from"] == LABEL]
    assert set(published["dataset"]) == {"glue_sst2"}
    assert published[["occupancy", "macs_share", "seeds", "score_std"]].isna().all(axis=None)
    expected = published_curves("glue_sst2", "accuracy")
    assert expected is not None
    for label, curve in expected.curves.items():
        own = published[published["curve"] == label]
        assert list(zip(own["occupancy_padded"], own["score"], strict=True)) == curve
    assert published[published["curve"] == "dense"]["score"].tolist() == [expected.dense]
    line = frame[(frame["from"] == "rows") & (frame["setting"] == "p_logit -1.4")].iloc[0]
    assert line["seeds"] == 2 and line["occupancy"] == pytest.approx(0.4)
    assert line["occupancy_padded"] == pytest.approx(0.1) and line["score_std"] == pytest.approx(0.004 / 2**0.5)


def test_published_curves_of_methods_without_rows_are_left_out(tmp_path):
    draw_tasks(points_by_dataset([make_text_row("dense"), make_text_row("concrete")]), tmp_path)
    frame = pd.read_csv(tmp_path / "tasks.csv")
    assert set(frame[frame["from"] == LABEL]["curve"]) == {"dense", "concrete"}


def test_what_was_published_of_bert_stands_beside_no_other_model(tmp_path):
    own = [make_text_row(name, model=model) for name in ("dense", "concrete") for model in ("bert_base", "minilm_l6")]
    for draw, name in ((draw_tasks, "tasks"), (draw_glue, "glue")):
        drawn = {}
        for model in ("bert_base", "minilm_l6"):
            draw(points_by_dataset([row for row in own if row.model == model]), tmp_path)
            drawn[model] = (pd.read_csv(tmp_path / f"{name}.csv")["from"] == LABEL).any()
        assert drawn == {"bert_base": True, "minilm_l6": False}
    draw_glue(points_by_dataset(own), tmp_path)
    frame = pd.read_csv(tmp_path / "glue.csv")
    assert set(frame["from"]) == {"rows", LABEL} and set(frame[frame["from"] == "rows"]["model"]) == {
        *("bert_base", "minilm_l6")
    }


def test_nine_data_sets_have_a_panel_each_and_empty_ones_are_hidden(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("sttabt.report.tasks.save", lambda figure, *_: figures.append(figure) or tmp_path)
    rows = [make_text_row(method, dataset=f"glue_{task}") for task in GLUE_TASKS for method in ("dense", "concrete")]
    draw_tasks(points_by_dataset(rows), tmp_path)
    panels = [axes for axes in figures[0].findobj(Axes) if axes.get_visible()]
    assert len(panels) == 27
    titles = sorted(f"glue_{task} (bert_base)" for task in GLUE_TASKS)
    assert sorted(axes.get_title() for axes in panels[:9]) == titles


def test_a_report_of_images_has_no_figure_of_tasks(tmp_path):
    make_report([write_rows(tmp_path / "texts", [make_text_row()])], tmp_path / "out")
    assert (tmp_path / "out" / "tasks.csv").exists()
    assert make_report([write_rows(tmp_path / "images", [make_row()])], tmp_path / "out").missing.keys() >= {
        "tasks",
        "glue",
    }
    assert not list((tmp_path / "out").glob("tasks.*"))


def test_table_shows_other_scores_where_there_are_any():
    scored = make_text_row("dense", other_scores={"f1": 0.875, "spearman": -0.25})
    head, _, *lines = [line for line in format_table([scored, make_text_row()]).splitlines() if line.startswith("|")]
    heads = [cell.strip() for cell in head.strip("|").split("|")]
    table = [dict(zip(heads, [cell.strip() for cell in line.strip("|").split("|")], strict=True)) for line in lines[:2]]
    assert [line["F1 %"] for line in table] == ["87.50", "-"]
    assert [line["Spearman correlation x 100"] for line in table] == ["-25.00", "-"]
    assert [line["padded keep ratio"] for line in table] == ["0.250", "0.125"]
    assert "F1" not in format_table([make_text_row()])


def test_figure_compares_texts_at_like_occupancy():
    galleries = [(row, make_text_gallery(row.occupancy)) for row in make_text_sweep() if row.method != "dense"]
    assert [(row.label, round(row.occupancy, 2)) for row, _ in choose(galleries)] == [
        ("concrete", 0.4),
        ("back-tracking (approximate attention)", 0.45),
        ("back-tracking (actual attention)", 0.4),
        ("LTP", 0.37),
        ("forward top-k", 0.4),
    ]
    others = make_text_gallery(0.4, sentences=SENTENCES[:2])
    galleries = [(row, others if row.method == "ltp" else gallery) for row, gallery in galleries]
    assert {row.label for row, _ in choose(galleries)} == {row.label for row, _ in galleries} - {"LTP"}


def test_parts_of_a_word_are_joined():
    gallery = make_text_gallery(0.5, sentences=("[CLS] un ##der ##state ##d ## #1 ##3 [SEP]",))
    assert gallery.pieces(0) == [
        ("[CLS]", False), ("un", False), ("der", True), ("state", True), ("d", True), ("##", False), ("#1", False),
        ("3", True), ("[SEP]", False),
    ]  # fmt: skip


@pytest.mark.parametrize("sentence", [*SENTENCES, "super" + " ##cali" * 30, "$ x $ _ ^ \\ { é"])
def test_lines_of_words(sentence):
    pieces = make_text_gallery(0.5, sentences=(sentence,)).pieces(0)
    found = lay_out(pieces)
    assert [(piece.token, piece.text) for piece in found] == [(index, text) for index, (text, _) in enumerate(pieces)]
    assert all(piece.width > 0 and piece.left + piece.width <= COLUMN for piece in found)
    for before, after in itertools.pairwise(found):
        assert after.line - before.line in (0, 1)
        if after.line > before.line:
            assert after.left == 0
        else:
            gap = 0 if pieces[after.token][1] else SPACE
            assert after.left == pytest.approx(before.left + before.width + gap)
    # A word is parted only where it is longer than a line.
    if len(pieces) < 30:
        assert all(a.line == b.line for a, b in itertools.pairwise(found) if pieces[b.token][1])


def test_tokens_are_counted_by_the_layers_that_read_them(two):
    rows, report = two
    frame = pd.read_csv(report / "tokens.csv", keep_default_na=False)
    assert sorted(set(frame["data"].str.extract(r"on (\w+)$")[0])) == ["glue_sst2", "movie_reviews"]
    assert set(frame["sample"]) == {0}  # one text each where there are several data sets
    names = {"concrete": "concrete, p_logit -1.4, seed 0", "ltp": "LTP, mask_weight 0.4"}
    for method, name in names.items():
        (index,) = [
            i for i, row in enumerate(rows)
            if row.method == method and 0.36 < row.occupancy < 0.41 and (row.dataset, row.seed) == ("glue_sst2", 0)
        ]  # fmt: skip
        own = frame[frame["data"].str.contains("sst2") & (frame["model"] == name)]
        alive = make_text_gallery(rows[index].occupancy, seed=index).alive[0]
        assert own["word"].tolist() == SENTENCES[0].split()
        assert own["layers"].tolist() == [alive[:LAYERS, token].sum() for token in range(len(own))]


def test_page_of_several_data_sets(two):
    rows, report = two
    page = Page()
    page.feed((report / "index.html").read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    assert page.pieces["h1"] == ["2 data sets: glue_sst2, movie_reviews"]
    assert page.pieces["h3"] == ["bert_base on glue_sst2: accuracy on test, 360 samples",
                                 "minilm_l6 on movie_reviews: Pearson correlation on test, 99 samples"] * 3  # fmt: skip
    assert sorted(page.pieces["code"]) == sorted(row.command for row in rows)
    data = json.loads(next(piece for piece in page.pieces["script"] if piece.startswith("{")))
    shown = data["sets"][data["first"]]
    assert shown["name"].startswith("glue_sst2, concrete, p_logit") and len(shown["words"]) == len(SENTENCES)
    assert shown["words"][0][6:10] == ["un", "der", "state", "d"]
    assert shown["continues"][0][6:10] == [False, True, True, True]
    assert all(len(words) == len(own) for words, own in zip(shown["words"], shown["lifetimes"], strict=True))
