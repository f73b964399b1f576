"""What is installed for the quickstart alone runs it, and what is missing is asked for in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages as `make run` fills it, of links to those that are here."""
    folder = tmp_path_factory.mktemp("site")
    for each in _closure([*PROJECT["dependencies"], *EXTRAS["vision"]]):
        for top in {file.parts[0] for file in each.files or []} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(each.locate_file(top))))
    return folder


def test_pruning_a_timm_model_needs_no_other_library(site: Path, tmp_path: Path) -> None:
    code = """
import sys, timm, torch, sttabt
sys.modules.update(dict.fromkeys(("pandas", "sklearn")))
model = sttabt.prune(timm.create_model("test_vit"), "backtracking", keep_ratio=0.4)
images = torch.randn(2, 3, 160, 160)
sttabt.distil(model, [images])
print(tuple(sttabt.freeze(model)(images).shape), {"transformers", "wandb", "datasets"} & sys.modules.keys())
"""
    done = _run(site, tmp_path, "-c", code)
    assert (done.returncode, done.stdout) == (0, "(2, 1000) set()\n"), done.stderr


def test_the_quickstart_runs_from_training_to_page(site: Path, tmp_path: Path) -> None:
    small = ["fast_dev_run=1", "evaluation.timing_rounds=1", "evaluation.gallery=1", "sparsity=dense,backtracking"]
    done = _run(site, tmp_path, "-m", "sttabt.run", "experiment=demo", *small)
    assert done.returncode == 0, done.stderr
    (page,) = tmp_path.glob("runs/*/report/index.html")
    assert f"page: {page.relative_to(tmp_path)}" in done.stdout


MISSING = {  # by what is given for a run of one method: what the line says, and the package
    "logger=wandb_offline": ("logger.kind=wandb_offline", "wandb", ", or logger=csv"),
    "logger=tensorboard": ("logger.kind=tensorboard", "tensorboard", ", or logger=csv"),
    "dataset=cifar10 model=deit_tiny model.pretrained=false": ("dataset.source=image_table", "datasets", ""),
    "model.timm= model.huggingface=a/b": ("model.huggingface=a/b", "transformers", ""),
}


@pytest.mark.parametrize("overrides", MISSING)
def test_a_run_asks_for_what_is_missing_in_one_line(overrides: str, site: Path, tmp_path: Path) -> None:
    command = ["-m", "sttabt.run", "experiment=quickstart", "hydra.mode=RUN", "sparsity=dense", *overrides.split()]
    done = _run(site, tmp_path, *command)
    what, package, otherwise = MISSING[overrides]
    line = f"{what} needs the package {package}: pip install {package}{otherwise}\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_loading_a_model_asks_for_its_library_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from sttabt.errors import UserError
    from sttabt.pretrained.build import build_base
    from sttabt.settings import ModelSettings

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^model.timm=test_vit needs the package timm: pip install timm$"):
        build_base(ModelSettings(timm="test_vit"), classes=2, channels=3, image_size=160, pretrained=False)


def test_every_requirement_is_pinned_within_its_range() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}
    asked = [Requirement(each) for each in (*PROJECT["dependencies"], *(each for e in EXTRAS.values() for each in e))]
    for each in (each for each in asked if each.name != PROJECT["name"]):
        assert each.specifier.contains(pins[canonicalize_name(each.name)]), each


def _closure(requirements: list[str]) -> Iterator[Distribution]:
    """The installed distributions that pip would bring."""
    waiting, seen = [Requirement(each) for each in requirements], set[tuple[str, ...]]()
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), *sorted(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        found = distribution(wanted.name)
        yield found
        for each in map(Requirement, found.requires or []):
            if not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in wanted.extras or [""]):
                waiting.append(each)


def _run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these packages alone (-S: without its own folder of packages)."""
    paths = {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT / "src")])}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **paths}, capture_output=True, text=True, timeout=600, check=False
    )
