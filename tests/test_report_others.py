"""Methods that the report has never heard of are drawn like all others; both baselines of times are shown."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from sttabt.report.build import make_report
from sttabt.report.choice import best_by_validation
from sttabt.report.curves import MARKERS, add_legend, curve_styles
from sttabt.report.gallery import choose
from sttabt.report.labels import OTHERS, colours, known_labels, rank
from sttabt.report.overhead import write_overhead
from sttabt.report.pareto import draw_pareto
from sttabt.report.points import points_by_dataset, to_points
from sttabt.report.rows import Row
from sttabt.report.search import draw_search
from sttabt.report.table import format_table, table_columns
from sttabt.settings.methods.base import TUNED
from test_report import make_gallery, make_row, make_sweep, write_rows
from test_report_texts import make_text_gallery, make_text_row

FROZEN = {"dense_frozen_ms": 12.0, "ratio_frozen": 0.8, "ratio_frozen_low": 0.75, "ratio_frozen_high": 0.875}
SINGLE = {"ms": 1.0, "dense_ms": 2.0, "ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.6}


def make_other(warmth: float, make=make_row, **changes) -> Row:
    settings = {"warmth": warmth, "keep_ratio": 0.9, "greedy": False, "training.epochs": 3} | changes.pop("own", {})
    row = make("glow", warmth, settings=settings, **changes)
    return replace(row, label=changes.get("label", "GlowPrune"), knob="warmth")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole sweep and the new method at three values of its knob, each with a gallery."""
    folder = tmp_path_factory.mktemp("others")
    write_rows(folder / "known", make_sweep(), galleries=True)
    for warmth in (0.25, 0.45, 0.65):
        row = make_other(warmth)
        row.write(folder / f"glow-{warmth}" / "row.json")
        make_gallery(row.occupancy, channels=1).write(folder / f"glow-{warmth}" / "tokens.npz")
    return make_report([folder], folder / "out").page.parent


def test_it_is_in_the_table_behind_the_known_ones(report: Path) -> None:
    lines = [line.strip("| ").split(" | ") for line in (report / "table.md").read_text().splitlines()]
    own = [line for line in lines if line[0].strip() == "GlowPrune"]
    assert [line[1].strip() for line in own] == ["warmth 0.25", "warmth 0.45", "warmth 0.65"]
    methods = list(dict.fromkeys(line[0].strip() for line in lines if len(line) > 5))
    assert methods.index("GlowPrune") == max(methods.index(label) for label in ("random", "concrete", "GlowPrune"))
    assert set(pd.read_csv(report / "table.csv")["settings.warmth"].dropna()) == {0.25, 0.45, 0.65}


def test_it_is_a_curve_of_the_figure_and_of_the_page(report: Path) -> None:
    frame = pd.read_csv(report / "pareto.csv")
    own = frame[frame["curve"] == "GlowPrune"]
    assert own["setting"].tolist() == ["warmth 0.25", "warmth 0.45", "warmth 0.65"]
    assert own["score"].tolist() == pytest.approx([make_other(warmth).score for warmth in (0.25, 0.45, 0.65)])
    page = (report / "index.html").read_text(encoding="utf-8")
    (chart,) = json.loads(page.split('id="charts">')[1].split("</script>")[0])
    (curve,) = [curve for curve in chart["curves"] if curve["name"] == "GlowPrune"]
    assert curve["colour"] == OTHERS[0]
    assert f"fill: {OTHERS[0].lower()}" in (report / "pareto.svg").read_text()
    assert "GlowPrune, warmth 0.45" in page


def test_it_is_beside_the_known_ones_in_the_figure_of_tokens(report: Path) -> None:
    shown = list(dict.fromkeys(pd.read_csv(report / "tokens.csv")["model"]))
    assert shown[0] == "concrete, p_logit -1, seed 0" and shown[-1] == "GlowPrune, warmth 0.45" and len(shown) == 4


def test_it_is_compared_with_texts_and_alone() -> None:
    methods = ("concrete", "backtracking", "ltp", "random")
    rows = [make_text_row(method, share) for method in methods for share in (0.3, 0.5)]
    rows += [make_other(share, make_text_row) for share in (0.2, 0.5)]
    galleries = [(row, make_text_gallery(row.occupancy)) for row in rows]
    names = ["concrete", "back-tracking (approximate attention)", "LTP", "random", "GlowPrune"]
    assert [row.label for row, _ in choose(galleries)] == names
    assert [row.label for row, _ in choose(galleries[-2:])] == ["GlowPrune"]
    assert [row.label for row, _ in choose(galleries[:-2])] == names[:-1]


def test_labels_keep_their_colours_whatever_the_order() -> None:
    others = [f"method {number}" for number in range(5)]
    given = colours([*known_labels(), *others])
    assert {label: given[label] for label in known_labels()} == known_labels()
    alike = Counter(label.removesuffix(TUNED) for label in given)
    assert len(set(given.values())) == len(alike), "a method and the same, tuned, share theirs, and no others"
    assert colours(reversed([*others, *known_labels()])) == given
    assert colours([*others, *others[:2]]) == {label: given[label] for label in others}
    assert sorted(given, key=rank) == [*known_labels(), *others]
    assert len(colours(f"{number:02d}" for number in range(20))) == 20


# What readers see, in linear RGB: as it is, with protanopia and with deuteranopia (Machado et al., TVCG 2009).
VISIONS = (
    np.eye(3),
    np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def cielab(colour: str, vision: np.ndarray) -> np.ndarray:
    coded = np.array(to_rgb(colour))
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    share = TO_XYZ @ np.clip(vision @ linear, 0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_of_unknown_labels_are_told_apart_by_all_readers() -> None:
    given = dict.fromkeys(known_labels().values())  # a method and the same, tuned, share theirs
    for one, other in itertools.combinations([*given, *OTHERS], 2):
        apart = min(float(np.linalg.norm(cielab(one, vision) - cielab(other, vision))) for vision in VISIONS)
        assert apart > (15 if other in OTHERS else 9), (one, other)


def test_curves_of_one_label_share_its_colour() -> None:
    rows = [make_other(w, own={"training.epochs": epochs}) for w in (0.2, 0.4) for epochs in (3, 5)]
    styles = curve_styles(to_points([*rows, make_other(0.3, label="Other"), make_row("dense")]))
    assert list(styles) == ["dense", "GlowPrune, training.epochs 3", "GlowPrune, training.epochs 5", "Other"]
    dense, one, two, other = styles.values()
    assert one.colour == two.colour != other.colour and one.marker != two.marker and one.face != two.face
    assert one.line == two.line == "-", "dashes are for what is fine-tuned"
    assert dense.marker == "*"


def test_a_tuned_method_has_its_own_colour_and_another_line() -> None:
    points = to_points([make_row("tome", label="ToMe"), make_row("tome", label=f"ToMe{TUNED}"), make_row("random")])
    styles = curve_styles(points)
    plain, tuned, random = styles["ToMe"], styles["ToMe, fine-tuned"], styles["random"]
    assert plain.colour == tuned.colour != random.colour
    assert plain.line == random.line == "-" != tuned.line
    assert plain.marker == tuned.marker != random.marker and plain.face != tuned.face == "white"


def test_what_is_off_tells_no_curve_apart_and_what_is_on_does() -> None:
    rows = [make_other(share, own={"greedy": greedy}) for share in (0.2, 0.4) for greedy in (False, True)]
    assert [point.series for point in to_points(rows)] == ["GlowPrune"] * 2 + ["GlowPrune, greedy"] * 2
    tracked = [make_row("backtracking", share, settings={"dynamic": False}) for share in (0.2, 0.4)]
    free = replace(make_row("backtracking", 0.3, settings={"dynamic": True}), knob=None)
    assert [(point.series.partition("), ")[2], point.setting) for point in to_points([*tracked, free])] == [
        ("", "keep_ratio 0.2"),
        ("", "keep_ratio 0.4"),
        ("dynamic", ""),
    ], "a keep ratio that has no effect names no curve"


def test_its_settings_are_chosen_and_searched_by_their_names(tmp_path: Path) -> None:
    rows = [
        make_other(
            warmth, own={"training.epochs": epochs}, validation_loss=abs(epochs - 5) + 0.1,
            validation={"score": warmth / epochs, "macs_share": warmth}, config_hash=f"{warmth}-{epochs}",
        )
        for warmth, epochs in itertools.product((0.2, 0.4), (3, 5))
    ]  # fmt: skip
    best = best_by_validation(rows, ["training.epochs"])
    assert [(row.knob_value, row.settings["training.epochs"]) for row in best] == [(0.2, 5), (0.4, 5)]
    (point, _) = to_points(best, chosen=["training.epochs"])
    assert (point.series, point.setting) == ("GlowPrune", "warmth 0.2, training.epochs 5")
    assert [row.knob_value for row in best_by_validation(rows, ["training.epochs", "warmth"])] == [0.2]
    points = {"digits": to_points(rows, along=["warmth", "training.epochs"])}
    assert draw_search(points, tmp_path) == tmp_path / "search.png"
    frame = pd.read_csv(tmp_path / "search.csv")
    assert set(frame["curve"]) == {"GlowPrune"} and "warmth 0.2, training.epochs 3" in set(frame["setting"])


def test_a_search_draws_more_methods_than_there_are_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [f"method {number}" for number in range(len(MARKERS) + 2)]
    rows = [
        make_other(
            warmth, label=label, own={"training.epochs": epochs}, config_hash=f"{label}-{warmth}-{epochs}",
            validation={"score": warmth / epochs, "macs_share": warmth},
        )
        for label in labels for warmth, epochs in itertools.product((0.2, 0.4), (3, 5))
    ]  # fmt: skip
    figures: list[Figure] = []
    monkeypatch.setattr("sttabt.report.search.save", lambda figure, *_: figures.append(figure) or tmp_path)
    draw_search({"digits": to_points(rows, along=["warmth", "training.epochs"])}, tmp_path)
    shown = figures[0].axes[0].get_legend_handles_labels()[1]
    assert sorted(shown) == sorted(["front", *labels])


def test_a_knob_may_be_a_word(tmp_path: Path) -> None:
    rows = [replace(make_other(0.3, own={"mode": mode}, config_hash=mode), knob="mode") for mode in ("soft", "hard")]
    assert {point.setting for point in to_points(rows)} == {"mode soft", "mode hard"}
    make_report([write_rows(tmp_path, rows)])


def test_the_report_loads_no_torch_and_no_method() -> None:
    code = "import sys, sttabt.report.build; sys.exit(any(m in sys.modules for m in ('torch', 'sttabt.methods')))"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- both baselines


def test_both_ratios_are_in_the_table_where_they_were_measured() -> None:
    row = make_row()
    timed = replace(row, time=(row.time or {}) | FROZEN, left_to_torch=["the base model: blocks.0 has hooks"])
    single = timed.time | {f"single_{name}": value for name, value in (SINGLE | FROZEN).items()}
    column = {each.title: each.text for each in table_columns(to_points([replace(timed, time=single)]))}
    (point,) = to_points([replace(timed, time=single)])
    assert column["share of dense time (quartiles)"](point) == "0.540 (0.520 to 0.570)"
    assert column["share of frozen dense time (quartiles)"](point) == "0.800 (0.750 to 0.875)"
    assert column["single samples (quartiles)"](point) == "0.500 (0.400 to 0.600)"
    assert column["single samples, frozen dense (quartiles)"](point) == "0.800 (0.750 to 0.875)"
    text = format_table([timed, make_row("random")])
    assert "what pruning alone gives" in text
    assert "Of concrete plain torch computed, without kernels, the base model: blocks.0 has hooks." in text
    assert "frozen" not in format_table([row]) and "plain torch" not in format_table([row])


def test_both_ratios_are_in_the_table_of_overheads(tmp_path: Path) -> None:
    row = make_row()
    planned = replace(row, macs=row.macs | {"approximate_network": 4e6, "planning": 1e6})
    timed = replace(planned, time=(row.time or {}) | FROZEN)
    for each, shown in ((planned, False), (timed, True)):
        path = write_overhead(points_by_dataset([each, make_row("dense")]), tmp_path)
        assert path is not None and ("all, % of frozen dense time" in path.read_text()) == shown
    line = next(line for line in path.read_text().splitlines() if line.startswith("| small, digits"))
    assert [cell.strip() for cell in line.split("|")][-3:] == ["54", "80", ""]


def test_both_ratios_are_in_the_figure_and_on_the_page(tmp_path: Path) -> None:
    rows = [make_row("dense"), *(make_row(share=share) for share in (0.3, 0.5))]
    timed = [row if row.time is None else replace(row, time=row.time | FROZEN) for row in rows]
    for name, own, shown in (("with", timed, True), ("without", rows, False)):
        page = make_report([write_rows(tmp_path / name, own)]).page
        frame = pd.read_csv(page.parent / "pareto.csv")
        assert ("time_ratio_frozen" in frame) == shown
        assert ('<option value="time_ratio_frozen">' in page.read_text(encoding="utf-8")) == shown
    assert frame["time_ratio"].notna().sum() == 2
    frame = pd.read_csv(tmp_path / "with" / "report" / "pareto.csv")
    assert frame["time_ratio_frozen"].dropna().tolist() == [0.8, 0.8]


def test_the_figure_has_a_panel_a_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr("sttabt.report.pareto.save", lambda figure, *_: figures.append(figure) or tmp_path)
    row = make_row()
    draw_pareto(points_by_dataset([make_row("dense"), replace(row, time=(row.time or {}) | FROZEN)]), tmp_path)
    panels = figures[0].subfigs[0].axes
    labels = [axes.get_xlabel().replace("\n", " ") for axes in panels]
    assert labels[2:] == ["measured time (share of dense) batch 32", "measured time (share of frozen dense) batch 32"]
    figures[0].canvas.draw()
    boxes = [axes.xaxis.label.get_window_extent() for axes in panels]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes)), "no label runs into the next"
    assert panels[3].get_title() == "not measured\nfor 1 point"


def test_a_curve_of_many_settings_does_not_leave_the_figure(tmp_path: Path) -> None:
    settings = {f"a_setting_of_some_length_{number}": number for number in range(20)}
    rows = [make_row("tome", share, settings=own) for share in (0.3, 0.5) for own in ({}, settings)]
    points = to_points(rows)
    assert max(len(point.series) for point in points) > 300
    figure = Figure(figsize=(7, 5))
    add_legend(figure, curve_styles(points))
    figure.canvas.draw()
    drawn = figure.legends[0].get_window_extent()
    assert drawn.x0 >= 0 and drawn.x1 <= figure.bbox.width
