"""A package of a user's own, found by its entry point: its method is listed, composed, checked and explained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sttabt
from sttabt.testing import contract

SOURCE = str(Path(sttabt.__file__).parents[1])
SETTINGS = """
from dataclasses import dataclass

from sttabt.settings.fields import at_least, setting
from sttabt.settings.methods.base import MethodSettings


@dataclass
class StrideSettings(MethodSettings):
    title = "every other"
    source = "this test"
    implementation = "my_tokens.stride:Stride"

    stride: int = setting(2, "how far apart the tokens are that stay", at_least(2), knob=True)
"""
FILES = {
    "my_tokens/__init__.py": "raise ImportError('a broken package')\n",
    "my_tokens/conf/sparsity/stride.yaml": (
        "defaults: [/schema_sparsity_stride@_here_, _self_]\nmethod: stride\nstride: 3\n"
    ),
    "my_tokens-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: my-tokens\nVersion: 1.0\n",
    "my_tokens-1.0.dist-info/entry_points.txt": "[sttabt.methods]\nstride = my_tokens.settings:StrideSettings\n",
    "my_tokens/settings.py": SETTINGS,
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder that the package is installed in."""
    for name, content in {**FILES, "my_tokens/__init__.py": ""}.items():
        file = tmp_path / "site" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return tmp_path / "site"


def _python(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{package}"}
    folder = package.parent / "work"
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=folder
    )


FIGURE = """
from matplotlib.figure import Figure

from sttabt.report.catalogue import Entry
from sttabt.report.figures import figure_style, save


def draw(results, folder):
    found = [(kl.mean, point) for points in results.datasets.values() for point in points
             if (kl := point.value("approx.kl"))]
    if not found:
        return None
    with figure_style():
        figure = Figure()
        panel = figure.subplots()
        panel.plot([kl for kl, _ in found], [point.value("score").mean for _, point in found], "o")
        return save(figure, folder, "by_kl")


ENTRY = Entry("score against the divergence of the attention", "with an approximate network", ("sttabt",), draw)
"""


def test_a_figure_is_listed_drawn_and_in_the_page(package: Path) -> None:
    points = package / "my_tokens-1.0.dist-info" / "entry_points.txt"
    (package / "my_tokens" / "figure.py").write_text(FIGURE)
    points.write_text("[sttabt.figures]\nby_kl = my_tokens.figure:ENTRY\n")
    table = Path(SOURCE).parent / "experiments" / "001_quickstart" / "table.csv"
    assert "by_kl" in _python(package, "-m", "sttabt.report", "--help").stdout
    made = _python(package, "-m", "sttabt.report", str(table), "out=R")
    assert made.returncode == 0, made.stderr
    report = package.parent / "work" / "R"
    assert {path.suffix for path in report.glob("by_kl.*")} == {".png", ".pdf", ".svg"}
    assert "Score against the divergence of the attention" in (report / "index.html").read_text(encoding="utf-8")
    (package / "my_tokens" / "broken.py").write_text("raise ValueError('two\\nlines')\n")
    for entry, why in (
        ("by_kl = my_tokens.figure:draw", "it is no"),
        ("pareto = my_tokens.figure:ENTRY", "taken"),
        ("by_kl = my_tokens.nowhere:ENTRY", "cannot be imported (ModuleNotFoundError"),
        ("by_kl = my_tokens.broken:ENTRY", "cannot be imported (ValueError two lines)"),
    ):
        points.write_text(f"[sttabt.figures]\n{entry}\n")
        ended = _python(package, "-m", "sttabt.report", str(table), "out=R")
        assert ended.returncode == 2 and why in ended.stderr and ended.stderr.count("\n") == 1


def test_help_lists_the_method_and_its_settings(package: Path) -> None:
    listed = _python(package, "-m", "sttabt.run", "--help")
    assert listed.returncode == 0 and listed.stderr == ""
    assert ", stride, tome" in " ".join(listed.stdout.split())
    assert "sparsity=stride: every other (this test)" in listed.stdout
    chosen = " ".join(_python(package, "-m", "sttabt.run", "--help", "sparsity=stride").stdout.split())
    assert "sparsity.stride=3 how far apart the tokens are that stay (at least 2)" in chosen


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("sparsity=strid", "sparsity=strid is unknown: did you mean 'stride'?\n"),
        ("sparsity=stride sparsity.strde=4", "sparsity.strde is not a setting: did you mean 'sparsity.stride'?\n"),
        ("sparsity=stride sparsity.stride=1", "sparsity.stride=1 is out of range: it must be at least 2\n"),
        ("sparsity=tome sparsity.stride=4", "sparsity.stride is not a setting of this method but of stride: choose"),
        (
            "-m sparsity=stride sparsity.stride=2,1",
            "job 2/2 (experiment=debug sparsity=stride sparsity.stride=1): sparsity.stride=1 is out of range",
        ),
    ],
)
def test_a_mistake_in_its_settings_is_one_line(arguments: str, line: str, package: Path) -> None:
    option, *rest = arguments.split() if arguments.startswith("-m") else ["", *arguments.split()]
    ended = _python(package, "-m", "sttabt.run", *([option] if option else []), "experiment=debug", *rest)
    assert ended.returncode == 2
    assert line in ended.stderr and ended.stderr.count("\n") == 1


def test_python_composes_it_and_its_knob_is_known(package: Path) -> None:
    code = (
        "import sys; from sttabt.cli.composition import compose_settings; from sttabt.settings import method_names;"
        "found = compose_settings(['experiment=debug', 'sparsity=stride']).sparsity;"
        "print(found.label, found.knob, method_names()[-1], 'torch' in sys.modules)"
    )
    assert _python(package, "-c", code).stdout == "every other ('stride', 3) stride False\n"


def test_a_package_that_cannot_be_used_is_named_and_left_out(package: Path) -> None:
    (package / "my_tokens" / "__init__.py").write_text(FILES["my_tokens/__init__.py"])
    ended = _python(package, "-m", "sttabt.run", "--help", "sparsity=tome")
    assert ended.returncode == 0 and "sparsity=tome: ToMe" in ended.stdout
    line = "the method 'stride' of the package my-tokens is left out: ImportError: a broken package\n"
    assert ended.stderr == line


METHOD = """
from sttabt.core.plan import TokenPlan, output_tokens
from sttabt.methods.base import Planned, PlannedMethod


class Stride(PlannedMethod):
    def plan(self, base, inputs, trace):
        real = base.real(inputs)
        outputs = output_tokens(real, self.outputs)
        place = real.long().cumsum(1) - 1
        kept = real & (place % self.settings.stride == 0) | outputs
        return Planned(TokenPlan(kept * self.layers + outputs.long(), self.layers))
"""
CONTRACT = """
import pytest
from sttabt.testing import contract


@pytest.mark.parametrize("check", contract.CHECKS)
@pytest.mark.parametrize("case", [*contract.cases("stride", "digits"), *contract.cases("stride", "bert")], ids=str)
def test_stride(case, check):
    assert not case.refusal()
    check(case)
"""


def test_the_method_keeps_the_contract(package: Path) -> None:
    (package / "my_tokens" / "stride.py").write_text(METHOD)
    (package / "test_stride.py").write_text(CONTRACT)
    found = _python(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package / "test_stride.py"))
    assert found.returncode == 0, found.stdout + found.stderr
    passed, skipped = (int(found) for found in re.search(r"(\d+) passed, (\d+) skipped", found.stdout).groups())
    assert passed + skipped == 2 * len(contract.CHECKS)
    assert skipped == 3, "it lists no values of its knob, on both, and images have no padding"


def test_its_knob_is_swept_and_shows_in_table_and_figures(package: Path) -> None:
    """A sweep whose jobs are processes of Ray's, and a report of it beside a method of ours; nothing here changes."""
    pytest.importorskip("ray")
    (package / "my_tokens" / "stride.py").write_text(METHOD)
    debug = ["experiment=debug", "logger=none"]
    ours = _python(package, "-m", "sttabt.run", *debug, "sparsity=random", "hydra.run.dir=ours")
    assert ours.returncode == 0, ours.stderr
    swept = ["-m", "sttabt.run", "-m", *debug, "hardware=local_cpus", "sparsity=stride", "sparsity.stride=2,4"]
    found = _python(package, *swept, "hydra.sweep.dir=own")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "job 2/2 done" in found.stdout
    made = _python(package, "-m", "sttabt.report", "ours", "own", "out=report")
    assert made.returncode == 0, made.stderr
    work = package.parent / "work"
    rows = [json.loads(path.read_text()) for path in work.glob("own/*/row.json")]
    own = sorted((row["settings"]["stride"], row["occupancy"]) for row in rows)
    assert [stride for stride, _ in own] == [2, 4] and own[0][1] > own[1][1]
    assert {(row["label"], row["knob"]) for row in rows} == {("every other", "stride")}
    table = " ".join((work / "report" / "table.md").read_text().split())
    assert "| every other | stride 2 |" in table and "| every other | stride 4 |" in table and "| random |" in table
    assert "every other" in (work / "report" / "pareto.csv").read_text()
    assert (work / "report" / "pareto.png").stat().st_size > 10_000
    assert "every other" in (work / "report" / "index.html").read_text()
