"""The report package, from row files on the disk to tables, figures and the page."""

from __future__ import annotations

import json
import logging
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sttabt.errors import UserError
from sttabt.report.__main__ import main
from sttabt.report.ablation import ablations
from sttabt.report.build import make_report
from sttabt.report.catalogue import CATALOGUE
from sttabt.report.choice import best_by_validation
from sttabt.report.gallery import Gallery, ImageGallery, choose, read_galleries
from sttabt.report.images import fade
from sttabt.report.pareto import draw_pareto, heap
from sttabt.report.points import points_by_dataset, to_points
from sttabt.report.reading import read_rows
from sttabt.report.rows import Row
from sttabt.report.table import format_table, table_columns, to_frame
from sttabt.settings.methods import method_names

LAYERS = 4
SUFFIXES = ("png", "pdf", "svg", "csv")
GRID = (4, 4)
DENSE_MACS = 40e6
APPROX = {"kl": 0.2, "mse": 0.01, "kl_random": 2.0, "mse_random": 0.1, "kl_interpolated": 1.5, "mse_interpolated": 0.08}


TIMES = {"batch_size": 32, "rounds": 9, "dense_ms": 20, "ms": 11, "ratio": 0.55, "ratio_low": 0.5, "ratio_high": 0.6}
LABELS = {"forward_topk": "forward top-k", "ltp": "LTP", "tome": "ToMe"}
KNOBS = {"concrete": "p_logit", "ltp": "mask_weight", "dense": None}  # of others keep_ratio


def make_row(method: str = "concrete", share: float = 0.5, seed: int = 0, attention: str = "", **changes) -> Row:
    """A made-up result: `share` of the tokens on average, accuracy that falls with it; settings join those it has."""
    if method == "backtracking":
        attention = attention or "approximate"
        changes = {"label": f"back-tracking ({attention} attention)", "knob": "keep_ratio"} | changes
    dense = method == "dense"
    share = 1.0 if dense else share
    planned = method in ("concrete", "backtracking")
    knob = KNOBS.get(method, "keep_ratio")
    settings = {knob: round(4 * share - 3, 2) if method == "concrete" else share} if knob else {}
    settings |= {"propagation": 0.1} if planned else {}
    settings |= {"temperature": 0.1} if method == "concrete" else {}
    settings |= {"attention": attention} if attention else {}
    changes["settings"] = settings | changes.get("settings", {})
    boundaries = [1.0] * (LAYERS + 1) if dense else [share * (1.4 - 0.2 * layer) for layer in range(LAYERS + 1)]
    time = {"batch_size": 32, "rounds": 15, "dense_ms": 20.0, "ms": 20.0 * share, "ratio": share + 0.04}
    values = {
        "experiment": "digits",
        "sweep": "sweep-1",
        "config_hash": f"{method}{share:.2f}{attention}s{seed}",
        "command": f"sttabt sparsity={method} seed={seed} 'note=<{share:.2f}>'",
        "commit": "0123abc",
        "version": "0.1.0",
        "seed": seed,
        "device": "cpu",
        "threads": 1,
        "dataset": "digits",
        "split": "test",
        "samples": 360,
        "model": "small",
        "method": method,
        "label": LABELS.get(method, method.replace("_", " ")),
        "knob": knob,
        "factor": 4 if planned else None,
        "budget": None,
        "budget_of": None,
        "parameters": 1_000_000,
        "metric": "accuracy",
        "score": 0.95 - (0 if dense else 0.2) * (1 - share) ** 2 - 0.004 * seed,
        "score_soft": 0.96 if method == "concrete" else None,
        "score_masked": None,
        "score_ema": None,
        "ema": None,
        "other_scores": {},
        "loss": 0.2,
        "validation_loss": None,
        "validation": None,
        "occupancy": sum(boundaries) / len(boundaries),
        "occupancy_by_boundary": boundaries,
        "occupancy_padded": None,
        "macs": {"stem": 1e6, "projections": 26e6 * share, "attention": 13e6 * share**2},
        "macs_dense": DENSE_MACS,
        "time": None if dense else time | {"ratio_low": share + 0.02, "ratio_high": share + 0.07},
        "time_baseline": None if dense else "batch",
        "approx": APPROX if planned else None,
        "seconds": {"prune": 12.5, "evaluate": 1.25},
    }
    return Row(**(values | changes))


def make_sweep() -> list[Row]:
    rows = [make_row("dense", seed=seed) for seed in (0, 1)]
    rows += [make_row("concrete", share, seed) for share in (0.3, 0.5, 0.7) for seed in (0, 1)]
    rows += [make_row("backtracking", share) for share in (0.3, 0.5, 0.7)]
    rows += [make_row("backtracking", share, attention="actual") for share in (0.3, 0.7)]
    return [*rows, make_row("forward_topk", 0.5), make_row("random", 0.5)]


def make_gallery(share: float, channels: int = 3) -> Gallery:
    """Two images whose patches are dropped from the last to the first."""
    patches = GRID[0] * GRID[1]
    alive = np.zeros((2, LAYERS + 1, 1 + patches), bool)
    alive[:, :, 0] = True
    for boundary in range(LAYERS):
        alive[0, boundary, 1 : 1 + int(patches * share * (1 - boundary / LAYERS))] = True
        alive[1, boundary, 1 : 1 + int(patches * share)] = True
    ramp = np.linspace(0, 200, 16 * 16 * channels).astype(np.uint8).reshape(16, 16, channels)
    return ImageGallery(
        images=np.stack([ramp, ramp[::-1]]),
        depth=alive[:, :-1].sum(axis=1),
        alive=alive,
        prefix=np.array(1),
        layers=np.array(LAYERS),
        grid=np.array(GRID),
        labels=np.array([0, 1]),
        predictions=np.array([0, 2]),
        class_names=np.array(["zero", "one, uno", "two"]),
    )


def write_rows(folder: Path, rows: list[Row], galleries: bool = False) -> Path:
    for index, row in enumerate(rows):
        row.write(folder / f"job-{index}" / "row.json")
        if galleries and row.method in ("concrete", "backtracking"):
            make_gallery(row.occupancy, channels=1).write(folder / f"job-{index}" / "tokens.npz")
    return folder


def test_row_survives_the_disk(tmp_path):
    for row in make_sweep():
        row.write(tmp_path / "job" / "row.json")
        read = Row.read(tmp_path / "job" / "row.json")
        assert read == row and read.folder == tmp_path / "job"
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["row.json"]


def test_row_totals():
    row = make_row("concrete", 0.5)
    assert row.macs_total == 1e6 + 13e6 + 3.25e6
    assert row.macs_share == pytest.approx(17.25 / 40)
    assert row.time_ratio == 0.54 and make_row("dense").time_ratio is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1.5}, "seed is 1.5"),
        ({"score": 93.1}, "score is 93.1"),
        ({"score": float("nan")}, "score is nan"),
        ({"score": True}, "score is True"),
        ({"occupancy_by_boundary": [1.0, "half"]}, "occupancy_by_boundary"),
        ({"macs": {"stem": None}}, "macs"),
        ({"macs_dense": 0.0}, "macs_dense"),
        ({"time": {"ratio": 0.5}}, "time lacks batch_size"),
        ({"schema": 8}, "schema is 8"),
        ({"budget": {"asked": 0.5}, "budget_of": "macs_share"}, "budget lacks reached"),
        ({"budget": {"asked": 0.5, "reached": 0.5}}, "budget_of is None"),
        ({"budget": {"asked": 0.5, "reached": 0.5}, "budget_of": "macs"}, "budget_of is 'macs'"),
        (
            {"budget": {"asked": 0.5, "reached": 0.5, "found.warmth": 1.0}, "budget_of": "macs_share"},
            "budget has found warmth, which is none",
        ),
        ({"knob": "warmth"}, "knob is 'warmth', which is none of the settings: p_logit, propagation, temperature"),
        ({"settings": {"counts": [9, 3]}}, "settings is"),
        ({"label": None}, "label is None"),
        ({"label": "caf\udce9"}, "label is"),
        ({"left_to_torch": ["merging", 2]}, "left_to_torch is"),
        ({"approx": {}}, "approx lacks kl"),
        ({"time": TIMES | {"ratio_frozen": 0.7}}, "time lacks dense_frozen_ms, ratio_frozen_high, ratio_frozen_low"),
        ({"metric": "bleu"}, "metric is 'bleu'"),
        ({"score": -0.1}, r"score is -0.1, which is not in \[0, 1\]"),
        ({"metric": "matthews", "score": -1.1}, "score is -1.1"),
        ({"other_scores": {"f1": -0.1}}, "other_scores.f1 is -0.1"),
        ({"occupancy_padded": 1.2}, "occupancy_padded is 1.2"),
    ],
)
def test_row_refuses_wrong_values(changes, message):
    with pytest.raises(ValueError, match=message):
        make_row(**changes)


def test_unreadable_rows_are_named_skipped_and_counted(tmp_path, caplog):
    write_rows(tmp_path, [make_row(share=share) for share in (0.3, 0.5, 0.7)])
    for job, spoil in ((0, lambda text: text[:-40]), (1, lambda text: text.replace('"seed"', '"sead"'))):
        path = tmp_path / f"job-{job}" / "row.json"
        path.write_text(spoil(path.read_text()))
    with caplog.at_level(logging.WARNING):
        rows = read_rows([tmp_path])
    assert [row.occupancy for row in rows] == [pytest.approx(0.7)]
    assert all(f"left out {tmp_path / job / 'row.json'}: " in caplog.text for job in ("job-0", "job-1"))
    assert "lacks seed" in caplog.text


def test_a_row_below_two_folders_is_read_once(tmp_path):
    write_rows(tmp_path, [make_row()])
    assert len(read_rows([tmp_path, tmp_path / "job-0"])) == 1


def test_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match=rf"no row.json below {tmp_path}"):
        read_rows([tmp_path])
    with pytest.raises(UserError, match="there is no folder"):
        read_rows([tmp_path / "absent"])
    (tmp_path / "row.json").write_text("{")
    with pytest.raises(UserError, match=rf"no row that can be read in {tmp_path} \({tmp_path / 'row.json'}: "):
        read_rows([tmp_path])


def test_table_numbers():
    lines = format_table(make_sweep()).splitlines()
    assert lines[0] == "## small on digits: accuracy on test, 360 samples"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:] if line.startswith("|")][:12]
    table = [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]
    methods = [line["method"] for line in table]
    assert methods == [
        "dense", *["concrete"] * 3, *["back-tracking (approximate attention)"] * 3,
        *["back-tracking (actual attention)"] * 2, "forward top-k",
    ]  # fmt: skip
    scores = [0.95 - 0.2 * 0.49, 0.95 - 0.2 * 0.49 - 0.004]
    assert table[1] == {
        "method": "concrete",
        "setting": "p_logit -1.8",
        "seeds": "2",
        "accuracy %": f"{100 * statistics.fmean(scores):.2f} ± {100 * statistics.stdev(scores):.2f}",
        "soft masks %": "96.00 ± 0.00",
        "occupancy": "0.300 ± 0.000",
        "MMACs": "9.970 ± 0.000",
        "share of dense MACs": "0.249 ± 0.000",
        "share of dense time (quartiles)": "0.340 ± 0.000",
    }
    assert table[5]["setting"] == "keep_ratio 0.5" and table[5]["share of dense MACs"] == f"{17.25 / 40:.3f}"
    assert table[5]["share of dense time (quartiles)"] == "0.540 (0.520 to 0.570)"
    assert table[0]["share of dense time (quartiles)"] == "-"


def test_table_shows_the_approximate_networks_once():
    text = format_table(make_sweep())
    head = next(index for index, line in enumerate(text.splitlines()) if "KL trained" in line)
    lines = [line for line in text.splitlines()[head + 2 :] if line.startswith("|")]
    assert [re.findall(r"[\d.]+", line) for line in lines] == [
        ["4", "0", "0.2", "0.01", "1.5", "0.08", "2", "0.1"],
        ["4", "1", "0.2", "0.01", "1.5", "0.08", "2", "0.1"],
    ]


def test_format_table_gives_each_data_set_its_own_table():
    text = format_table([make_row(), make_row(dataset="letters")])
    assert "## small on digits" in text and "## small on letters" in text


def test_table_without_timing_says_so():
    text = format_table([make_row(time=None)])
    assert "Timing was off." in text and "share of dense time" not in text


def test_large_models_count_in_billions():
    points = to_points([make_row(macs_dense=4.6e9, macs={"stem": 2.3e9})])
    column = next(column for column in table_columns(points) if column.title == "GMACs")
    assert column.text(points[0]) == "2.300"


def test_curves_are_told_apart_by_what_differs():
    rows = [make_row(share=share, factor=factor) for share in (0.3, 0.5) for factor in (4, 8)]
    series = [point.series for point in to_points([*rows, make_row("dense")])]
    assert series == ["dense", *["concrete, factor 4"] * 2, *["concrete, factor 8"] * 2]


def test_rows_that_differ_in_something_unnamed_are_not_averaged(caplog):
    points = to_points([make_row(), make_row(config_hash="other")])
    assert [len(point.rows) for point in points] == [1, 1]
    assert "config other" in {part for point in points for part in point.setting.split(", ")}
    assert "differ in more than the seed" in caplog.text


def test_frame_has_every_field_of_every_row():
    rows = make_sweep()
    frame = to_frame(rows)
    assert len(frame) == len(rows) and set(frame["command"]) == {row.command for row in rows}
    line = frame[frame["config_hash"] == make_row("concrete", 0.5, 1).config_hash].iloc[0]
    row = make_row("concrete", 0.5, 1)
    assert line["macs.attention"] == row.macs["attention"] and line["macs_total"] == row.macs_total
    assert line["occupancy_by_boundary.4"] == row.occupancy_by_boundary[4]
    assert line["time.ratio_high"] == row.time["ratio_high"] and line["approx.kl"] == 0.2


@pytest.mark.parametrize("name", ["split", "metric"])
def test_mixed_rows_are_refused(tmp_path, name):
    other = "matthews" if name == "metric" else "another"
    write_rows(tmp_path, [make_row(), make_row(share=0.7, **{name: other})])
    with pytest.raises(UserError, match=rf"the rows of digits differ in {name} \(.*{other}.*\)") as error:
        make_report([tmp_path], tmp_path / "report")
    assert "\n" not in str(error.value) and not (tmp_path / "report").exists()


def test_models_of_one_data_set_stay_apart(tmp_path):
    rows = [make_row(method, model=model) for model in ("large", "small") for method in ("dense", "concrete")]
    report = make_report([write_rows(tmp_path, rows, galleries=True)])
    frame = pd.read_csv(report.figures["pareto"].with_suffix(".csv"))
    assert frame[["model", "curve"]].values.tolist() == [
        [model, method] for model in ("large", "small") for method in ("dense", "concrete")
    ]
    text = report.table.read_text()
    assert "## large on digits" in text and "## small on digits" in text
    page = report.page.read_text(encoding="utf-8")
    assert "large on digits, concrete" in page and "<h1>2 data sets: large on digits, small on digits</h1>" in page


def test_data_of_one_name_stay_apart(tmp_path):
    """Another's data may be called digits, too; rows that do not say what their data are belong to the only ones."""
    known = [make_row(share=share, data="1f2e3a4b") for share in (0.3, 0.6)]
    older = make_row(share=0.5, commit="89cd012")
    assert list(points_by_dataset([*known, older])) == ["digits"]
    seeds = [make_row(seed=0, data="1f2e3a4b"), make_row(seed=1)]
    assert [len(point.rows) for point in points_by_dataset(seeds)["digits"]] == [2], "seeds of one point"
    tried = [
        make_row(settings={"temperature": 0.5 + n}, data=data, validation_loss=n) for n, data in enumerate(("a", ""))
    ]
    assert best_by_validation(tried, ["temperature"]) == tried[:1]
    others = [replace(row, data="ab"[n]) for n, row in enumerate(tried)]
    assert [row.dataset for row in best_by_validation(others, ["temperature"])] == [
        "digits (data a)",
        "digits (data b)",
    ]
    rows = [*known, make_row(share=0.4, data="0a0b0c0d"), older]
    found = points_by_dataset(rows)
    names = ["digits (data 0a0b0c0d)", "digits (data 1f2e3a4b)", "digits (data unknown)"]
    assert {name: len(points) for name, points in found.items()} == dict(zip(names, (1, 2, 1), strict=True))
    report = make_report([write_rows(tmp_path, rows)])
    assert all(f"## small on {name}: accuracy" in report.table.read_text() for name in names)
    again = read_rows([tmp_path, report.table.with_suffix(".csv")])
    assert sorted(again, key=str) == sorted(rows, key=str), "the table has the names of the rows, each counts once"


def test_a_folder_of_links_is_refused_with_what_to_give(tmp_path):
    rows = write_rows(tmp_path / "runs", [make_row()])
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "a").symlink_to(rows, target_is_directory=True)
    with pytest.raises(UserError, match="links to folders are not followed: give the folders"):
        read_rows([chosen])
    assert len(read_rows([chosen / "a"])) == 1


def test_rows_of_several_commits_are_one_curve(tmp_path):
    """A sweep goes on after a commit: its seeds are pooled, its points joined, and the table says so."""
    rows = [make_row(share=0.3, seed=0), make_row(share=0.3, seed=1, commit="89cd012"), make_row(commit="89cd012")]
    points = to_points(rows)
    assert [(point.series, len(point.rows)) for point in points] == [("concrete", 2), ("concrete", 1)]
    assert "The rows are of several commits: 1 of 0123abc, 2 of 89cd012." in format_table(rows)
    assert "commits" not in format_table(rows[:1])


def test_what_several_commits_ran_is_compared():
    """One seed of one setting by two commits: each has a curve, with its other rows; other methods are as before."""
    before, after = (
        [make_row(share=share, commit=commit) for share in (0.3, 0.5)] for commit in ("0123abc", "89cd012")
    )
    others = [make_row("forward_topk", 0.3), make_row("forward_topk", 0.5, commit="89cd012")]
    points = to_points([*before, *after[:1], *others])
    assert [(point.series, len(point.rows)) for point in points] == [
        ("concrete, commit 0123abc", 1),
        ("concrete, commit 0123abc", 1),
        ("concrete, commit 89cd012", 1),
        ("forward top-k", 1),
        ("forward top-k", 1),
    ]
    changed = [make_row(share=0.3), make_row(share=0.3, seed=1, commit="0123abc+")]
    assert [point.series for point in to_points(changed)] == ["concrete, commit 0123abc", "concrete, commit 0123abc+"]
    tried = [
        make_row(settings={"temperature": value}, commit=commit, validation_loss=value)
        for value in (0.1, 0.5)
        for commit in ("0123abc", "89cd012")
    ]
    assert best_by_validation(tried, ["temperature"]) == tried[:2]
    assert [each.title for each in ablations(to_points(tried), ["temperature"])] == [
        "concrete, commit 0123abc",
        "concrete, commit 89cd012",
    ]


def test_the_page_names_no_commit_where_there_is_none(tmp_path):
    found = {}
    for commit in ("", "0123abc"):
        folder = write_rows(tmp_path / f"of{commit}", [make_row(commit=commit)])
        found[commit] = make_report([folder]).page.read_text(encoding="utf-8")
    assert "<dt>commit</dt>" in found["0123abc"] and "<dt>commit</dt>" not in found[""]


def test_report_repeats_byte_for_byte(tmp_path):
    rows = make_sweep()
    reports = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        folder = write_rows(tmp_path / name, order, galleries=True)
        make_report([folder], tmp_path / f"{name}-report")
        reports.append({path.name: path.read_bytes() for path in (tmp_path / f"{name}-report").iterdir()})
    figures = {f"{name}.{suffix}" for name in ("pareto", "attention_quality", "tokens") for suffix in SUFFIXES}
    assert {"table.md", "table.tex", "table.csv", "index.html"} | figures <= reports[0].keys()
    assert {name.partition(".")[0] for name in reports[0]} <= {"table", "index", *CATALOGUE}
    assert reports[0].keys() == reports[1].keys()
    assert [name for name in reports[0] if reports[0][name] != reports[1][name]] == []


def test_report_repeats_in_another_process(tmp_path):
    write_rows(tmp_path / "rows", make_sweep()[:4], galleries=True)
    for out in ("a", "b"):
        arguments = [sys.executable, "-m", "sttabt.report", str(tmp_path / "rows"), f"out={tmp_path / out}"]
        subprocess.run(arguments, check=True, capture_output=True)
    assert len(list((tmp_path / "a").iterdir())) > 10
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_pareto_numbers(tmp_path):
    report = make_report([write_rows(tmp_path, make_sweep())])
    assert report.figures["pareto"] == tmp_path / "report" / "pareto.png"
    frame = pd.read_csv(report.figures["pareto"].with_suffix(".csv")).set_index(["curve", "setting"])
    line = frame.loc[("concrete", "p_logit -1")]
    assert line["seeds"] == 2 and line["score"] == pytest.approx(0.898) and line["occupancy"] == pytest.approx(0.5)
    assert line["score_std"] == pytest.approx(0.004 / 2**0.5) and line["time_ratio"] == pytest.approx(0.54)
    assert pd.isna(frame.loc[("random", "keep_ratio 0.5")]["score_std"])


def test_times_of_several_batches_say_so(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("sttabt.report.pareto.save", lambda figure, *_: figures.append(figure) or tmp_path)
    row = make_row()
    for sizes, label in (((32, 32), "batch 32"), ((32, 1), "batch 1 and 32")):
        rows = [make_row(share=s, time=row.time | {"batch_size": n}) for s, n in zip((0.3, 0.5), sizes, strict=True)]
        draw_pareto(points_by_dataset(rows), tmp_path)
        labels = [axes.get_xlabel() for axes in figures[-1].subfigs[0].axes]
        assert [text.partition("\n")[2] for text in labels] == ["", "", label]


@pytest.mark.parametrize("colour", [(20,), (20, 20, 20), (20, 30, 40)])
def test_fade_leaves_kept_patches_alone(colour):
    image = np.full((9, 9, len(colour)), colour, np.uint8)
    patches = np.zeros((4, 4), bool)
    patches[0, 3] = True
    faded = fade(image, patches)
    kept = (faded == image).all(axis=2)
    assert faded.shape == (9, 9, 3) and kept[:3, 7:].all() and kept.sum() == 6
    assert (faded[~kept] > 150).all()
    # In a grey image a dropped patch must not look like a grey patch that was kept.
    assert (np.ptp(faded[~kept].astype(int), axis=1) > 20).all() == (len(set(colour)) == 1)


def test_gallery_survives_the_disk_and_a_broken_one_is_skipped(tmp_path, caplog):
    write_rows(tmp_path, [make_row(share=0.3), make_row(share=0.7)], galleries=True)
    ((_, read), _), left_out = read_galleries(read_rows([tmp_path]))
    assert left_out == []
    written = make_gallery(make_row(share=0.3).occupancy, channels=1)
    assert all(
        np.array_equal(getattr(read, name), getattr(written, name)) for name in ImageGallery.__dataclass_fields__
    )
    path = tmp_path / "job-0" / "tokens.npz"
    for content in (path.read_bytes()[:-200], path.read_bytes()[:300], b"", b"text"):
        path.write_bytes(content)
        caplog.clear()
        found, left_out = read_galleries(read_rows([tmp_path]))
        assert len(found) == len(left_out) == 1
        assert f"left out {path}: it is no gallery" in caplog.text


def test_gallery_refuses_tokens_that_come_back():
    gallery = make_gallery(0.5)
    alive = gallery.alive.copy()
    alive[0, LAYERS] = True
    with pytest.raises(ValueError, match="nested"):
        replace(gallery, alive=alive)


def test_points_that_heap_up_have_panels_of_their_own(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("sttabt.report.pareto.save", lambda figure, *_: figures.append(figure) or tmp_path)
    rows = [make_row("random", share) for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
    heaped = [
        replace(row, score=score) for row, score in zip(rows, (0.1, 0.5, 0.6, 0.9, 0.91, 0.92, 0.93, 0.94), strict=True)
    ]
    for given, expected in ((heaped, 0.91), (heaped[1:], None), ([replace(row, score=0.5) for row in rows], None)):
        assert heap(points_by_dataset(given)["digits"]) == expected
    draw_pareto(points_by_dataset(heaped), tmp_path)
    panels = [axes for part in figures[0].subfigs for axes in part.axes]
    assert len(panels) == 6
    (low, high), (left, right) = panels[3].get_ylim(), panels[3].get_xlim()
    assert 90 < low < 91 and 94 < high < 95 and 0.4 < left < 0.5 and 0.8 < right < 0.9
    assert panels[0].get_ylim()[0] < 10 and panels[0].get_xlabel() == "" != panels[3].get_xlabel()


def test_figure_shows_the_middle_of_each_method():
    rows = [row for row in make_sweep() if row.seed == 0]
    chosen = choose([(row, make_gallery(row.occupancy)) for row in rows])
    assert [(row.label, round(row.occupancy, 2)) for row, _ in chosen] == [
        ("concrete", 0.5),
        ("back-tracking (approximate attention)", 0.5),
        ("back-tracking (actual attention)", 0.3),  # its others are at 0.7
        ("forward top-k", 0.5),
        ("random", 0.5),
    ]
    others = [(row, make_gallery(row.occupancy)) for row in rows if row.method in ("dense", "random")]
    assert [row.method for row, _ in choose(others)] == ["random"]


def test_every_method_has_its_line_in_the_figure_and_dropped_patches_are_explained(tmp_path):
    rows = [make_row(name, 0.5) for name in method_names() if name != "dense"]
    for index, row in enumerate(rows):
        row.write(tmp_path / f"job-{index}" / "row.json")
        make_gallery(row.occupancy).write(tmp_path / f"job-{index}" / "tokens.npz")
    made = {
        name: make_report([tmp_path / folder for folder in folders], tmp_path / name)
        for name, folders in {"all": [""], "one": ["job-0"]}.items()
    }
    names = pd.read_csv(made["all"].figures["tokens"].with_suffix(".csv"))["model"].unique()
    assert len(names) == len({row.label for row in rows}) == len(rows) > 10
    for report in made.values():
        drawn = report.figures["tokens"].with_suffix(".svg").read_text()
        written = re.findall(r"<!-- (.*?) -->", drawn)
        assert {"patches that the layer reads", "dropped before it, or merged into others"} <= set(written)
    drawn = made["all"].figures["tokens"].with_suffix(".svg").read_text()
    parts = re.findall(r"<!-- (.*?) -->", drawn)
    assert all(row.label.partition(" ")[0] in " ".join(parts) for row in rows)
    assert drawn.count("<image ") == 2 + 2 * len(rows) * LAYERS + 2, "two images, under each method, and the key"


def test_stale_token_figures_are_removed(tmp_path):
    folder = write_rows(tmp_path, [make_row()], galleries=True)
    tokens = make_report([folder]).figures["tokens"]
    assert len(list(tokens.parent.glob("tokens.*"))) == 4
    (tmp_path / "job-0" / "tokens.npz").unlink()
    assert "tokens" in make_report([folder]).missing
    assert not list(tokens.parent.glob("tokens.*"))


class Page(HTMLParser):
    """Checks that tags close in order; keeps text, code blocks, addresses and embedded data."""

    EMPTY = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.pieces: dict[str, list[str]] = {}

    def handle_starttag(self, tag, attributes):
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "action", "srcset")]
        if tag not in self.EMPTY:
            self.open.append(tag)
            self.pieces.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.pieces[self.open[-1]][-1] += data


@pytest.mark.parametrize("galleries", [True, False])
def test_page_is_whole_and_holds_every_row(tmp_path, galleries):
    rows = make_sweep()
    path = make_report([write_rows(tmp_path, rows, galleries)], tmp_path / "out", title="Tokens & <tags>").page
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.pieces["h1"] == ["Tokens & <tags>"]
    assert sorted(page.pieces["code"]) == sorted(row.command for row in rows)
    assert all(f"config {row.config_hash}," in text for row in rows)
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"https?:|url\(|@import|fetch\(", text)
    if galleries:
        data = json.loads(next(piece for piece in page.pieces["script"] if piece.startswith("{")))
        assert len({each["name"] for each in data["sets"]}) == 11 and len(data["images"]) == 2
        assert data["sets"][data["first"]]["name"] == "concrete, p_logit -1, seed 0"
        expected = make_gallery(make_row(share=0.5).occupancy).alive[:, :, 1:].sum(axis=1).tolist()
        assert data["sets"][data["first"]]["lifetimes"] == expected


def test_command_writes_and_prints(tmp_path, capsys):
    folder = write_rows(tmp_path / "p=1", make_sweep())
    assert main([str(folder), f"out={tmp_path / 'out'}", "title=My sweep"]) == 0
    printed = capsys.readouterr().out
    assert format_table(make_sweep()) in printed and str(tmp_path / "out" / "index.html") in printed
    assert "<h1>My sweep</h1>" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "give a folder"), (["ouut=x"], "did you mean 'out'?"), (["no/such/folder"], "there is no folder")],
)
def test_command_refuses_with_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_report_loads_no_model_library():
    code = "import sys, sttabt.report.build; sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'timm')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_that_differ_in_any_setting_of_their_method_are_curves_of_their_own() -> None:
    rows = [
        make_row("ltp", share, settings={"mask_weight": weight, "temperature": temperature, "hard_from": 0.5})
        for temperature in (0.001, 0.002)
        for share, weight in ((0.3, 1.0), (0.6, 0.1))
    ]
    points = to_points([*rows, make_row("dense")])
    assert [(point.series, point.setting.rpartition("mask_weight ")[2]) for point in points[1:]] == [
        ("LTP, temperature 0.001", "1"),
        ("LTP, temperature 0.001", "0.1"),
        ("LTP, temperature 0.002", "1"),
        ("LTP, temperature 0.002", "0.1"),
    ]


# --- choices


def make_ltp(weight: float, temperature: float, loss: float | None, seed: int = 0, **changes) -> Row:
    """A row of LTP's grid; its test score falls where its validation loss does, so that a choice by test differs."""
    settings = {"mask_weight": weight, "temperature": temperature, "hard_from": 0.5}
    score = 0.5 if loss is None else 0.4 + loss / 10
    return make_row(
        "ltp", seed=seed, settings=settings, validation_loss=loss, score=score,
        config_hash=f"{weight}-{temperature}-{seed}", **changes,
    )  # fmt: skip


LTP_LOSSES = {0.1: {0.001: (0.5, 0.9), 0.002: (0.8, 0.5)}, 1.0: {0.001: (1.2, 1.3), 0.002: (1.1, 1.5)}}  # two seeds


def ltp_grid(**changes) -> list[Row]:
    return [
        make_ltp(weight, temperature, loss, seed, **changes)
        for weight, tried in LTP_LOSSES.items()
        for temperature, losses in tried.items()
        for seed, loss in enumerate(losses)
    ]


def test_the_best_of_each_point_is_that_of_the_lowest_mean_validation_loss(caplog):
    rows = [make_row("dense"), *ltp_grid(), make_row("concrete", 0.5)]
    with caplog.at_level(logging.INFO):
        best = best_by_validation(rows, ["temperature"])
    found = {(row.knob_value, row.settings["temperature"], row.seed) for row in best if row.method == "ltp"}
    assert found == {(0.1, 0.002, 0), (0.1, 0.002, 1), (1.0, 0.001, 0), (1.0, 0.001, 1)}, "the means, not one seed's"
    assert [row.method for row in best] == ["dense", *["ltp"] * 4, "concrete"], "in their order"
    assert caplog.messages == [
        "digits, LTP, mask_weight 0.1: temperature 0.002 has the lowest of 2 validation losses, 0.65",
        "digits, LTP, mask_weight 1.0: temperature 0.001 has the lowest of 2 validation losses, 1.25",
    ]
    assert best_by_validation(rows, []) == rows
    by_score = max((row for row in ltp_grid() if row.knob_value == 0.1), key=lambda row: row.score)
    assert by_score.settings["temperature"] == 0.001, "the test split would have chosen another"


def test_a_choice_over_two_settings_is_one_choice():
    losses = {(rate, batch): abs(rate - 2) + (batch != 48) for rate in (0.5, 1, 2) for batch in (24, 32, 48)}
    rows = [
        make_row(
            settings={"training.learning_rate": rate, "batch": batch}, validation_loss=loss + 0.1, config_hash=f"{loss}"
        )
        for (rate, batch), loss in losses.items()
    ]
    (best,) = best_by_validation(rows, ["training.learning_rate", "batch"])
    assert (best.settings["training.learning_rate"], best.settings["batch"]) == (2, 48)
    assert len(best_by_validation(rows, ["batch"])) == 3, "one of each learning rate"


@pytest.mark.parametrize("spoil", ["loss", "seed"])
def test_what_cannot_be_compared_is_not_chosen_from(spoil, caplog):
    rows = ltp_grid()
    rows = rows[1:] if spoil == "seed" else [replace(rows[0], validation_loss=None), *rows[1:]]
    best = best_by_validation(rows, ["temperature"])
    assert [row.knob_value for row in best if row.method == "ltp"].count(0.1) == len(rows) - 4, "all of it stays"
    assert [row.knob_value for row in best if row.method == "ltp"].count(1.0) == 2
    why = {"seed": "were tried with different seeds", "loss": "lack the validation loss"}[spoil]
    assert f"LTP, mask_weight 0.1: temperature is not chosen, as rows {why}: all are shown" in caplog.text


def test_a_report_shows_what_was_chosen_as_one_curve(tmp_path, capsys):
    write_rows(tmp_path / "rows", [make_row("dense"), *ltp_grid()])
    assert main([str(tmp_path / "rows"), f"out={tmp_path / 'out'}", "choose=temperature"]) == 0
    frame = pd.read_csv(tmp_path / "out" / "pareto.csv")
    assert frame["curve"].tolist() == ["dense", "LTP", "LTP"]
    assert set(frame["setting"].dropna()) == {"mask_weight 0.1, temperature 0.002", "mask_weight 1, temperature 0.001"}
    assert len(pd.read_csv(tmp_path / "out" / "table.csv")) == 5
    note = "Of each point, temperature are those of the lowest validation loss"
    assert note in capsys.readouterr().out and note in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert main([str(tmp_path / "rows"), "choose=temprature"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "choose=temprature" in error and "did you mean 'temperature'?" in error


def test_a_choice_is_made_for_each_data_set(tmp_path):
    rows = [row for name in ("a", "b") for row in (make_row("dense", dataset=name), *ltp_grid(dataset=name))]
    report = make_report([write_rows(tmp_path / "rows", rows)], tmp_path / "out", choose=["temperature"])
    frame = pd.read_csv(report.table.with_suffix(".csv"))
    assert frame["dataset"].value_counts().to_dict() == {"a": 5, "b": 5}
