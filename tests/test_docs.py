"""The site builds without a warning and is read without a network; every block of the guides runs as pasted."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import sttabt
from browser import NEEDS_BROWSER, start_browser
from sttabt.cli.composition import compose_settings, config_folder
from sttabt.report.catalogue import CATALOGUE
from test_conf import sweep_jobs

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "guides"
SOURCE = str(Path(sttabt.__file__).parents[1])
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href"}  # what a page fetches by itself
NEEDS_MKDOCS = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install 'sttabt[docs]'"
)


class Page(HTMLParser):
    """What a page loads, and the text of its paragraphs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.paragraphs: list[str] = []
        self.inside = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(LOADED.get(tag, ""))
        if address and dict(attrs).get("rel") not in ("prev", "next", "canonical"):
            self.loads.append(address)
        if tag == "p":
            self.inside = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "p"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.paragraphs[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    made = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    said = [
        line for line in made.stderr.splitlines() if not re.match(r"INFO +-  (Cleaning|Building|Documentation)", line)
    ]
    assert said == [], "a link that leads nowhere, a page without its place"
    return folder


@NEEDS_MKDOCS
def test_pages_fetch_nothing_from_elsewhere_and_no_list_is_a_paragraph(site: Path) -> None:
    paths = [*site.glob("*.html"), *site.glob("docs/**/*.html"), *site.glob("experiments/**/*.html")]
    assert len(paths) > 25
    for path in paths:
        page = Page(path)
        assert page.loads and not [address for address in page.loads if re.match("(https?:)?//", address)], path
        assert not [text for text in page.paragraphs if re.search(r"^\s*(- |\d\. |\| )", text, re.MULTILINE)], path


@NEEDS_MKDOCS
def test_the_reference_has_the_whole_face_of_the_package(site: Path) -> None:
    text = (site / "docs" / "API.html").read_text(encoding="utf-8")
    for name in set(sttabt.__all__) - {"__version__"}:
        assert re.search(rf'<h3 id="sttabt\.(\w+\.)*{name}"', text), name
    assert re.search(r"<li>\s*(<p>)?<code>budget</code>, <code>calibration</code>: instead of", text), (
        "and arguments lists"
    )


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with start_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@NEEDS_MKDOCS
@NEEDS_BROWSER
@pytest.mark.parametrize("page", ["index.html", "docs/API.html", "docs/guides/vit.html", "docs/METHOD.html"])
def test_a_page_opens_from_a_disk(page: str, site: Path, started: webdriver.Chrome) -> None:
    started.get((site / page).as_uri())
    WebDriverWait(started, 30).until(lambda driver: driver.find_element(By.TAG_NAME, "h1").is_displayed())
    asked = [json.loads(entry["message"])["message"] for entry in started.get_log("performance")]
    sent = [each["params"] for each in asked if each["method"] == "Network.requestWillBeSent"]
    names = [each["request"]["url"] for each in sent if not each["documentURL"].startswith("chrome:")]
    assert len(names) > 3 and all(name.startswith((site.as_uri(), "data:", "blob:")) for name in names)
    assert started.get_log("browser") == []


@NEEDS_MKDOCS
@NEEDS_BROWSER
def test_the_search_finds_from_a_disk(site: Path, started: webdriver.Chrome) -> None:
    started.get((site / "docs/guides/vit.html").as_uri())
    WebDriverWait(started, 30).until(lambda driver: driver.find_element(By.NAME, "query").is_displayed())
    started.find_element(By.NAME, "query").send_keys("preempted")

    def found(driver: webdriver.Chrome) -> list[str]:
        links = driver.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
        return [link.get_attribute("href") or "" for link in links]

    WebDriverWait(started, 30).until(found)
    assert any("docs/guides/cluster.html" in link for link in found(started))
    assert started.get_log("browser") == []


def blocks(guide: str, *kinds: str) -> list[tuple[str, str]]:
    """The code blocks of a guide, in order: kind and code."""
    text = (FOLDER / f"{guide}.md").read_text(encoding="utf-8")
    assert text.count("```") % 2 == 0
    return [block for block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL) if block[0] in kinds]


def commands(code: str) -> list[list[str]]:
    """What the shell would hand to `python` in a block, command by command."""
    told = "python() { printf '%s\\0' \"$@\"; printf '\\n'; }\n" + code
    said = subprocess.run(["bash", "-euc", told], capture_output=True, text=True, check=True).stdout
    return [line.split("\0")[:-1] for line in said.splitlines()]


def run_guide(guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of a guide, in order, in one process, in this folder."""
    scope: dict[str, object] = {"__name__": guide}
    for kind, code in blocks(guide, "python", "sh"):
        if kind == "python":
            exec(compile(code, f"{guide}.md", "exec"), scope)
            continue
        for _, module, *arguments in commands(code):
            monkeypatch.setattr(sys, "argv", [module, *arguments])
            assert not importlib.import_module(module).main()


RUN = ("vit", "bert")
FOLLOWED = ("own_data", "device", "reliability")  # these go on with what the first made
FAR = ("paper", "cluster")  # their data are not here


def test_every_guide_is_run_here() -> None:
    assert sorted([*RUN, *FOLLOWED, *FAR, "add_a_method"]) == sorted(path.stem for path in FOLDER.glob("*.md"))


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize("guide", RUN)
def test_a_guide_runs_as_pasted(guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_guide(guide, monkeypatch)


@pytest.mark.usefixtures("own_folder")
def test_ones_own_data_go_from_a_folder_to_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for guide in FOLLOWED:
        run_guide(guide, monkeypatch)
    assert len(list(Path("runs").glob("*/report/index.html"))) == 2
    assert Path("mine.pt2").is_file() and len(list(Path("artifacts/prune").glob("*/README.md"))) == 1


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize("guide", FAR)
def test_commands_whose_data_are_elsewhere_are_settings(guide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("sbatch").touch(0o755)  # nothing is started: that it is there is asked for
    monkeypatch.setenv("PATH", str(Path.cwd()), prepend=os.pathsep)
    for part in ("train", "val"):
        Path("imagenet", part, "cat").mkdir(parents=True)
    for _, code in blocks(guide, "sh"):
        for _, module, *arguments in commands(code.replace("/data/imagenet", "imagenet")):
            if module == "sttabt.report":
                (figures,) = [each.partition("=")[2].split(",") for each in arguments if each.startswith("figure=")]
                assert CATALOGUE.keys() >= set(figures)
                continue
            assert module == "sttabt.run"
            experiment = arguments[0].partition("=")[2]
            jobs = sweep_jobs(experiment, *arguments[1:])
            assert jobs and compose_settings(jobs[-1]).name == experiment


def test_the_papers_table_is_that_of_the_experiments_and_figures() -> None:
    text = (FOLDER / "paper.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    for figures, experiments, costs in lines:
        names = re.findall(r"\[(\w+)\]", experiments)
        for figure in re.findall(r"`(\w+)`", figures):
            assert re.findall(r"experiment=(\w+)", " ".join(CATALOGUE[figure].commands)) == names
        for name, cost in zip(names, re.split(", and |, ", costs), strict=True):
            card = (config_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").split("\n\n")[0]
            card = " ".join(card.replace("#", " ").split())
            assert [fact for fact in cost.split("; ") if fact not in card] == [], name
    shown = {figure for figures, *_ in lines for figure in re.findall(r"`(\w+)`", figures)}
    assert shown == CATALOGUE.keys() - {"tasks", "search", "rivals", "rivals_time"}, "which are none of the paper's"


def test_the_method_of_the_guide_is_found_tested_and_run(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    package = tmp_path / "package"
    for _, code in blocks("add_a_method", "toml", "yaml", "python"):
        place, _, content = code.partition("\n")
        path = package / place.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    site = tmp_path / "site"
    offline = {"PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # 0: no isolation, in pip
    environment = {**os.environ, **offline, "PYTHONPATH": os.pathsep.join([SOURCE, str(site)])}
    for arguments in commands(blocks("add_a_method", "sh")[0][1]):
        ended = subprocess.run(
            [sys.executable, *arguments], cwd=package, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        shutil.rmtree(package / "my_tokens", ignore_errors=True)  # what was installed is what is run
    (row,) = package.glob("runs/*/row.json")
    assert '"label": "steady"' in row.read_text() and '"rate": 0.6' in row.read_text()


def test_what_is_said_of_the_software_is_that_of_the_package() -> None:
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (said["title"], said["version"], said["license"]) == ("sttabt", sttabt.__version__, "MIT")
    (paper,) = said["references"]
    cited = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Cite")[2]
    assert [author["family-names"] for author in paper["authors"]] == re.findall(r"\w+", cited.partition(":")[0])
    assert f"*{paper['title']}*, ICLR {paper['year']}" in cited
    assert f"\n## {sttabt.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
