"""A hook of mkdocs: the site has the layout of the repository, so that the links of its pages hold in both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SHOWN = (
    "*.md",
    "docs/**/*.md",
    "docs/**/*.png",
    "docs/**/*.js",
    "experiments/**/*.*",
    "notebooks/*.*",
    "conf/experiment/*.yaml",
)
LINK = re.compile(r"(?<=\]\()([^)#:]+)(?=\))")


def on_files(files: Files, config: Any) -> Files:
    """The repository's files in place of those of docs/ alone."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    paths = sorted({path.relative_to(ROOT).as_posix() for pattern in SHOWN for path in ROOT.glob(pattern)})
    own = [File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in paths]
    return Files([*theme, *own])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to a folder lead to its page: a repository's host shows that itself, a site does not."""
    here = Path(page.file.abs_src_path).parent
    return LINK.sub(lambda link: _page_of(here, link[1]), markdown)


def _page_of(here: Path, link: str) -> str:
    return f"{link.rstrip('/')}/README.md" if (here / link / "README.md").is_file() else link
