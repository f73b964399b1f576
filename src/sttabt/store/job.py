"""What a job is, and the commit of the code that runs it."""

from __future__ import annotations

import os
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "sttabt"


@dataclass(frozen=True)
class Job:
    """command: a command line that repeats the job; sweep: the same for all jobs of a multirun."""

    command: str
    sweep: str
    multirun: bool
    commit: str


def source_commit() -> str:
    """The git commit of the checkout that this package runs from, with '+' when it has changes; '' outside one.

    Another repository, in whose folder the package is installed or copied, is not that checkout.
    """
    root = Path(__file__).resolve().parents[3]
    if not _is_source(root):
        return ""
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return ""
        return _git(root, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return ""  # no repository, or no git


def _is_source(root: Path) -> bool:
    """Whether the folder is this package's source tree."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return False
    return project.get("name") == PACKAGE


def _git(folder: Path, *arguments: str) -> str:
    # GIT_DIR and the like, as a hook has them, speak of another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    found = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return found.stdout.strip()
